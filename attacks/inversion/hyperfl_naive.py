"""Inverting Gradients through a shared hypernetwork, with everything private guessed: what HyperFL was measured by.

The authors (Guo et al. 2025, table 3) let an attacker match the hypernetwork's gradient without knowing embedding and
classifier. Drawn at random they make an extractor that has nothing of the victim's, and no picture has the gradient
that was said. It is the floor that the attack `hyperfl` is held against, and no measure of what the message gives away.
"""

from dataclasses import dataclass

from veilmesh.attacks.inversion.hypernetworks import HyperSearch, Message, searched
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.functional import Guessed
from veilmesh.attacks.view import ATTACKS, Guess
from veilmesh.core import seed_number
from veilmesh.tasks.models.hypernetwork import own_parts

__all__ = ["NaiveHyperInversion"]


@ATTACKS.register("hyperfl-naive")
@dataclass(frozen=True, slots=True)
class NaiveHyperInversion(HyperSearch):
    """Cosine matching of a shared hypernetwork's gradient with embedding and classifier drawn at random.

    Of a classifier whose rows are drawn alike no label is better than another, so labels are not tried, and not
    guessed.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        start: "noise", "grey", or random tiles that are repeated, "pattern-4" or "pattern-16".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
    """

    def guess(self, message: Message, shape: tuple[int, int, int]) -> Guess:
        v, psi = own_parts(message.net, seed_number(message.seed, "guessed"))
        candidates = Guessed(message.net, message.phi, v, psi)
        return searched(message, candidates, Cosine(message.gradient, message.said), self, shape)
