"""Behind HyperFL's hypernetwork: read the extractor and its gradient out of the message, then match them.

What peers share (Guo et al. 2025) is meant to have no direct link to the data, since embedding, extractor and
classifier stay private. But the bias of a head is its layer's gradient, and everything else that matching needs is a
quotient of parts of the message (`seen/hypernetwork.py`); classifier and label are not needed at all
(`matching/functional.py`). What is left is gradient inversion as of a whole model, but for the classifier's own
gradient.
"""

from dataclasses import dataclass

import torch

from veilmesh.attacks.inversion.hypernetworks import HyperSearch, Message, searched
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.functional import Functional
from veilmesh.attacks.seen.hypernetwork import read
from veilmesh.attacks.view import ATTACKS, Guess

__all__ = ["HyperInversion"]


@ATTACKS.register("hyperfl")
@dataclass(frozen=True, slots=True)
class HyperInversion(HyperSearch):
    """Gradient inversion of a shared hypernetwork, by what its update says of the network that it generated.

    A guess's `details` have the embedding that was read, and whether the gradient was whole. Behind several pictures,
    of a batch or of several local steps, which are taken for one, every picture's pull on the features is searched with
    it. Labels are not guessed.

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
        reading = read(message.net, message.phi, message.gradient, message.said)
        candidates = Functional(message.net, reading, message.count, shape)
        mask = None if bool(reading.known.all()) else reading.known
        details = {"embedding": reading.v.tolist(), "whole": reading.whole, "pulls": candidates.searched}
        distance = Cosine(torch.nan_to_num(reading.gradient), mask)
        return searched(message, candidates, distance, self, shape, candidates.searched, details)
