"""What pictures are like, whoever took them: penalties on candidates, each (P,) for pictures (P, B, C, H, W)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Consensus", "FeatureAnchor", "Prior", "Smooth", "SmoothSquared", "Statistics"]


class Prior(Protocol):
    """One penalty, already weighted; differentiable in the pictures."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Smooth:
    """`weight` times total variation: mean absolute difference of horizontal plus of vertical neighbours.

    With `doubled`, differences of opposite colours count too (channel differences, as in breaching's "double opponents"
    prior: edges of natural pictures lie in the same place in all channels).
    """

    weight: float
    doubled: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.doubled and x.shape[2] == 3:
            red, green, blue = x.unbind(2)
            x = torch.cat([x, torch.stack([red - green, red - blue, green - blue], dim=2)], dim=2)
        return self.weight * _steps(x, torch.abs)


@dataclass(frozen=True, slots=True)
class SmoothSquared:
    """`weight` times the mean squared difference of neighbours."""

    weight: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * _steps(x, torch.square)


def _steps(x: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    total = x.new_zeros(len(x))
    for axis in (3, 4):
        if x.shape[axis] > 1:
            total = total + size(x.diff(dim=axis)).flatten(1).mean(1)
    return total


@dataclass(frozen=True, slots=True, eq=False)
class FeatureAnchor:
    """`weight` times the mean squared distance, over the anchor's own, of the features h(x) that enter the last layer
    to `anchors` (B, F): its gradient gives them away, dW_c / db_c (Geiping et al., prop. 3.1; breaching's "modern").

    `features`: pictures (B, C, H, W) to (B, F). Rows of `anchors` that are not finite are not known, and do not count.
    """

    weight: float
    features: Callable[[Tensor], Tensor]
    anchors: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        known = torch.isfinite(self.anchors).all(dim=1)
        goal = self.anchors[known]
        scale = goal.square().mean().clamp_min(1e-30)
        return torch.stack([(self.features(one)[known] - goal).square().mean() for one in x]) * (self.weight / scale)


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """`weight` times the distance of a batch's statistics, in every batch normalisation, to the `goals` that leaked
    (Yin et al., CVPR 2021, "See through gradients", eq. 10); the first layer counts `first` times.

    `statistics`: pictures (B, C, H, W) to one (mean, variance) a layer.
    """

    weight: float
    statistics: Callable[[Tensor], list[tuple[Tensor, Tensor]]]
    goals: list[tuple[Tensor, Tensor]]
    first: float = 10.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([self._of(self.statistics(one)) for one in x]) * self.weight

    def _of(self, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        total = self.goals[0][0].new_zeros(())
        for number, (found, goal) in enumerate(zip(layers, self.goals, strict=True)):
            far = sum((a - b).norm() / b.norm().clamp_min(1e-6) for a, b in zip(found, goal, strict=True))
            total = total + (self.first if number == 0 else 1.0) * far
        return total


@dataclass(frozen=True, slots=True)
class Consensus:
    """`weight` times the mean squared distance of every candidate to the mean of all P (group consistency, Yin et al.,
    eq. 11, without registration of shifted ones)."""

    weight: float

    def __call__(self, x: Tensor) -> Tensor:
        middle = x.detach().mean(0, keepdim=True)
        return self.weight * (x - middle).square().flatten(1).mean(1)
