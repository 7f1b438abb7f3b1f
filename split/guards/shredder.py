"""Noise on activations whose distribution is learned: as much as the task bears in each coordinate (Shredder)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Outgoing
from veilmesh.split.guards.draws import laplace
from veilmesh.split.guards.learning import Awaited, descend

__all__ = ["Shredder"]


@SPLIT_GUARDS.register("shredder")
@dataclass(frozen=True)
class Shredder:
    """Add Laplace noise whose location and scale are learned for every coordinate, drawn anew each time.

    Mireshghallah et al., ASPLOS 2020, "Shredder: learning noise distributions to protect inference privacy" (arXiv
    1905.11814), sections 2 and 3: noise is trained to leave the task alone and to be loud, and what leaves gets a draw
    from the fitted Laplace distribution. Published reimplementations add one trained tensor instead, which a decoder
    learns to take away; here every example gets its own draw.

    Other than theirs: location and scale are trained directly, by the draws' own gradients, where they fit a
    distribution to many trained tensors; loudness is worth `loudness` times the mean logarithm of the scale (theirs:
    over the noise's variance), so that its worth does not end; and units are the running root mean square of the
    activations, because the head is not frozen here, and would learn to speak louder. `scale` and `location` are where
    the noise begins (every location at random within it), `most` is as far as a scale may go.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    location: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    loudness: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    most: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01

    def start(self, about: About) -> Outgoing:
        return _AtWork(self, about)


class _AtWork:
    def __init__(self, options: Shredder, about: About) -> None:
        self._options, self._rng = options, about.rng
        around = about.rng.uniform(-options.location, options.location, about.activation)
        self._location = torch.from_numpy(around).float().requires_grad_()
        self._scale = torch.full(about.activation, math.log(options.scale)).requires_grad_()  # its logarithm
        self._step = torch.optim.Adam([self._location, self._scale], options.rate)
        self._unit = 0.0
        self._said: Awaited[Tensor] = Awaited()  # the draws

    def outgoing(self, z: Tensor, x: Tensor) -> Tensor:
        for earlier, gradient in self._said.known():
            self._learn(earlier, gradient)
        if z.requires_grad or not self._unit:
            self._measure(z.detach())
        draw = laplace(self._rng, z)
        with torch.no_grad():
            noise = self._noise(draw)
        out = z + noise
        self._said.follow(out, draw)
        return out

    def _measure(self, z: Tensor) -> None:
        now = float(z.square().mean().sqrt())
        self._unit = 0.9 * self._unit + 0.1 * now if self._unit else now

    def _noise(self, draw: Tensor) -> Tensor:
        return self._unit * (self._location.to(draw) + self._scale.to(draw).exp() * draw)

    @torch.enable_grad()
    def _learn(self, draw: Tensor, gradient: Tensor) -> None:
        loss = (gradient * self._noise(draw)).sum() - self._options.loudness * self._scale.mean()
        descend(loss, [self._location, self._scale], self._step)
        with torch.no_grad():
            self._scale.clamp_(max=math.log(self._options.most))
