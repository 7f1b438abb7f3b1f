"""The network of HyperFL's experiments, and the one without pooling that gradient inversion sees more of."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Normalise, features_of

__all__ = ["FcConvnet"]

_LARGE = 20  # pixels a side, from which on the published paddings leave something of a picture


@MODELS.register("fc-convnet")
@dataclass(frozen=True, slots=True)
class FcConvnet:
    """Three convolutions, a hidden linear layer and a linear classifier, with leaky ReLUs.

    With pooling, the CIFAR-10 network of HyperFL (Guo et al. 2025, the authors' code): 5x5, 5x5 and 3x3 convolutions of
    `width`, 2 width and 4 width channels, padded by 0, 1 and 1 (so that nothing gets lost, where a picture is smaller
    than 20 pixels), each before a 2x2 maximum, and `hidden` units. Without, 3x3 convolutions of `width`, 2 width and 2
    width channels with strides 1, 2 and 2.
    """

    width: Annotated[int, Field(ge=1, le=1024)] = 16
    hidden: Annotated[int, Field(ge=1, le=1 << 16)] = 128
    pooling: bool = True
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        body = nn.Sequential(Normalise(), *(self._pooled(shape) if self.pooling else self._strided(shape[0])))
        body.append(nn.Flatten())
        hidden = nn.Linear(features_of(body, shape), self.hidden)
        return nn.Sequential(*body, hidden, nn.LeakyReLU(), nn.Linear(self.hidden, classes))

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself."""
        return float(fan_in**-0.5)

    def _pooled(self, shape: Shape) -> list[nn.Module]:
        channels, height, width = shape
        layers: list[nn.Module] = []
        paddings = (0, 1, 1) if min(height, width) >= _LARGE else (2, 2, 1)
        for factor, kernel, padding in zip((1, 2, 4), (5, 5, 3), paddings, strict=True):
            layers += [nn.Conv2d(channels, factor * self.width, kernel, padding=padding), nn.LeakyReLU()]
            channels = factor * self.width
            height, width = (side + 2 * padding - kernel + 1 for side in (height, width))
            layers.append(nn.MaxPool2d((min(2, height), min(2, width))))
            height, width = max(1, height // 2), max(1, width // 2)
        return layers

    def _strided(self, channels: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for factor, stride in ((1, 1), (2, 2), (2, 2)):
            layers += [nn.Conv2d(channels, factor * self.width, 3, stride, padding=1), nn.LeakyReLU()]
            channels = factor * self.width
        return layers
