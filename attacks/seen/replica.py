"""A peer's training as somebody else can do it again: one picture, full batch, plain SGD, in double precision.

Whoever knows a peer's picture knows its gradient everywhere. That is what a linear model of drift cannot give:
`replay` takes the peers that it has read out of the equations, and so the rest stays solvable at any learning rate.

Where the first layer is fully connected and sees the picture, its gradient is always delta x^T: all that training with
n pictures ever does to it lies in their span. So n pictures give coordinates in which a whole mesh is small: for each
picture a row of the first layer's width, and the other parameters as they are. In a flat state (n * width + others,).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from veilmesh.attacks.inversion.analytic import single_input
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput

__all__ = ["Reading", "Replica"]

Floats = NDArray[np.float64]

_LEVELS = 255  # pictures come from files of eight bits a pixel
_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A picture, (C, H, W) float32 in [0, 1], and its label, that explain an update; `misfit`: the length of what they
    leave of it, relative to it."""

    picture: NDArray[np.float32]
    label: int
    misfit: float


class Replica:
    """The victims' network, and one picture in each of `slots` places.

    Raises BadInput on a network whose first layer is not fully connected, with a bias, on the picture itself.
    """

    def __init__(self, public: Public, slots: int) -> None:
        network = Network(public)
        network.load(public.initial)
        layers = network.linear_layers()
        places = [(layer, network.picture_scale(layer)) for layer in layers if layer.bias is not None]
        seeing = next(((layer, scale) for layer, scale in places if scale), None)
        if seeing is None:
            raise BadInput("Peers can be played again where a network's first layer is fully connected, with a bias.")
        self._first, scale = seeing
        self._offset, self._factor = (part.astype(np.float64) for part in scale)
        self._last: LinearLayer = layers[-1]
        self._shape, self._classes = public.shape, public.classes
        self.rate = public.learning_rate
        self._module = network.module.double()
        self._others = np.ones(public.initial.size, bool)
        self._others[self._first.weight] = self._others[self._first.bias] = False
        initial = public.initial.astype(np.float64)
        self._beginning = self.matrix(initial)
        self._tail = initial[self._others]
        self._tail_parameters = [
            p
            for p in self._module.parameters()
            if p is not self._first.module.weight and p is not self._first.module.bias
        ]
        self._blank = torch.zeros((1, *public.shape), dtype=torch.float64)
        self.width = len(self._beginning)
        self._inputs = np.zeros((slots, self._beginning.shape[1]))
        self._labels = np.full(slots, -1)
        self._before = np.zeros((slots, self.width))  # W_0 x of each
        self._gram = np.zeros((slots, slots))
        self._pre: Tensor | None = None
        self._first.module.register_forward_hook(lambda *_: self._pre)

    @property
    def size(self) -> int:
        """Of a state."""
        return self._before.size + self._tail.size

    def place(self, slot: int, inputs: Floats, label: int) -> None:
        """Let `slot` be the picture that the first layer sees so (in + 1,); states made with another one are void."""
        self._inputs[slot] = inputs
        self._labels[slot] = label
        self._before[slot] = self._beginning @ self._inputs[slot]
        self._gram[slot] = self._gram[:, slot] = self._inputs @ self._inputs[slot]

    def update(self, slot: int, at: Floats) -> Floats:
        """What the peer with that picture adds to a state, standing at `at` (size,)."""
        rows = at[: self._before.size].reshape(self._before.shape)
        pre = self._before[slot] + self._gram[slot] @ rows
        signal, tail = self._backward(pre, int(self._labels[slot]), at[self._before.size :])
        made = np.zeros(self.size)
        made[slot * self.width : (slot + 1) * self.width] = -self.rate * signal
        made[self._before.size :] = -self.rate * tail
        return made

    def input(self, slot: int) -> Floats:
        """What the first layer sees (in + 1,) of the picture in `slot`."""
        inputs: Floats = self._inputs[slot]
        return inputs

    def signal(self, slot: int) -> Floats:
        """The loss's derivative (width,) by the first layer's output, at the common beginning."""
        return self._backward(self._before[slot], int(self._labels[slot]), None)[0]

    def blur(self, slot: int, noise: float) -> float:
        """The standard deviation of a pixel read from an update whose coordinates have that of `noise`."""
        power = float(np.linalg.norm(self.signal(slot)))
        return noise / max(self.rate * power * float(np.abs(self._factor).mean()), 1e-300)

    def whole(self, state: Floats) -> Floats:
        """A state (size,) as parameters (d,)."""
        found = np.empty(self._others.size)
        matrix = state[: self._before.size].reshape(self._before.shape).T @ self._inputs
        found[self._first.weight], found[self._first.bias] = matrix[:, :-1].reshape(-1), matrix[:, -1]
        found[self._others] = state[self._before.size :]
        return found

    def read(self, update: Floats, labels: Sequence[int]) -> Reading:
        """The picture behind an update (d,) made at the common beginning, with one of `labels`. Chosen by the misfit
        alone."""
        gradient = -update / self.rate
        matrix, tail = self.matrix(gradient), gradient[self._others]
        power = float(gradient @ gradient)
        found: Reading | None = None
        for label in labels:
            for picture in self._candidates(matrix, label):
                one = Reading(picture, label, self._misfit(matrix, tail, power, picture, label))
                found = one if found is None or one.misfit < found.misfit else found
        assert found is not None
        return found

    def labels(self, update: Floats) -> list[int]:
        """All labels, the likeliest for an update (d,) first: one example's own bias is the only one to grow."""
        bias = self._last.bias_of(update)
        if bias is None or bias.size != self._classes:
            return list(range(self._classes))
        return [int(k) for k in np.argsort(-bias, kind="stable")]

    def _candidates(self, matrix: Floats, label: int) -> Iterator[NDArray[np.float32]]:
        """Without noise a quotient is exact; with noise, what the backward signal of the picture itself, made again,
        finds in the weights. Each also in whole levels, which is exact as soon as it is near."""
        quotient = self.picture(single_input(matrix[:, :-1], matrix[:, -1]))
        yield quotient
        yield _whole(quotient)
        picture = np.full(self._shape, 0.5, np.float32)
        for _ in range(_STEPS):
            signal, _tail = self._backward(self._beginning @ self.seen(picture), label, None)
            if not (power := float(signal @ signal)):
                return
            before, picture = picture, self.picture(signal @ matrix[:, :-1] / power)
            if np.array_equal(before, picture):
                break
        yield picture
        yield _whole(picture)

    def _misfit(self, matrix: Floats, tail: Floats, power: float, picture: NDArray[np.float32], label: int) -> float:
        inputs = self.seen(picture)
        signal, rest = self._backward(self._beginning @ inputs, label, None)
        seen = power - float(tail @ tail) - 2 * float(signal @ (matrix @ inputs))
        left = seen + float(signal @ signal) * float(inputs @ inputs) + float(np.square(tail - rest).sum())
        return float(np.sqrt(max(left, 0.0) / max(power, 1e-300)))

    def matrix(self, values: Floats) -> Floats:
        """The first layer's weights and bias (width, in + 1) in a flat vector (d,)."""
        bias = self._first.bias_of(values)
        assert bias is not None
        return np.hstack([self._first.weight_of(values), bias[:, None]])

    def seen(self, picture: NDArray[np.float32]) -> Floats:
        return np.append(self._offset + self._factor * picture.reshape(-1).astype(np.float64), 1.0)

    def picture(self, inputs: Floats) -> NDArray[np.float32]:
        return ((inputs - self._offset) / self._factor).clip(0, 1).reshape(self._shape).astype(np.float32)

    def _backward(self, pre: Floats, label: int, tail: Floats | None) -> tuple[Floats, Floats]:
        """The loss's derivative by the first layer's output (width,), which is `pre`, and by the other parameters."""
        self._load(self._tail if tail is None else self._tail + tail)
        self._pre = torch.from_numpy(pre[None]).requires_grad_(True)
        loss = functional.cross_entropy(self._module(self._blank), torch.tensor([label]))
        signal, *rest = torch.autograd.grad(loss, [self._pre, *self._tail_parameters])
        return signal[0].numpy(), torch.cat([g.reshape(-1) for g in rest]).numpy()

    def _load(self, values: Floats) -> None:
        start, source = 0, torch.from_numpy(values)
        with torch.no_grad():
            for parameter in self._tail_parameters:
                parameter.copy_(source[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()


def _whole(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    return (np.round(picture * _LEVELS) / np.float32(_LEVELS)).astype(np.float32)
