"""Pictures of peers that the adversary never talks to, from what its neighbours say over many rounds of gossip.

The linear system, which supposes that updates stay the same, is in `non_neighbour`, and any inversion takes what it
solves for. Where every peer trains on one picture, and the first layer is fully connected, `replay` supposes nothing:
peers are read one after another, and what has been read is played again, at any learning rate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from veilmesh.attacks.inversion.analytic import Analytic
from veilmesh.attacks.inversion.cosine import CosineInversion
from veilmesh.attacks.seen.knowledge import System
from veilmesh.attacks.seen.non_neighbour import heard_states, rounding_of, system_of
from veilmesh.attacks.seen.replay import Played, Replay
from veilmesh.attacks.seen.replica import Replica
from veilmesh.attacks.view import ATTACKS, Attack, Guess, View
from veilmesh.core import BadInput

__all__ = ["NonNeighbour"]


@ATTACKS.register("non-neighbour")
@dataclass(frozen=True, slots=True)
class NonNeighbour:
    """Solves what neighbours say over all rounds of gossip for updates of peers that are never heard, and inverts them.

    `by` replay reads and plays peers one by one, which needs one picture a peer, a step of plain SGD a round and a
    network that begins with a fully connected layer; elsewhere it does as analytic does. Neighbours are inverted too.

    Args:
        by: how: "replay", or the linear system and then the attack of that name.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        iterations: of cosine-inversion.
    """

    reconstructs: ClassVar[str] = "pictures"

    by: Literal["replay", "analytic", "cosine-inversion"] = "replay"
    targets: Annotated[int, Field(ge=1)] = 1
    iterations: Annotated[int, Field(ge=1)] = 400

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput as the inversion does."""
        if self.by == "replay" and (played := _played(view)) is not None:
            yield from played
            return
        inversion: Attack = Analytic(targets=self.targets, across=True)
        if self.by == "cosine-inversion":
            inversion = CosineInversion(iterations=self.iterations, targets=self.targets, across=True)
        yield from inversion.run(view, rng)


def _played(view: View) -> list[Guess] | None:
    """A guess for everybody that could be read; None where peers cannot be played again."""
    public, states = view.public, heard_states(view)
    system = system_of(public, view.vantage.controls, states)
    plain = public.optimizer == "sgd" and not public.guards and not public.private
    if system is None or not plain or public.batch != 1 or public.local_steps != 1:
        return None
    try:
        replica = Replica(public, len(system.peers))
    except BadInput:
        return None
    zero = public.initial.astype(np.float64)
    heard = {i: [x - zero for x in states[system.peers[i]]] for i in system.heard}
    found = Replay(system, heard, replica, rounding_of(public.initial)).run()
    return sorted(_guesses(system, found), key=lambda guess: guess.victim)


def _guesses(system: System, found: Mapping[int, Played]) -> Iterator[Guess]:
    for peer, one in found.items():
        if peer in system.controlled:
            continue
        labels = np.array([one.reading.label], np.int64)
        details = {"hops": system.hops[peer], "error": one.error, "exact": peer in system.told}
        yield Guess(system.peers[peer], 0, one.reading.picture[None], labels, one.reading.misfit, details)
