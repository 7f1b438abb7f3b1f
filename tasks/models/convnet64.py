"""The ConvNet of Inverting Gradients."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

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

__all__ = ["IgConvnet"]

_BLOCKS = ((1, 2, 2, 4, 4, 4), (4, 4))  # channels over `width`; each block ends in a pool


@MODELS.register("ig-convnet")
@dataclass(frozen=True, slots=True)
class IgConvnet:
    """The ConvNet of Inverting Gradients: eight 3x3 convolutions, two max pools of 3, one linear layer.

    Channels `width` times 1, 2, 2, 4, 4, 4, pool, 4, 4, pool. Source: Geiping et al., arXiv 2003.14053, as in the
    authors' code: 2 904 970 parameters at width 64 on 3x32x32 pictures of 10 classes, running statistics not counted
    (theirs are buffers). A pool on fewer than 3 pixels takes all there are.
    """

    width: Annotated[int, Field(ge=1, le=512)] = 64
    norm: Norm = "batch"
    padding: Padding = "zeros"
    activation: Activation = "relu"
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: list[nn.Module] = [Normalise()]
        channels, height, width = shape
        for block in _BLOCKS:
            for factor in block:
                outputs = self.width * factor
                layers += convolution(channels, outputs, 1, self.padding, self.norm)
                layers.append(activation_layer(self.activation))
                channels = outputs
            kernel = min(3, height), min(3, width)
            layers.append(nn.MaxPool2d(kernel))
            height, width = height // kernel[0], width // kernel[1]
        body = nn.Sequential(*layers, nn.Flatten())
        return nn.Sequential(*body, nn.Linear(features_of(body, shape), classes))

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself, and they."""
        return float(fan_in**-0.5)
