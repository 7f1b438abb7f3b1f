"""Membership by what a round's training changed: a victim grows surer of what it trains on, and nobody else does.

Where training began is the neighbours' doing as much as the victim's, so the confidence there says how hard a picture
is for a model that this round's training has not touched: a reference model, for nothing. To first order the gain is
the inner product of the update with the picture's own gradient (Nasr et al. 2019, arXiv 1812.00910; Li et al. 2021,
arXiv 2111.00430). What others gain on the same picture, who were not trained on it, is taken for a Gaussian, and the
score is how far the victim's gain lies above it: Zhu et al. 2025, "FedMIA" (arXiv 2402.06289), the principle of all for
one. Needs no public pictures, and adds up over rounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.inference.signals import margins
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["UpdateGain"]


@INFERENCES.register("update-gain")
@dataclass(frozen=True, slots=True)
class UpdateGain:
    """How much surer of a picture training made its victim than it made others, over rounds (FedMIA, Zhu et al. 2025).

    Args:
        rounds: how many of the latest rounds. A round's batches may not hold every member, so more are better.
        others: compare with what the other peers that are seen gain; where there are fewer than two of them, with none.
    """

    infers: ClassVar[str] = "members"

    rounds: Annotated[int, Field(ge=1)] = 8
    others: bool = True

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`. Draws nothing from `rng`."""
        network = Network(view.public)
        seen: dict[int, dict[PeerId, Observed]] = {}
        for one in observe_updates(view):
            if not one.among:
                seen.setdefault(one.round, {})[one.victim] = one
        for victim, known in sorted(candidates.items()):
            rounds = [at for at in sorted(seen) if victim in seen[at]][-self.rounds :]
            if rounds and len(known.labels):
                values = np.mean([self._score(network, seen[at], victim, known) for at in rounds], axis=0)
                yield Scores(victim, "local", rounds[-1], values, float(np.median(values)))

    def _score(
        self, network: Network, seen: Mapping[PeerId, Observed], victim: PeerId, known: Candidates
    ) -> NDArray[np.float64]:
        own: NDArray[np.float64] = _gains(network, [seen[victim]], known)[0]
        rest = [one for peer, one in sorted(seen.items()) if peer != victim]
        if not self.others or len(rest) < 2:
            return own
        gains = _gains(network, rest, known)
        spread = np.sqrt(gains.var(axis=0, ddof=1).mean())  # one for all pictures: the others are few
        score: NDArray[np.float64] = (own - gains.mean(axis=0)) / (spread + 1e-9)
        return score


def _gains(network: Network, observed: Sequence[Observed], known: Candidates) -> NDArray[np.float64]:
    """By how much each update raised the logit-scaled confidence in each picture: (M, N)."""
    before = margins(network, [one.start for one in observed], known)
    return margins(network, [one.start + one.update for one in observed], known) - before
