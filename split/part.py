"""One copy of one stage at work: its parameters in one buffer, its graphs, and its optimizer.

Rounds are those of local training (`tasks/training.py`), to the bit: an optimizer begins afresh in every round, and the
parameters after a step are those that the round began with plus one update.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn

from veilmesh.core import BadInput, LocalError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.tasks.optimizers import Optimizer, optimizer
from veilmesh.tasks.training import flatten
from veilmesh.tasks.work import Settings

__all__ = ["Part", "Settings"]

_Place = tuple[int, int, int]  # step, head, micro-batch


class Part:
    """A stage's module with what training needs. Not for two threads at once.

    Args:
        module: the stage; its parameters are taken over, and live in one buffer from now on.
        settings: what a round of local training is.
    """

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        self.module = module.train()
        self._settings = settings
        self._parameters = list(module.parameters())
        self._flat = flatten(self._parameters) if self._parameters else torch.zeros(0)
        self._start = self._flat.clone()
        self._optimizer: Optimizer = optimizer(settings, self._flat.numel())
        self._update = torch.zeros_like(self._flat)
        self._graphs: dict[_Place, tuple[Tensor, Tensor, Tensor | None]] = {}  # what came in, what left, a penalty
        self._gradients: dict[_Place, list[Tensor] | None] = {}  # None: nothing is learned from that micro-batch

    @property
    def parameters(self) -> Vector:
        """A copy of the parameters (d,)."""
        return np.array(self._flat.numpy())

    def load(self, parameters: Vector) -> None:
        """Begin from `parameters` (d,), which may be read-only. Raises LocalError on another d."""
        if parameters.shape != tuple(self._flat.shape):
            raise LocalError(f"parameters of shape {parameters.shape} for a stage of {tuple(self._flat.shape)}")
        np.copyto(self._flat.numpy(), parameters)
        self._start.copy_(self._flat)
        self.forget()

    def forget(self) -> None:
        """Let go of every graph and gradient: nothing is learned from them."""
        self._graphs.clear()
        self._gradients.clear()

    def forward(self, x: Tensor, place: _Place, learns_input: bool) -> Tensor:
        """What leaves the stage for `x` (B, ...), its graph kept; `learns_input`: the gradient of `x` is asked for."""
        self._forget_before(place)
        x = x.requires_grad_() if learns_input else x
        out: Tensor = self.module(x)
        self._graphs[place] = (x, out, None)
        return out

    def leaves(self, place: _Place, out: Tensor, penalty: Tensor | None) -> None:
        """What really left, after the guards, and what they add to the loss."""
        self._graphs[place] = (self._graphs[place][0], out, penalty)

    def holds(self, place: _Place) -> tuple[int, ...] | None:
        """The shape of what left, if its graph is still here."""
        return tuple(self._graphs[place][1].shape) if place in self._graphs else None

    def backward(self, place: _Place, gradient: Tensor | None) -> Tensor | None:
        """Take `gradient` (of what left; None: that is the loss itself) back; the gradient of what came in, or None."""
        x, out, penalty = self._graphs.pop(place)
        outs, gradients = [out], [gradient]
        if penalty is not None:
            outs, gradients = [out, penalty], [gradient, None]
        learns_input = x.requires_grad
        wanted = [*self._parameters, *([x] if learns_input else [])]
        if not wanted:
            self._gradients[place] = []
            return None
        found = list(torch.autograd.grad(outs, wanted, gradients))
        back = found.pop() if learns_input else None
        self._gradients[place] = found
        return back

    def skip(self, place: _Place) -> None:
        """Learn nothing from a micro-batch, which counts as done."""
        self._graphs.pop(place, None)
        self._gradients[place] = None

    def step(self, step: int, head: int, of: int) -> bool:
        """Train by the gradients of the `of` micro-batches of `step`, summed in their order, once they are all there;
        whether they were. Raises BadInput if they are not finite, and then nothing has changed."""
        found = sorted(key for key in self._gradients if key[:2] == (step, head))
        if len(found) < of:
            return False
        mine = [gradients for key in found if (gradients := self._gradients[key]) is not None]
        if mine and self._parameters:
            self._learn(step, mine)
        for key in found:
            del self._gradients[key]
        return True

    def _learn(self, step: int, mine: list[list[Tensor]]) -> None:
        gradient = torch.cat([g.reshape(-1) for g in mine[0]], out=self._optimizer.gradient)
        for more in mine[1:]:
            gradient.add_(torch.cat([g.reshape(-1) for g in more]))
        if not isfinite(float(gradient.sum())):
            raise BadInput(f"Training diverged at step {step}: gradients are not finite; use a lower learning rate.")
        if step % self._settings.local_steps == 0:
            self._start.copy_(self._flat)
            self._update = self._optimizer.begin()
        self._optimizer.step(self._update)
        torch.add(self._start, self._update, out=self._flat)
        if not isfinite(float(self._flat.sum())):
            raise BadInput(f"Training diverged at step {step}: parameters are not finite; use a lower learning rate.")

    def _forget_before(self, place: _Place) -> None:
        """What is held of a head's earlier steps: nobody will end them any more."""
        for held in (self._graphs, self._gradients):
            for old in [key for key in held if key[1] == place[1] and key[0] < place[0]]:
                del held[old]

    def state(self) -> tuple[Vector, Vector, bytes]:
        """Parameters, those the round began with, and the optimizer's memory, as bytes."""
        memory = [t.numpy().tobytes() for t in self._memory()]
        return self.parameters, np.array(self._start.numpy()), b"".join(memory)

    def restore(self, parameters: Vector, start: Vector, state: bytes) -> None:
        """Take on `state`. Raises ValueError if it is not of this stage."""
        memory = self._memory()
        if len(state) != 4 * sum(t.numel() for t in memory) or not parameters.shape == start.shape == self._flat.shape:
            raise ValueError("a state of another stage")
        self.load(parameters)
        np.copyto(self._start.numpy(), start)
        at = 0
        for tensor in memory:
            size = tensor.numel()
            tensor.copy_(torch.from_numpy(np.frombuffer(state, "<f4", size, at).copy()).view_as(tensor))
            at += 4 * size
        self._optimizer.go_on()

    def _memory(self) -> Sequence[Tensor]:
        """What the optimizer remembers inside a round, and the round's update so far."""
        return [self._update, *self._optimizer.memory()]
