"""A network with a layer of bins before it: the architecture that a malicious initiator proposes.

Fowl et al., arXiv 2110.13057 (Robbing the Fed): any network gives pictures away once a fully connected layer stands
before it. Here that layer's answer is led back into the picture, so what follows may be any network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput
from veilmesh.tasks.models.base import MODELS, Model, Shape
from veilmesh.tasks.models.layers import Normalise

__all__ = ["Imprinted"]

_BRIGHTNESS = NormalDist(-0.05, 0.26)  # of a photograph, mean over the picture, black -1 and white 1


@MODELS.register("imprinted")
@dataclass(frozen=True, slots=True)
class Imprinted:
    """A fully connected layer of `bins` neurons, led back into the picture, and the network `inner` behind it.

    The layers' parameters begin at random, and a crafted model (payload imprint) writes them.

    Args:
        inner: name and options of the network behind; one label for a picture.
        bins: neurons of the layer.
        kind: "relu" adds bins up; "hardtanh" keeps each bin to itself.
        gain: how much of the layer is added to the picture, in the picture's units.
        armed: build the bins (by brightness, as photographs have it) into the architecture instead: training then never
            moves them, and the parameters of the layer are there only to have gradients. For "relu".
    """

    inner: Mapping[str, Any] = field(default_factory=lambda: {"name": "convnet"})
    bins: Annotated[int, Field(ge=4, le=65536)] = 128
    kind: Literal["relu", "hardtanh"] = "relu"
    gain: Annotated[float, Field(gt=0, le=1)] = 0.1
    armed: bool = False
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`. Raises BadInput on an inner network that names a class for every pixel."""
        inner = self._inner()
        if inner.per_pixel:
            raise BadInput("model 'imprinted' wants an inner network with one label for a picture, and this has many.")
        if self.armed and self.kind != "relu":
            raise BadInput("model 'imprinted' can only be armed with kind = relu; leave armed or kind out.")
        return nn.Sequential(_Imprint(shape, self.bins, self.kind, self.gain, self.armed), inner.build(shape, classes))

    def bound(self, fan_in: int) -> float:
        """As the inner network's."""
        return self._inner().bound(fan_in)

    def _inner(self) -> Model:
        options = dict(self.inner)
        if "name" not in options:
            raise BadInput("model 'imprinted' needs the name of the network behind: inner = { name = ... }.")
        return MODELS.build(str(options.pop("name")), options)


class _Imprint(nn.Module):
    """x + gain * (W2 act(W1 x + b1) + b2), pictures (B, C, H, W) to pictures."""

    def __init__(self, shape: Shape, bins: int, kind: str, gain: float, armed: bool) -> None:
        super().__init__()
        width = prod(shape)
        self.scale, self.flat = Normalise(), nn.Flatten()
        self.first: nn.Linear = _Armed(width, bins) if armed else nn.Linear(width, bins)
        self.act = nn.ReLU() if kind == "relu" else nn.Hardtanh()
        self.second: nn.Linear = _Level(bins, width) if armed else nn.Linear(bins, width)
        self._gain = gain

    def forward(self, x: Tensor) -> Tensor:
        back: Tensor = self.second(self.act(self.first(self.flat(self.scale(x)))))
        return x + self._gain * back.view_as(x)


class _Armed(nn.Linear):
    """Every neuron computes the mean of its inputs less its own quantile, whatever the parameters are; the gradients
    are those of a common layer."""

    def forward(self, x: Tensor) -> Tensor:
        bins = self.out_features
        edges = [-1.0, *(_BRIGHTNESS.inv_cdf(i / bins) for i in range(1, bins))]
        weight = _fixed(self.weight, torch.full_like(self.weight, 1 / self.in_features))
        bias = _fixed(self.bias, -torch.tensor(edges, dtype=x.dtype, device=x.device))
        return functional.linear(x, weight, bias)


class _Level(nn.Linear):
    """Every output is the same small multiple of the sum of the inputs, so every bin's gradient is the same."""

    def forward(self, x: Tensor) -> Tensor:
        weight = _fixed(self.weight, torch.full_like(self.weight, 1 / self.in_features))
        return functional.linear(x, weight, _fixed(self.bias, torch.zeros_like(self.bias)))


def _fixed(parameter: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient going to `parameter` (straight through)."""
    return value + (parameter - parameter.detach())
