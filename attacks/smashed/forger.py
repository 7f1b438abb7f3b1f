"""A generator that a data owner trains through everybody's network, towards a class of which it has no examples.

What it is trained by is in the messages that its member says and hears, so whoever has those trains it again.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.decoders import begin, generator_of
from veilmesh.attacks.view import Public
from veilmesh.core import generator
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Forger", "Forging"]

_LATENT = 32


@dataclass(frozen=True, slots=True)
class Forging:
    """`target`: the class that is wanted. Of every `every` steps all but one ask what makes pictures of it, and one
    says that the pictures made so far are of class `other` (None: the next one). `rate`: Adam's."""

    target: int
    other: int | None
    every: int
    rate: float

    def asks(self, step: int) -> bool:
        """Whether the pictures of `step` are said to be of the target."""
        return step % self.every != self.every - 1

    def label(self, step: int, classes: int) -> int:
        """What the pictures of `step` are said to be of."""
        if self.asks(step):
            return self.target
        return (self.target + 1) % classes if self.other is None else self.other


class Generator(nn.Module):
    """Numbers (B, 32) to pictures (B, C, H, W) in [0, 1]: two resolutions of convolutions, begun by a linear layer."""

    def __init__(self, picture: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        self._picture, self._coarse = picture, (-(-picture[1] // 4), -(-picture[2] // 4))
        self._width = width
        self.first = nn.Linear(_LATENT, width * self._coarse[0] * self._coarse[1])
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, picture[0], 3, padding=1)

    def forward(self, numbers: Tensor) -> Tensor:
        """As the class says."""
        x = functional.leaky_relu(self.first(numbers), 0.2).view(-1, self._width, *self._coarse)
        for layer in (self.second, self.third):
            x = functional.leaky_relu(layer(functional.interpolate(x, scale_factor=2.0)), 0.2)
        return torch.sigmoid(self.last(x)[..., : self._picture[1], : self._picture[2]])


class Forger:
    """The generator under training, in front of a copy of the head."""

    def __init__(self, public: Public, place: int, forging: Forging) -> None:
        name = hashlib.blake2b(public.initial.tobytes(), digest_size=16).hexdigest()
        self._path = ("forger", place, name)
        self._maker = begin(lambda: Generator(public.shape), generator_of(generator(0, *self._path)))
        self._stages = StageMap(public)
        self._head = self._stages.load(0, self._stages.initial(0))
        betas = (0.5, 0.999)
        self._learner = torch.optim.Adam(self._maker.parameters(), forging.rate, betas)

    def take(self, parameters: Vector) -> None:
        """The head has `parameters` (d,) from now on."""
        self._head = self._stages.load(0, parameters)

    @torch.no_grad()
    def activations(self, rows: int, step: int, micro: int) -> Tensor:
        """What the head makes of the pictures (rows, C, H, W) of a micro-batch."""
        out: Tensor = self._head(self._maker(self._numbers(rows, step, micro)))
        return out

    def learn(self, gradient: Tensor, step: int, micro: int) -> None:
        """Train by the `gradient` (B, ...) that came back for the activations of a micro-batch: its direction alone,
        since a sender scales it as it likes, and Adam does not mind."""
        pictures = self._maker(self._numbers(len(gradient), step, micro))
        activations = self._head(pictures)
        parameters = list(self._maker.parameters())
        unit = gradient / gradient.norm().clamp_min(1e-20)
        for parameter, found in zip(parameters, torch.autograd.grad(activations, parameters, unit), strict=True):
            parameter.grad = found
        self._learner.step()

    @torch.no_grad()
    def pictures(self, count: int) -> Tensor:
        """Pictures (count, C, H, W) as it makes them now."""
        made: Tensor = self._maker(self._numbers(count, -1, 0))
        return made

    def _numbers(self, rows: int, step: int, micro: int) -> Tensor:
        draws = generator_of(generator(0, *self._path, step, micro))
        return torch.randn(rows, _LATENT, generator=draws)
