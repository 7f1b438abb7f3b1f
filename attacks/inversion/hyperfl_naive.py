"""Inverting Gradients through a shared hypernetwork, with everything private guessed: what HyperFL was measured by.

The authors (Guo et al. 2025, table 3) let an attacker match the hypernetwork's gradient without knowing embedding and
classifier. Drawn at random they make an extractor that has nothing of the victim's, and no picture has the gradient
that was said. It is the floor that the attack `hyperfl` is held against, and no measure of what the message gives away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.inversion.hypernetworks import NAME, Message, messages, searched
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.functional import Guessed
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import seed_number
from veilmesh.tasks.models.hypernetwork import own_parts

__all__ = ["NaiveHyperInversion"]


@ATTACKS.register("hyperfl-naive")
@dataclass(frozen=True, slots=True)
class NaiveHyperInversion:
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

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = (NAME,)  # what it reads
    reads_models: ClassVar[bool] = False

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-4
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`. Raises BadInput where no hypernetwork is shared."""
        seed = int(rng.integers(1 << 62))
        for message in messages(view, self, seed):
            yield self._guess(message, view.public.shape)

    def _guess(self, message: Message, shape: tuple[int, int, int]) -> Guess:
        v, psi = own_parts(message.net, seed_number(message.seed, "guessed"))
        candidates = Guessed(message.net, message.phi, v, psi)
        return searched(message, candidates, Cosine(message.gradient, message.said), self, shape)
