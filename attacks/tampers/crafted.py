"""Making others train from a crafted model: by saying it, as a server, or by state override, as a neighbour.

Theory of operation. A payload (`attacks/payloads/`) writes the parameters theta~; this tamper brings them to its
victims, and everything else it says is honest. In a star the server says the model that a round begins with, so it says
theta~ instead, if wanted another to some than to others (Pasquini, Francati and Ateniese 2022, "Eluding secure
aggregation in federated learning via model inconsistency"). In gossip no one says where v trains, but who speaks last
decides it (Pasquini, Raynal and Troncoso 2023, "On the (in)security of peer-to-peer decentralized machine learning",
state override): having heard the round's models, the attacker a says the xhat_a that solves

    xhat_v + sum_j W_vj (xhat_j - xhat_v) = theta~

which is exact up to float32 if it heard every neighbour of v, as on a complete graph, and accomplices with the same
neighbours say the same. What it did not hear it takes for the mean of what it heard; the note says of how much of v's
row that was (`guessed`). Behind an aggregator that is no mean, or a lossy codec, it gets as near as they let it.
What is said in round t is trained from in round t + 1, so nobody trains from a crafted model in a gossip's round 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from pydantic import Field

from veilmesh.attacks.payloads.base import PAYLOADS, Payload
from veilmesh.attacks.seen.marginal import completing
from veilmesh.attacks.tampers.base import TAMPERS, Insider, Labels, Pictures
from veilmesh.attacks.tampers.liar import Claim, Heard, Liar
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, LocalError, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, Event, Machine, Note, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import RANGE
from veilmesh.swarm.strategies.hub import lossless

__all__ = ["CraftedModel", "chosen", "trained_row"]

_STARS = ("fedavg", "fedprox", "fedsgd", "scaffold")
_MESHES = ("choco", "gossip")


@TAMPERS.register("crafted-model")
@dataclass(frozen=True)
class CraftedModel:
    """Make `victims` (peers by number; none named: all) train from the model that `payload` crafts.

    `others`: what the remaining peers are to train from, e.g. "suppression", so that a sum over all of them is the
    victims' alone; None: what they would honestly have. `first`, `rounds`: from which round on, and for how many (None:
    to the end). As the server of a star (adversary.vantage = "server"), or as a peer of gossip or choco.
    """

    payload: str | dict[str, Any]
    victims: tuple[Annotated[int, Field(ge=0)], ...] = ()
    others: str | dict[str, Any] | None = None
    first: Annotated[int, Field(ge=0)] = 0
    rounds: Annotated[int, Field(ge=1)] | None = None

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        for named in (self.payload, self.others):
            _built(named)
        if strategy not in (*_STARS, *_MESHES):
            known = ", ".join((*_STARS, *_MESHES))
            raise BadInput(f"crafted-model cannot decide where others train in {strategy}; take one of {known}.")
        if strategy in _STARS and not server:
            raise BadInput(
                "In a star only the server says where others train; set adversary.vantage to 'server' and leave "
                "adversary.peers out, or take gossip."
            )

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        crafting = _Crafting.of(self, insider)
        if insider.kit.server is not None:
            return _Server(honest, crafting)
        return Liar(honest, insider, _Override(crafting), rng)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, y


def _built(named: str | dict[str, Any] | None) -> Payload | None:
    """The payload of that name, or of that table with a name and options. Raises BadInput."""
    if named is None:
        return None
    options = {"name": named} if isinstance(named, str) else dict(named)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise BadInput("A payload is a name, or a table with a name and that payload's options.")
    return PAYLOADS.build(name, options)


def chosen(victims: tuple[int, ...], insider: Insider) -> frozenset[PeerId]:
    """The peers of these numbers, or all, whom the adversary does not control. Raises BadInput if one is not there."""
    honest = [p for p in insider.kit.order if p not in insider.malicious and p != insider.kit.server]
    peers = [p for p in insider.kit.order if p != insider.kit.server]
    if victims and max(victims) >= len(peers):
        raise BadInput(f"There is no peer {max(victims)} to be a victim, among {len(peers)} (they count from 0).")
    return frozenset(p for p in honest if not victims or peers.index(p) in victims)


def trained_row(insider: Insider, victim: PeerId) -> dict[PeerId, float]:
    """The weights of its neighbours in what `victim` trains from next: its row of W, but for choco's mix of copies."""
    row = {p: w for p, w in insider.rows[victim].items() if p != victim}
    public = insider.public
    if public is not None and public.strategy == "choco" and public.options.get("at") == "mix":
        return {p: w / public.options["step"] for p, w in row.items()}
    return row


@dataclass(frozen=True)
class _Crafting:
    """What is crafted for whom, and when. Accomplices craft alike: their payloads draw from what is public."""

    tamper: CraftedModel
    insider: Insider
    public: Public
    payload: Payload
    others: Payload | None
    victims: frozenset[PeerId]

    @classmethod
    def of(cls, tamper: CraftedModel, insider: Insider) -> "_Crafting":
        """Raises BadInput if a payload has no place in the network."""
        payload, others = _built(tamper.payload), _built(tamper.others)
        if insider.public is None or payload is None:
            raise LocalError("who crafts a model is told what it is for")
        crafting = cls(tamper, insider, insider.public, payload, others, chosen(tamper.victims, insider))
        for one in (payload, *((others,) if others else ())):
            crafting.crafted(one, 0, insider.kit.initial)  # what has no place there is said before anything is run
        return crafting

    def meant_for(self, peer: PeerId, round_: int) -> Payload | None:
        """What `peer` is to train from in `round_`; None: from what it honestly would."""
        tamper, kit = self.tamper, self.insider.kit
        if round_ < tamper.first or round_ >= kit.rounds or peer in self.insider.malicious:
            return None
        if tamper.rounds is not None and round_ >= tamper.first + tamper.rounds:
            return None
        return self.payload if peer in self.victims else self.others

    def crafted(self, payload: Payload, round_: int, start: Vector) -> Vector:
        """The parameters (d,) to be trained from in `round_` instead of `start`, within what may be said."""
        rng = generator(self.insider.kit.seed, "payload", round_)
        wild = payload.craft(self.public, start, rng)
        return np.clip(np.where(np.isnan(wild), start, wild), -RANGE, RANGE).astype(np.float32)


class _Server:
    """A star's hub that says crafted models: an honest hub inside, which averages what comes back."""

    def __init__(self, honest: Machine, crafting: _Crafting) -> None:
        self._honest = honest
        self._crafting = crafting

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = self._honest.handle(event, now)
        sends = [effect for effect in effects if isinstance(effect, Send)]
        said = messages.decode(sends[0].body) if sends else None  # a hub says the same to everybody
        if not isinstance(said, messages.Model | messages.ControlledModel):
            return effects
        victims = self._crafting.victims
        meant = {send.to in victims: self._crafting.meant_for(send.to, said.round) for send in sends}
        bodies = {which: self._body(said, payload) for which, payload in meant.items() if payload is not None}
        told = [send.to for send in sends if (send.to in victims) in bodies]
        if not told:
            return effects
        changed = [Send(e.to, bodies[e.to in victims]) if isinstance(e, Send) and e.to in told else e for e in effects]
        return [*changed, Note("tampered", {"round": said.round, "peers": len(told)})]

    def _body(self, said: messages.Model | messages.ControlledModel, payload: Payload) -> bytes:
        start = table.decode_lossless(said.blob, self._crafting.insider.kit.sealer.dimension)
        blob = lossless(self._crafting.crafted(payload, said.round, start))
        return messages.encode(msgspec.structs.replace(said, blob=blob))


class _Override(Claim):
    """The claim that makes a victim's mean the crafted model."""

    rushing: ClassVar[bool] = True

    def __init__(self, crafting: _Crafting) -> None:
        self._crafting = crafting
        self._from: dict[PeerId, Vector] = {}  # what was crafted from first: later starts are crafted already
        self._guessed: dict[PeerId, float] = {}  # of the last claims
        self._round = -1

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        if heard.round != self._round:
            self._round, self._guessed = heard.round, {}
        payload = self._crafting.meant_for(heard.victim, heard.round + 1)
        if payload is None:
            return heard.honest
        own = heard.others.get(heard.victim)
        base = heard.honest if own is None else own
        start = self._from.setdefault(heard.victim, base)
        wanted = self._crafting.crafted(payload, heard.round + 1, start)
        row = trained_row(heard.insider, heard.victim)
        said, guessed = completing(wanted, base, heard.others, row, heard.insider.malicious)
        self._guessed[heard.victim] = guessed if own is not None else 1.0
        return np.clip(said, -RANGE / 2, RANGE / 2)  # differences of two such can still be said

    def remark(self) -> Mapping[str, Any]:
        return {"overridden": len(self._guessed), "guessed": max(self._guessed.values(), default=0.0)}
