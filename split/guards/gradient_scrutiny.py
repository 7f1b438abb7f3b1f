"""A look at the gradients that come back: do they know of the labels? (Gradients Scrutinizer)"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.core import BadInput
from veilmesh.split.guards.base import SPLIT_GUARDS, About, Alarm, Inspecting

__all__ = ["GradientScrutiny", "Similarity", "similarity"]


class Similarity(NamedTuple):
    """Of pairs of examples of one batch: (1 + cosine of their gradients) / 2, in [0, 1]."""

    same: float  # mean over pairs of one class
    other: float  # mean over pairs of two classes
    same_spread: float  # standard deviations of the same
    other_spread: float


@SPLIT_GUARDS.register("gradient-scrutiny")
@dataclass(frozen=True)
class GradientScrutiny:
    """Sound an alarm where gradients of one class are no more alike than those of different classes.

    Fu et al., NDSS 2023, "Focusing on Pinocchio's nose: a gradients scrutinizer to thwart split-learning hijacking
    attacks using intrinsic attributes", section VI; the formula and its figures (7, e^-2, 0.4, 1/e, 0.7, 5, every 50
    steps) as their published code has them. Every `every` steps three things are measured: how far the mean similarity
    within classes is above that between classes, how much mean plus and minus one standard deviation of the two
    overlap, and how well a parabola over the steps so far fits both (the training of one task is smooth). The score
    joins them, near 1 for honest training and near 0 for a feature-space hijacking; below `threshold` is an alarm. What
    an `Alarm` carries is 1 - score; it is `certain` after `patience` alarms in a row.

    Two things are other than theirs. Gap and overlap are means over the last `every` steps, not those of one: batches
    are small here. And their threshold is 0.5: on digits, honest training falls below it with small batches, and once
    it has learned its pictures by heart (0.2 to 0.3), where hijacking stays below 0.06. Steps further back than
    `window` are forgotten.

    It looks for no other attack: a server that trains the task, and something else beside it, passes; an honest one
    that hides the labels in its gradients (`marvell`, `gradient-noise`) may not.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    every: Annotated[int, Field(ge=3)] = 50
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.15
    patience: Annotated[int, Field(ge=1)] = 2
    window: Annotated[int, Field(ge=10)] = 4000

    def start(self, about: About) -> Inspecting:
        return _AtWork(self)


class _AtWork:
    def __init__(self, options: GradientScrutiny) -> None:
        self._options = options
        self._seen: deque[Similarity] = deque(maxlen=options.window)
        self._looked = 0
        self._low = 0

    def inspect(self, g: Tensor, labels: Tensor, given: Tensor, step: int) -> Alarm | None:
        found = similarity(g, given)
        if found is None:
            return None
        self._seen.append(found)
        self._looked += 1
        if self._looked % self._options.every:
            return None
        return self._judge()

    def _judge(self) -> Alarm | None:
        every = np.array(self._seen, dtype=np.float64)
        last = every[-self._options.every :].mean(axis=0)
        error = np.mean([_misfit(every[:, 0]), _misfit(every[:, 1])])
        score = _score(Similarity(*map(float, last)), float(error))
        self._low = self._low + 1 if score < self._options.threshold else 0
        if not self._low:
            return None
        why = f"gradients within a class are {last[0]:.2f} alike, between classes {last[1]:.2f} (score {score:.2f})"
        return Alarm(why, 1 - score, self._low >= self._options.patience)


def similarity(g: Tensor, labels: Tensor) -> Similarity | None:
    """Of the gradients `g` (B, ...) of examples of `labels` (B,); None where a batch has no pair of either kind.

    Examples without a gradient are left out. Raises BadInput where every pixel has a label.
    """
    if labels.ndim != 1:
        raise BadInput(
            "Guard 'gradient-scrutiny' needs one class a picture, and here every pixel has one; leave it out."
        )
    flat = g.detach().flatten(1).double()
    norms = flat.norm(dim=1)
    there = norms > 0
    unit, labels = flat[there] / norms[there, None], labels[there]
    first, second = torch.triu_indices(len(unit), len(unit), offset=1).unbind()
    alike = ((1 + unit @ unit.T) / 2)[first, second]
    same = labels[first] == labels[second]
    if not bool(same.any()) or bool(same.all()):
        return None
    inside, across = alike[same], alike[~same]
    spreads = [float(part.std(correction=0)) for part in (inside, across)]
    return Similarity(float(inside.mean()), float(across.mean()), spreads[0], spreads[1])


def _misfit(values: np.ndarray) -> float:
    """Root mean square of what a parabola over time leaves of `values` (T,)."""
    time = np.linspace(-1, 1, len(values))
    return float(np.sqrt(np.mean((values - np.polyval(np.polyfit(time, values, 2), time)) ** 2)))


def _score(last: Similarity, error: float) -> float:
    gap = (last.same - last.other) / (last.same + last.other)
    signed = math.copysign(abs(gap) ** 0.4, gap)
    smooth = -math.log(7 * error + math.exp(-2))
    apart = -math.log(_overlap(last) + math.exp(-1))
    return 1 / (1 + math.exp(-5 * (signed * smooth * apart - 0.7)))


def _overlap(last: Similarity) -> float:
    """Of the intervals mean plus and minus a standard deviation: what they share over what they cover; 0 to 1."""
    inside = (last.same - last.same_spread, last.same + last.same_spread)
    across = (last.other - last.other_spread, last.other + last.other_spread)
    shared = min(inside[1], across[1]) - max(inside[0], across[0])
    covered = max(inside[1], across[1]) - min(inside[0], across[0])
    return max(0.0, shared) / covered if covered > 0 else 1.0
