"""The network that published inversions of split learning are measured on."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Normalise, features_of

__all__ = ["CifarNet"]

_BLOCKS = 3


@MODELS.register("cifarnet")
@dataclass(frozen=True, slots=True)
class CifarNet:
    """Three blocks of two 3x3 convolutions (`width`, 2 width and 2 width channels) and a 2x2 maximum, then two linear
    layers with a sigmoid between them.

    The network of UnSplit (Erdogan, Kupcu, Cicek, arXiv 2108.09033, its CIFAR-10 network), with the scaling of pictures
    before it that every network here has. Pieces are called normalise, conv11, relu11, conv12, relu12, pool1, conv21,
    ..., pool3, flatten, fc1, sigmoid, fc2. The published depths count layers from 0 and include the one they name, so
    they are cuts after these pieces, by name or number: depth 1 is relu11 (3), 4 is pool1 (6), 7 is conv22 (9), before
    its ReLU, and 11 is relu31 (13). Pictures of at least 8x8.
    """

    width: Annotated[int, Field(ge=1, le=1024)] = 64
    hidden: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(normalise=Normalise())
        channels = shape[0]
        for block in range(1, _BLOCKS + 1):
            width = self.width * min(block, 2)
            for number in (1, 2):
                layers[f"conv{block}{number}"] = nn.Conv2d(channels, width, 3, padding=1)
                layers[f"relu{block}{number}"] = nn.ReLU()
                channels = width
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        features = features_of(nn.Sequential(layers), shape)
        layers["fc1"] = nn.Linear(features, self.hidden)
        layers["sigmoid"] = nn.Sigmoid()
        layers["fc2"] = nn.Linear(self.hidden, classes)
        return nn.Sequential(layers)

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself."""
        return float(fan_in**-0.5)
