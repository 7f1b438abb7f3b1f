"""What a guard of split mode promises: a defence at a cut, run inside the stage that it protects.

A guard is a configuration; `start` makes the thing that works, which may learn and remember. What that thing has a
method for, it is asked: `Outgoing` changes the activations that leave a head, `Penalty` adds to what the head
minimises, `Gradient` changes the gradients that leave the label owner, `Labelling` changes the labels that the head
gives out, and `Inspecting` looks at the gradients that come back. Each of them runs where activations are computed, so
these are torch tensors. Randomness comes from the generator that `start` is given, and from nowhere else.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from veilmesh.core import Registry

__all__ = [
    "SPLIT_GUARDS", "About", "Alarm", "Gradient", "Inspecting", "Labelling", "Outgoing", "Penalty", "SplitGuard",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class About:
    """What a guard knows when it starts."""

    picture: tuple[int, ...]  # the shape of one example, (C, H, W), values in [0, 1]
    activation: tuple[int, ...]  # the shape of one example's activations at the cut, without the batch
    classes: int
    batch: int
    rng: np.random.Generator


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is wrong with what came back; `certain`: enough to stop for."""

    reason: str
    score: float  # the guard's own figure, higher is worse
    certain: bool


@runtime_checkable
class Outgoing(Protocol):
    """A defence on activations."""

    def outgoing(self, z: Tensor, x: Tensor) -> Tensor:
        """What leaves instead of the activations `z` (B, ...) of pictures `x` (B, C, H, W); differentiable in `z`."""
        ...


@runtime_checkable
class Penalty(Protocol):
    """A defence in the head's own loss."""

    def penalty(self, z: Tensor, x: Tensor) -> Tensor:
        """A scalar, added to the loss that the head's parameters are trained by; `z` is what leaves."""
        ...


@runtime_checkable
class Gradient(Protocol):
    """A defence of labels, at their owner."""

    def gradient(self, g: Tensor, labels: Tensor) -> Tensor:
        """What leaves instead of the gradient `g` (B, ...) of the loss with respect to the activations of examples with
        `labels` (B,)."""
        ...


@runtime_checkable
class Labelling(Protocol):
    """A head that does not always say the true labels."""

    def labels(self, labels: Tensor, step: int) -> Tensor:
        """The labels (B,) given out at `step` instead of `labels` (B,). Nothing is learned from a step whose labels
        were changed."""
        ...


@runtime_checkable
class Inspecting(Protocol):
    """A head that looks at what comes back."""

    def inspect(self, g: Tensor, labels: Tensor, given: Tensor, step: int) -> Alarm | None:
        """What is wrong with the gradient `g` (B, ...) that came back at `step` for examples of true `labels` (B,),
        where `given` (B,) were given out. Asked at every step; None: nothing that was seen so far."""
        ...


class SplitGuard(Protocol):
    """A guard's configuration."""

    at: ClassVar[Literal["head", "labels"]]  # who needs it: a head, or whoever owns the labels

    def start(self, about: About) -> object:
        """The guard at work, for one run of one peer."""
        ...


SPLIT_GUARDS: Registry[SplitGuard] = Registry("split guard", "veilmesh.split.guards")
