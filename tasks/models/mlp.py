"""A multi-layer perceptron: the network whose first layer's gradient gives its input away."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Activation, Normalise, activation_layer

__all__ = ["Mlp"]


@MODELS.register("mlp")
@dataclass(frozen=True, slots=True)
class Mlp:
    """Fully connected layers of the widths `hidden`; `activation` relu, leaky-relu, sigmoid, tanh or square."""

    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = (64,)
    activation: Activation = "relu"
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: list[nn.Module] = [Normalise(), nn.Flatten()]
        width = prod(shape)
        for wider in self.hidden:
            layers += [nn.Linear(width, wider), activation_layer(self.activation)]
            width = wider
        return nn.Sequential(*layers, nn.Linear(width, classes))

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself."""
        return float(fan_in**-0.5)
