"""A plain convolutional network, of the kind gradient inversion is measured on."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import (
    Activation,
    Norm,
    Normalise,
    Padding,
    activation_layer,
    convolution,
    features_of,
)

__all__ = ["Convnet"]


@MODELS.register("convnet")
@dataclass(frozen=True, slots=True)
class Convnet:
    """`depth` 3x3 convolutions of `width` channels, each with `stride`, then one linear layer.

    With `downsamplings` only so many have it, the first ones, and the others have stride 1: networks of any depth then
    end at the same resolution.

    Without pooling and batch normalisation, as in the experiments of Geiping et al., arXiv 2003.14053, section 4,
    unless they are asked for. With stride 1, circular padding and average pooling a shifted picture (around the edges,
    by whole pixels) has the same gradient: nothing says where in it anything was.
    """

    width: Annotated[int, Field(ge=1, le=1024)] = 32
    depth: Annotated[int, Field(ge=1, le=16)] = 3
    stride: Annotated[int, Field(ge=1, le=4)] = 2
    activation: Activation = "relu"
    norm: Norm = "none"
    padding: Padding = "zeros"
    pool: Literal["none", "average"] = "none"
    downsamplings: Annotated[int, Field(ge=0, le=16)] | None = None
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: list[nn.Module] = [Normalise()]
        channels = shape[0]
        for number in range(self.depth):
            strided = self.downsamplings is None or number < self.downsamplings
            stride = self.stride if strided else 1
            layers += convolution(channels, self.width, stride, self.padding, self.norm)
            layers.append(activation_layer(self.activation))
            channels = self.width
        pooled = [nn.AdaptiveAvgPool2d(1)] if self.pool == "average" else []
        body = nn.Sequential(*layers, *pooled, nn.Flatten())
        return nn.Sequential(*body, nn.Linear(features_of(body, shape), classes))

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself."""
        return float(fan_in**-0.5)
