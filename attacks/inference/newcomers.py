"""Who a newcomer used to be: a peer that leaves and comes back under another key, found again by its updates.

Whatever is signed is not anonymous, so the question arises where a key is changed. As it is measured here: in the first
half of the rounds everybody goes by their names, and in the second half by none, as if all had left and come back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.inference.linkability import similarities
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.attacks.view import View
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["Linkability"]


@INFERENCES.register("linkability")
@dataclass(frozen=True, slots=True)
class Linkability:
    """Which peer a newcomer used to be, by the cosine of its updates with everybody's earlier ones.

    A simulated setting: the names of the second half of all rounds are hidden, and each single update there is linked
    to the updates of the first half.
    """

    infers: ClassVar[str] = "peers"

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`, (n,) for each update of the second half; looks at no candidate, and draws nothing.

        `victim` names the newcomer for the scorer alone: no score rests on it. Nothing where fewer than two peers were
        seen, or not all of them in two rounds.
        """
        rounds = _complete(view)
        half = len(rounds) // 2
        if not half or len(rounds[0][1]) < 2:
            return
        peers = sorted(rounds[0][1])
        known = {peer: np.stack([said[peer] for _, said in rounds[:half]]) for peer in peers}
        for round_, said in rounds[half:]:
            values = similarities(np.stack([said[peer] for peer in peers]), known)
            for peer, row in zip(peers, values, strict=True):
                yield Scores(peer, "local", round_, row, 0.0)


def _complete(view: View) -> list[tuple[int, dict[PeerId, Vector]]]:
    """The rounds in which everybody was seen who ever was, with the update (d,) of each."""
    rounds: dict[int, dict[PeerId, Vector]] = {}
    for one in observe_updates(view):
        if not one.among:
            rounds.setdefault(one.round, {})[one.victim] = one.update
    most = max(map(len, rounds.values()), default=0)
    return [(round_, said) for round_, said in sorted(rounds.items()) if len(said) == most]
