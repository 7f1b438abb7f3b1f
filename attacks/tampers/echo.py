"""Echo: a neighbour that gives its victim back to itself, so that it hears less of the others, and overfits.

Theory of operation (Pasquini, Raynal and Troncoso 2023, "On the (in)security of peer-to-peer decentralized machine
learning"). Mixing is what keeps a peer's model from its own data alone. In round t the attacker a hears what its victim
v says of itself, xhat_v^t = x_v^{t+1/2}, before it speaks (honest peers do not wait for each other), and says back

    "model":     xhat_a = xhat_v^t
    "marginal":  xhat_a = (xhat_v^t - sum_{j known} W_vj xhat_j^{t-1}) / (1 - sum_{j known} W_vj)

where known are those neighbours of v whose models of the round before a heard, and a itself by what it told v then.
With every neighbour known the second is xhat_v^{t-1} + u_v^t / W_vv: what v had, and its update as large as it was
before mixing made it small. Either moves v towards itself by a's weight W_va in its mean. It needs no knowledge of the
others, where state override needs all. Its limit is `dissensus` with epsilon 1, which knows all of v's neighbours and
cancels the round's mixing exactly: x_v^{t+1} = x_v^{t+1/2}.

The gain is measured: by membership inference, and by v's own accuracy on what it trained on less that on the test set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from veilmesh.attacks.seen.marginal import marginalised
from veilmesh.attacks.tampers.base import TAMPERS, Insider, Labels, Pictures, peers_only
from veilmesh.attacks.tampers.crafted import chosen
from veilmesh.attacks.tampers.liar import Claim, Heard, Liar
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Machine, PeerId
from veilmesh.swarm.sealer import RANGE

__all__ = ["Echo"]

_LITTLE = 1e-3
"""An own weight below which a peer's own part cannot be read from its mean."""


@TAMPERS.register("echo")
@dataclass(frozen=True)
class Echo:
    """Say to each of `victims` (peers by number; none named: all) its own parameters back, and to others the truth.

    `of`: its parameters as it said them ("model"), or with what is known of its neighbours taken out ("marginal").
    """

    victims: tuple[Annotated[int, Field(ge=0)], ...] = ()
    of: Literal["marginal", "model"] = "marginal"

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        peers_only(server)
        if strategy != "gossip":
            raise BadInput("echo cancels mixing among neighbours who say their models in rounds; take gossip.")

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        return Liar(honest, insider, _Echoed(chosen(self.victims, insider), self.of == "marginal"), rng)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, y


class _Echoed(Claim):
    """A victim's own parameters; what was heard in one round is what they are marginalised by in the next."""

    rushing: ClassVar[bool] = True

    def __init__(self, victims: frozenset[PeerId], marginal: bool) -> None:
        self._victims, self._marginal = victims, marginal
        self._round = -1
        self._now: Mapping[PeerId, Vector] = {}
        self._before: Mapping[PeerId, Vector] = {}  # neighbours' models of the round before
        self._told: dict[PeerId, Vector] = {}  # what each victim was told last
        self._taken: dict[PeerId, float] = {}  # of the last claims: the share of the victim's row that was taken out

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        if heard.round != self._round:
            follows = heard.round == self._round + 1
            self._before, self._now = (self._now if follows else {}), dict(heard.others)
            self._told = self._told if follows else {}
            self._round, self._taken = heard.round, {}
        own = heard.others.get(heard.victim)
        said = heard.honest
        if own is not None and heard.victim in self._victims:
            said, self._taken[heard.victim] = self._echo(own, heard)
        self._told[heard.victim] = said
        return said

    def _echo(self, own: Vector, heard: Heard) -> tuple[Vector, float]:
        row = heard.insider.rows[heard.victim]
        if not self._marginal or row.get(heard.victim, 0.0) < _LITTLE:
            return own, 0.0
        known = {p: x for p, x in self._before.items() if p != heard.victim}
        if heard.victim in self._told:
            known[heard.insider.kit.me] = self._told[heard.victim]
        rest, taken = marginalised(own, known, row)
        return np.clip(rest, -RANGE / 2, RANGE / 2), taken

    def remark(self) -> Mapping[str, Any]:
        return {"echoed": len(self._taken), "taken": max(self._taken.values(), default=0.0)}
