"""For guards that learn while they work: small networks of their own, and gradients that come back later."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Awaited", "Perceptron", "descend"]

T = TypeVar("T")


class Perceptron:
    """Two layers with a ReLU between; `parameters` are leaves that require gradients.

    Their first values are of the guard's own generator: torch would draw them from the whole process' one.
    """

    def __init__(self, sizes: tuple[int, int, int], rng: np.random.Generator) -> None:
        inside, hidden, outside = sizes
        self.parameters: Sequence[Tensor] = (*_layer(inside, hidden, rng), *_layer(hidden, outside, rng))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, outside) of `x` (B, inside)."""
        first, first_bias, second, second_bias = (p.to(x.device) for p in self.parameters)
        return functional.linear(functional.linear(x, first, first_bias).relu(), second, second_bias)


class Awaited(Generic[T]):
    """What was said, until the task's gradient with respect to it is known; that comes in any order, or never."""

    def __init__(self, most: int = 64) -> None:
        self._waiting: deque[tuple[T, list[Tensor]]] = deque(maxlen=most)

    def follow(self, out: Tensor, what: T) -> None:
        """Remember `what` until a gradient of `out` passes; of more than there is room for, the oldest is forgotten."""
        if not out.requires_grad:
            return
        passed: list[Tensor] = []
        out.register_hook(lambda g: passed.append(g.detach().clone()))  # type: ignore[no-untyped-call]  # torch's stub
        self._waiting.append((what, passed))

    def known(self) -> Iterator[tuple[T, Tensor]]:
        """Everything whose gradient has passed since it was last asked, with that gradient."""
        for entry in list(self._waiting):
            what, passed = entry
            if passed:
                self._waiting = deque((one for one in self._waiting if one is not entry), self._waiting.maxlen)
                yield what, passed[0]


def descend(loss: Tensor, parameters: Sequence[Tensor], step: torch.optim.Optimizer) -> None:
    """One step of these parameters alone, whatever else `loss` depends on."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters)), strict=True):
        parameter.grad = gradient
    step.step()


def _layer(inside: int, outside: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias, uniform within 1 / sqrt(inside), as torch's own layers begin."""
    most = inside**-0.5
    weight = rng.uniform(-most, most, (outside, inside)).astype(np.float32)
    return torch.from_numpy(weight).requires_grad_(), torch.zeros(outside).requires_grad_()
