"""See through gradients: searches that hold each other together, and statistics that batch normalisation leaked.

Yin et al., CVPR 2021 (GradInversion): Euclidean matching of gradients, total variation, a norm of the picture, the
distance of batch statistics to known ones, and G searches from other starts that are pulled to their common mean. The
statistics here are those of the very batch, for peers exchange running statistics like parameters, and the update says
where they went. Not done: the paper's registration of shifted pictures before the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.anchors import leaked_statistics
from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Squared
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import Consensus, Prior, Smooth, Statistics
from veilmesh.attacks.matching.recipe import Case, Labels, Recipe
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["GradInversion"]


@dataclass(frozen=True, slots=True)
class _Faint:
    """`weight` times the mean square of a picture's distance to gray."""

    weight: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * (x - 0.5).square().flatten(1).mean(1)


@ATTACKS.register("grad-inversion")
@dataclass(frozen=True, slots=True)
class GradInversion:
    """Gradient inversion with batch statistics and group consistency (GradInversion).

    Args:
        iterations: steps; the paper takes 20,000.
        tv, norm, statistics, group: weights of total variation, of the picture's norm, of batch statistics, and of the
            pull of the searches to their mean.
        langevin: noise on every step.
        rate: first step size, in units of the picture's range.
        seeds: searches that run together; the one with the lowest loss of its own is kept.
        labels: "inferred", "searched" together with the pictures, or "told", an easier setting.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 1000
    tv: Annotated[float, Field(ge=0)] = 1e-3
    norm: Annotated[float, Field(ge=0)] = 1e-4
    statistics: Annotated[float, Field(ge=0)] = 0.1
    group: Annotated[float, Field(ge=0)] = 0.01
    langevin: Annotated[float, Field(ge=0)] = 1e-3
    rate: Annotated[float, Field(gt=0)] = 0.05
    seeds: Annotated[int, Field(ge=1)] = 4
    labels: Labels = "inferred"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""
        rate, noise = self.rate, self.langevin
        descent = Adam(self.iterations, rate, sign="plain", schedule="cosine", warmup=50, langevin=noise)
        recipe = Recipe.of(self, lambda case: Squared(case.gradient, case.mask()), self._priors, descent)
        return invert(view, replace(recipe, restarts=self.seeds), rng)

    def _priors(self, case: Case) -> list[Prior]:
        priors: list[Prior] = [Smooth(self.tv), _Faint(self.norm)]
        if self.group and self.seeds > 1:
            priors.append(Consensus(self.group))
        if self.statistics and (goals := leaked_statistics(case)):
            priors.append(Statistics(self.statistics, case.network.statistics, goals))
        return priors
