"""Local training as data in, data out: some steps of SGD or Adam on a peer's own pictures, and a test score.

The parameters of the one module are views into one flat buffer, so a round costs one copy in and one out; gradients
come from `torch.autograd.grad` and are written to one flat buffer too, where `optimizers` take them. The number of
threads is the caller's business.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput, LocalError
from veilmesh.core.zerosum import Pair
from veilmesh.tasks.data.base import Labels, Pictures
from veilmesh.tasks.optimizers import optimizer
from veilmesh.tasks.private import clipped_sum, loss_of, noise
from veilmesh.tasks.scoring import score
from veilmesh.tasks.work import (
    Evaluate,
    Evaluated,
    Indices,
    Private,
    Settings,
    Train,
    Trained,
    Vector,
    batch_place,
    epoch_order,
    poisson_indices,
)

__all__ = ["Evaluate", "Evaluated", "Settings", "Train", "Trained", "Trainer", "flatten"]


class Trainer:
    """Does a peer's training and scoring.

    Deterministic: which pictures a step uses is `batch_indices`, and nothing else is drawn. In private training it is
    `poisson_indices`, and noise is drawn, both from `secret`; a round that is trained twice has other draws the second
    time. Not for two threads at once.

    Args:
        x, y: the peer's own pictures (n, C, H, W) and labels; n >= 1.
        test_x, test_y: what `Evaluate` scores on.
        build: makes the network, as `functools.partial(build_model, name, options, shape, classes, seed)` does; its
            parameters do not matter, since every task brings its own.
        settings: what a round of local training is.
        seed, peer_index: name the stream that batches are drawn from.
        secret: what private training draws from instead; None: `seed`, which in a laboratory is all there is.
        pairs: what this peer has in common with each neighbour, for noise that cancels.
        importance: (classes,) what a test picture of each class counts for in scores; None: all alike.
    """

    def __init__(
        self, x: Pictures, y: Labels, test_x: Pictures, test_y: Labels, build: Callable[[], nn.Module],
        settings: Settings, seed: int, peer_index: int, secret: int | None = None, pairs: Sequence[Pair] = (),
        importance: NDArray[np.float64] | None = None,
    ) -> None:  # fmt: skip
        self._x, self._y = _tensor(x), _tensor(y)
        self._test_x, self._test_y = _tensor(test_x), _tensor(test_y)
        self._importance = importance
        self._settings = settings
        self._seed, self._peer = seed, peer_index
        self._model = build().train()
        self._parameters = list(self._model.parameters())
        self._flat = flatten(self._parameters)
        self._start = torch.empty_like(self._flat)  # what a round of several steps began with
        self._optimizer = optimizer(settings, self._flat.numel())
        self._secret = seed if secret is None else secret
        self._pairs = tuple(pairs)
        self._loss = loss_of(self._model)
        self._attempt = (-1, 0)  # the round trained last, and how many were trained again so far
        self._order: tuple[int, Indices] | None = None  # the epoch that was asked for last, and its order

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers to `Train` and `Evaluate` tasks, in their order. Raises LocalError on anything else."""
        return [self._run_one(task) for task in tasks]

    def _run_one(self, task: object) -> object:
        match task:
            case Train():
                return self._train(task)
            case Evaluate(parameters=parameters):
                return self._evaluate(parameters)
        raise LocalError(f"a trainer cannot do a {type(task).__name__}")

    def _train(self, task: Train) -> Trained:
        self._load(task.parameters)
        if self._settings.local_steps > 1:
            self._start.copy_(self._flat)
        correction = None if task.correction is None else self._vector(task.correction)
        update = self._optimizer.begin()
        losses: list[float] = []
        samples = 0
        again = self._again(task.round)
        for step in range(self._settings.local_steps):
            if step:
                torch.add(self._start, update, out=self._flat)
            if self._settings.private:
                losses.append(self._private_gradient(self._settings.private, task.round, step, again))
                size = min(self._settings.batch, len(self._x))  # how many there really were is private too
            else:
                batch = torch.from_numpy(self._batch(task.round, step))
                losses.append(self._gradient(batch))
                size = len(batch)
            if task.proximal and step:  # its gradient is proportional to the way gone, which is nothing at first
                self._optimizer.gradient.add_(update, alpha=task.proximal)
            if correction is not None:
                self._optimizer.gradient.add_(correction)
            self._optimizer.step(update)
            samples += size
        return self._trained(task.round, update.numpy(), losses, samples)

    def _trained(self, round: int, update: Vector, losses: list[float], samples: int) -> Trained:
        loss = sum(losses) / len(losses)
        if not isfinite(loss) or not np.isfinite(update).all():
            raise BadInput(f"Training diverged in round {round}: the loss is not finite; use a lower learning rate.")
        return Trained(update, loss, samples)

    def _gradient(self, batch: Tensor) -> float:
        """Write the gradient on the pictures `batch` (B,) to the optimizer; the loss."""
        x, y = self._x.index_select(0, batch), self._y.index_select(0, batch)
        loss = functional.cross_entropy(self._model(x), y)
        gradients = torch.autograd.grad(loss, self._parameters)
        torch.cat([g.reshape(-1) for g in gradients], out=self._optimizer.gradient)
        return loss.item()

    def _private_gradient(self, private: Private, round: int, step: int, again: int) -> float:
        """Write a private gradient to the optimizer; the loss on the pictures that were drawn, or, where none were, on
        all: it is for the peer's own record."""
        n, batch = len(self._x), self._settings.batch
        drawn = torch.from_numpy(poisson_indices(self._secret, self._peer, round, step, n, batch, again))
        some = drawn if len(drawn) else torch.arange(n)
        x, y = self._x.index_select(0, some), self._y.index_select(0, some)
        parameters = {name: p.detach() for name, p in self._model.named_parameters()}
        counts = torch.full((len(some),), float(len(drawn) > 0))
        total, losses = clipped_sum(self._loss, parameters, x, y, counts, private.clip)
        total += noise(private, len(total), self._secret, self._pairs, self._peer, round, step, again)
        torch.mul(total, 1 / min(batch, n), out=self._optimizer.gradient)
        return losses.mean().item()

    def _again(self, round: int) -> int:
        """How many rounds were trained a second time so far, if this is one: noise must never be drawn twice."""
        last, again = self._attempt
        self._attempt = (max(last, round), again + (round <= last))
        return self._attempt[1]

    def _evaluate(self, parameters: Vector) -> Evaluated:
        self._load(parameters)
        self._model.eval()
        result = score(self._model, self._test_x, self._test_y, self._importance)
        self._model.train()
        return result

    def _batch(self, round: int, step: int) -> Indices:
        """`batch_indices`, remembering the epoch's order between steps."""
        settings, n = self._settings, len(self._x)
        epoch, start, stop = batch_place(round, step, n, settings.batch, settings.local_steps)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._seed, self._peer, epoch, n))
        return self._order[1][start:stop]

    def _load(self, parameters: Vector) -> None:
        self._check(parameters)
        np.copyto(self._flat.numpy(), parameters)

    def _vector(self, values: Vector) -> Tensor:
        """A copy of `values` (d,): they may be read-only, which torch has no word for."""
        self._check(values)
        return torch.tensor(values)

    def _check(self, values: Vector) -> None:
        if values.shape != tuple(self._flat.shape) or values.dtype != np.float32:
            raise LocalError(f"a vector of {values.dtype} {values.shape} for a model of {tuple(self._flat.shape)}")


def flatten(parameters: list[nn.Parameter]) -> Tensor:
    """One buffer that holds all parameters, which become views into it."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat


def _tensor(array: Pictures | Labels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())  # a copy: the shard may be read-only or shared
