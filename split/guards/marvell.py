"""Noise on gradients that hides which of two classes an example is of, the best for its power (Marvell)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from veilmesh.core import BadInput
from veilmesh.split.guards.base import SPLIT_GUARDS, About, Gradient
from veilmesh.split.guards.draws import normal

__all__ = ["Classes", "Marvell", "Variances", "best_variances", "largest_auc", "sum_kl"]

Floats = NDArray[np.float64]

_LOUDER = 1.5
"""By how much the power grows while it does not do, as in the authors' code."""


@SPLIT_GUARDS.register("marvell")
@dataclass(frozen=True)
class Marvell:
    """Add Gaussian noise to each class' gradients, shaped so that the two classes' distributions become most alike.

    Li et al. 2022, "Label leakage and protection in two-party split learning" (arXiv 2102.08504), section 4: least sum
    of the two Kullback-Leibler divergences (`sum_kl`) for a noise whose expected squared norm is `power` times the
    squared distance of the classes' means. `auc`: grow the power until no attack's area under the ROC curve can be
    larger (`largest_auc`, their theorem 1), if gradients of a class are Gaussian of one variance in every direction,
    with the batch's means and variances. They are not quite, and with few examples in a batch far from it; so measure.

    Of every batch its mean stays in expectation what it was. Two classes only: their analysis has no third. A batch of
    one class alone is treated by what the last with both was; before any such, nothing leaves (zeros).
    """

    at: ClassVar[Literal["head", "labels"]] = "labels"

    power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    auc: Annotated[float, Field(gt=0.5, lt=1)] | None = None

    def start(self, about: About) -> Gradient:
        if about.classes != 2:
            raise BadInput(
                f"Guard 'marvell' protects two classes, and this task has {about.classes}; take 'gradient-noise'."
            )
        return _AtWork(self, about.rng)

    def variances(self, classes: "Classes") -> "Variances":
        """The noise for gradients such as `classes` says."""
        power = self.power * classes.apart
        noise = best_variances(classes, power)
        if self.auc is not None and classes.apart > 0:
            while largest_auc(sum_kl(classes, noise)) > self.auc and math.isfinite(power):
                power *= _LOUDER
                noise = best_variances(classes, power)
        return noise


class Classes(NamedTuple):
    """What matters of the gradients of class 0 and 1 in a batch."""

    spread: tuple[float, float]  # variance of a coordinate within each class, the mean over coordinates
    apart: float  # squared L2 distance of the classes' means
    size: int  # coordinates
    share: float  # of class 1, in (0, 1)


class Variances(NamedTuple):
    """Of the noise of class 0 and 1: along the line between the classes' means, and in every direction across it."""

    along: tuple[float, float] = (0.0, 0.0)
    across: tuple[float, float] = (0.0, 0.0)


def largest_auc(divergence: float) -> float:
    """Of any attack on single gradients, where the two classes' divergence (`sum_kl`) is so (theorem 1)."""
    if divergence >= 4:
        return 1.0
    return 0.5 + math.sqrt(max(0.0, divergence)) / 2 - divergence / 8


def sum_kl(classes: Classes, noise: Variances) -> float:
    """KL(0, 1) + KL(1, 0) of two Gaussians with these means, variances and noise; infinite where one has none."""
    along = _along(classes, np.asarray(noise.along[0]), np.asarray(noise.along[1]))
    return float(along + _across(classes, np.asarray(noise.across[0]), np.asarray(noise.across[1])))


def best_variances(classes: Classes, power: float) -> Variances:
    """The noise of least `sum_kl` whose mean expected squared norm is `power`, and not smaller along than across.

    Across, only the class that varies less gets noise; how much is searched for, on ever finer grids. For each, what is
    left for the noise along has a closed form (their section 4 and appendix; the authors' code alternates instead).
    """
    quiet = 0 if classes.spread[0] <= classes.spread[1] else 1
    share = classes.share if quiet == 1 else 1 - classes.share
    most = min(abs(classes.spread[0] - classes.spread[1]), power / (share * classes.size))
    low, high = 0.0, most if classes.size > 1 else 0.0
    for _ in range(6):
        grid = np.linspace(low, high, 65)
        along = _best_along(classes, power, quiet, grid)
        none = np.zeros_like(grid)
        across = (grid, none) if quiet == 0 else (none, grid)
        value = _along(classes, *along) + _across(classes, *across)
        at = int(np.argmin(value))
        low, high = float(grid[max(0, at - 1)]), float(grid[min(64, at + 1)])
    return Variances(
        (float(along[0][at]), float(along[1][at])),
        (float(across[0][at]), float(across[1][at])),
    )


def _best_along(classes: Classes, power: float, quiet: int, across: Floats) -> tuple[Floats, Floats]:
    """(G,), (G,): the noise along for each class, for each noise `across` (G,) of the `quiet` class.

    With X and Y what the classes' variances along become, (X + g) / Y + (Y + g) / X is least, on the line that the
    power leaves, at Y = ratio X; and larger the further from there, so limits are kept by going to them.
    """
    p, (u, v), g = classes.share, classes.spread, classes.apart
    share = p if quiet == 1 else 1 - p
    left = power - share * (classes.size - 1) * across
    total = left + p * v + (1 - p) * u
    ratio = np.sqrt((total + (1 - p) * g) / np.maximum(total + p * g, 1e-300))
    first = total / (1 - p + p * ratio) - u
    floor = across if quiet == 0 else np.zeros_like(across)  # along is never less than across
    ceiling = (left - p * (across if quiet == 1 else 0)) / (1 - p)
    first = np.clip(first, floor, np.maximum(ceiling, floor))
    return first, np.maximum((left - (1 - p) * first) / p, 0.0)


def _along(classes: Classes, first: Floats, second: Floats) -> Floats:
    x, y, g = first + classes.spread[0], second + classes.spread[1], classes.apart
    return 0.5 * (_ratio(x + g, y) + _ratio(y + g, x)) - 1


def _across(classes: Classes, first: Floats, second: Floats) -> Floats:
    x, y = first + classes.spread[0], second + classes.spread[1]
    return (classes.size - 1) * (0.5 * (_ratio(x, y) + _ratio(y, x)) - 1)


def _ratio(a: Floats, b: Floats) -> Floats:
    """a / b; where both are nothing, two classes that do not vary look alike."""
    ratio = np.divide(a, b, out=np.full(np.shape(a), np.inf), where=b > 0)
    return np.where((a <= 0) & (b <= 0), 1.0, ratio)


class _AtWork:
    def __init__(self, options: Marvell, rng: np.random.Generator) -> None:
        self._options, self._rng = options, rng
        self._last: tuple[Variances, Tensor] | None = None  # and the direction between the means, (d,)

    def gradient(self, g: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim != 1:
            raise BadInput("Guard 'marvell' needs one class a picture, and here every pixel has one; leave it out.")
        flat, second = g.flatten(1), labels == 1
        if bool(second.any()) and not bool(second.all()):
            self._last = self._measured(flat, second)
        if self._last is None:
            return g * 0
        noise, line = self._last
        return (flat + self._noise(flat, second, noise, line)).reshape(g.shape)

    def _measured(self, flat: Tensor, second: Tensor) -> tuple[Variances, Tensor]:
        parts = [flat[~second].double(), flat[second].double()]
        means = [part.mean(dim=0) for part in parts]
        spread = [float((part - mean).square().mean()) for part, mean in zip(parts, means, strict=True)]
        line = means[1] - means[0]
        apart = float(line.square().sum())
        share = float(second.double().mean())
        noise = self._options.variances(Classes((spread[0], spread[1]), apart, flat.shape[1], share))
        return noise, (line / max(math.sqrt(apart), 1e-300)).to(flat)

    def _noise(self, flat: Tensor, second: Tensor, noise: Variances, line: Tensor) -> Tensor:
        across = flat.new_tensor(noise.across)[second.long()][:, None]
        along = flat.new_tensor(noise.along)[second.long()][:, None]
        everywhere = across.sqrt() * normal(self._rng, flat)
        return everywhere + (along - across).clamp_min(0).sqrt() * normal(self._rng, across) * line
