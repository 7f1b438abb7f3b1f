"""A trap for hijackers: some batches go out with false labels, and an honest server must mind (SplitGuard)."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from veilmesh.core import BadInput
from veilmesh.split.guards.base import SPLIT_GUARDS, About, Alarm, Inspecting

__all__ = ["FalseLabels"]


@SPLIT_GUARDS.register("splitguard")
@dataclass(frozen=True)
class FalseLabels:
    """Send batches with false labels now and then, and sound an alarm where gradients are as always.

    Erdogan, Kupcu and Cicek, WPES 2022, "SplitGuard: detecting and mitigating training-hijacking attacks in split
    learning" (arXiv 2108.09052), section 4. From step `begin` on, a batch has with probability `probability` a `share`
    of its labels replaced by other ones. With F, R1 and R2 the gradients of false batches and of two random halves of
    the others, a(X, Y) the angle between their means and d(X, Y) the difference of their mean norms, the score is

        (1 / (1 + exp(-sharpness (a(F, R) d(F, R) - a(R1, R2) d(R1, R2)) / (d(F, R) + d(R1, R2)))))^power

    with R their union; near 1 where false labels mattered, and power 2 near 0.25 where they did not. Probability, share
    and the figures of the squashing are those of the published code. Below `threshold` once there were `least` false
    batches is an alarm, which carries 1 - score; it is `certain` where the mean of the last `patience` scores is below
    too (their voting policy is a majority of the last).

    Their gradients are those of the head's parameters. Here they are those of the activations, added up per true class:
    the same thing, if pictures of a class are alike. A server that guesses which labels are false (SplitSpy, Fu et al.
    2023) is not caught.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.1
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    begin: Annotated[int, Field(ge=0)] = 20
    sharpness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    least: Annotated[int, Field(ge=1)] = 5
    patience: Annotated[int, Field(ge=1)] = 5

    def start(self, about: About) -> Inspecting:
        if about.classes < 2:
            raise BadInput("Guard 'splitguard' needs a second class to lie with, and this task has one; leave it out.")
        return _AtWork(self, about)


class _Gathered:
    """The sum of batches' gradients (classes, d), and of their norms."""

    def __init__(self, classes: int, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(classes, size, dtype=torch.float64)
        self._norms = 0.0

    def add(self, g: Tensor) -> None:
        self._sum += g
        self._norms += float(g.norm())
        self.count += 1

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def norm(self) -> float:
        return self._norms / self.count


class _AtWork:
    def __init__(self, options: FalseLabels, about: About) -> None:
        self._options, self._classes, self._rng = options, about.classes, about.rng
        self._size = math.prod(about.activation)
        self._false, *self._halves = (_Gathered(about.classes, self._size) for _ in range(3))
        self._scores: deque[float] = deque(maxlen=options.patience)
        self._decided: tuple[int, bool] = (-1, False)  # at which step, whether to lie

    def labels(self, labels: Tensor, step: int) -> Tensor:
        if labels.ndim != 1:
            raise BadInput("Guard 'splitguard' needs one class a picture, and here every pixel has one; leave it out.")
        if not self._lies(step):
            return labels
        count = max(1, round(self._options.share * len(labels)))
        shift = torch.zeros_like(labels)
        chosen = torch.from_numpy(self._rng.permutation(len(labels))[:count]).to(labels.device)
        shift[chosen] = torch.from_numpy(self._rng.integers(1, self._classes, count)).to(labels)
        return (labels + shift) % self._classes

    def _lies(self, step: int) -> bool:
        """One decision a step, for all of its micro-batches: nothing is learned from a step that has lies in it."""
        if self._decided[0] != step:
            lies = step >= self._options.begin and self._rng.random() < self._options.probability
            self._decided = step, bool(lies)
        return self._decided[1]

    def inspect(self, g: Tensor, labels: Tensor, given: Tensor, step: int) -> Alarm | None:
        if step < self._options.begin:
            return None
        gathered = torch.zeros(self._classes, self._size, dtype=torch.float64)
        gathered.index_add_(0, labels.cpu(), g.detach().flatten(1).double().cpu())
        if bool((labels == given).all()):
            self._halves[int(self._rng.integers(2))].add(gathered)
            return None
        self._false.add(gathered)
        if self._false.count < self._options.least or not all(half.count for half in self._halves):
            return None
        return self._judge()

    def _judge(self) -> Alarm | None:
        score = self._score()
        self._scores.append(score)
        if score >= self._options.threshold:
            return None
        kept = list(self._scores)
        certain = len(kept) == self._options.patience and sum(kept) / len(kept) < self._options.threshold
        return Alarm(f"gradients do not mind false labels (score {score:.2f})", 1 - score, certain)

    def _score(self) -> float:
        first, second = self._halves
        true, norm = (first.mean + second.mean) / 2, (first.norm + second.norm) / 2
        told, usual = abs(self._false.norm - norm), abs(first.norm - second.norm)
        both = told + usual
        angles = _angle(self._false.mean, true) * told - _angle(first.mean, second.mean) * usual
        raw = angles / both if both > 0 else 0.0
        return float((1 / (1 + math.exp(-self._options.sharpness * raw))) ** self._options.power)


def _angle(a: Tensor, b: Tensor) -> float:
    """In radians, 0 to pi; 0 where one of them is 0."""
    lengths = float(a.norm() * b.norm())
    return math.acos(max(-1.0, min(1.0, float((a * b).sum()) / lengths))) if lengths > 0 else 0.0
