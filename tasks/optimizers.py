"""The local optimizers, on one flat vector: what a gradient adds to a round's update.

Both keep their buffers between rounds and begin each round afresh, and both add to the update itself instead of to the
parameters: `(p - lr g) - p` would lose g's low bits.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from veilmesh.tasks.work import Settings

__all__ = ["Adam", "Optimizer", "Sgd", "optimizer"]

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Optimizer(Protocol):
    """One round at a time. `gradient` (d,): the buffer that the next gradient is to be written to."""

    gradient: Tensor

    def begin(self) -> Tensor:
        """Forget the round before. A fresh tensor (d,), for `step` to write the round's update to."""
        ...

    def step(self, update: Tensor) -> None:
        """Add to `update` (d,), at first zero, what the gradient comes to."""
        ...

    def memory(self) -> list[Tensor]:
        """What it remembers between the steps of a round, float32."""
        ...

    def go_on(self) -> None:
        """`memory` was written to: the next step goes on from it, in the middle of a round."""
        ...


class Sgd:
    """Plain SGD, with heavy-ball momentum: v <- momentum v + g; update <- update - rate v."""

    def __init__(self, dimension: int, rate: float, momentum: float) -> None:
        self._rate, self._momentum = rate, momentum
        self.gradient, self._velocity, self._change = (torch.empty(dimension) for _ in range(3))
        self._first = True

    def begin(self) -> Tensor:
        self._first = True
        return torch.empty_like(self._change)

    def step(self, update: Tensor) -> None:
        if self._first:  # nothing is added to a zero, which would make a positive zero of a negative one
            self._first = False
            self.gradient, self._velocity = self._velocity, self.gradient
            torch.mul(self._velocity, -self._rate, out=update)
            return
        if self._momentum:
            self._velocity.mul_(self._momentum).add_(self.gradient)
        else:
            torch.add(self.gradient, self._velocity, alpha=0.0, out=self._velocity)  # the same bits in one pass
        torch.mul(self._velocity, -self._rate, out=self._change)
        update.add_(self._change)

    def memory(self) -> list[Tensor]:
        return [self._velocity]

    def go_on(self) -> None:
        self._first = False


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) as `torch.optim.Adam` computes it, through torch's functional form."""

    def __init__(self, dimension: int, rate: float) -> None:
        self._rate = rate
        self.gradient, self._mean, self._square = (torch.empty(dimension) for _ in range(3))
        self._steps = torch.zeros(())

    def begin(self) -> Tensor:
        for state in (self._mean, self._square, self._steps):
            state.zero_()
        return torch.zeros_like(self._mean)

    def step(self, update: Tensor) -> None:
        # Without weight decay a step does not depend on where it is made, so the update may stand for the parameters.
        # The class torch.optim.Adam would do the same, after loading torch's compiler in every worker.
        adam(
            [update], [self.gradient], [self._mean], [self._square], [], [self._steps],
            foreach=False, fused=True, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=self._rate,
            weight_decay=0.0, eps=_EPSILON, maximize=False,
        )  # fmt: skip

    def memory(self) -> list[Tensor]:
        return [self._mean, self._square, self._steps]

    def go_on(self) -> None:
        """Nothing to do: all of it is in `memory`."""


def optimizer(settings: Settings, dimension: int) -> Optimizer:
    """The optimizer that `settings` name, for vectors of `dimension`."""
    if settings.optimizer == "adam":
        return Adam(dimension, settings.learning_rate)
    return Sgd(dimension, settings.learning_rate, settings.momentum)
