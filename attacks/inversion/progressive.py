"""Progressive layer matching: the first layer's gradient first, then one tensor more at a time.

The reconstruction experiment of the position paper on segmentation (arXiv 2601.04912, its authors' notebook): in stage
i the first i + 1 gradient tensors are matched by squared distance, the j-th of them with a weight of 15 - j, by Adam
with a step size of 0.015 - 0.001 i; pictures and masks are searched together. There are 15 stages, of 1201 steps each
there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Squared
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.recipe import Case, Labels, Recipe
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["Progressive"]

_STAGES = 15
_LATER = 1e3  # what a stage still to come adds to the loss: distances of different stages cannot be compared


@ATTACKS.register("progressive")
@dataclass(frozen=True, slots=True)
class Progressive:
    """Squared matching of ever more layers, the first ones weighted most; pictures and labels searched together.

    Args:
        iterations: steps of all 15 stages together; the authors take 18 015.
        tv: weight of the total variation.
        labels: "searched", "inferred", or "told", an easier setting.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 1500
    tv: Annotated[float, Field(ge=0)] = 1e-4
    labels: Labels = "searched"
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=1)] = 1
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""

        def smooth(case: Case) -> list[Prior]:
            return [Smooth(self.tv)] if self.tv else []

        recipe = Recipe.of(self, _staged, smooth, _Falling(self.iterations, 0.015, sign="plain"))
        return invert(view, recipe, rng)


@dataclass(frozen=True, slots=True)
class _Falling(Adam):
    """Adam whose step size falls by a fifteenth with every stage."""

    def _rate(self, step: int) -> float:
        return self.rate * (1 - _stage(step / self.iterations) / _STAGES)


@dataclass(frozen=True, slots=True, eq=False)
class _Staged:
    """Weighted squared differences of the tensors that the stage has come to, over the target's own.

    `tensor` (d,): the number of the tensor that each coordinate is of. `mask` (d,): coordinates with 0 do not count.
    """

    target: Tensor
    tensor: Tensor
    mask: Tensor | None = None

    def at(self, gradient: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """As `Distance.at`; what is to come yet counts as far away, so that a later stage is always the better one."""
        stage = _stage(share)
        weight = (_STAGES - self.tensor).clamp_min(0) * (self.tensor <= stage)
        weight = weight if self.mask is None else weight * self.mask
        values, pull = Squared(self.target, weight).at(gradient)
        return values + _LATER * (_STAGES - 1 - stage), pull


def _stage(share: float) -> int:
    """Which stage it is when so much of the way is done, from 0."""
    return min(_STAGES - 1, int(share * _STAGES))


def _staged(case: Case) -> _Staged:
    sizes = torch.tensor([p.numel() for p in case.network.parameters])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(case.network.device)
    return _Staged(case.gradient, tensor, case.mask())
