"""The network of NVFlare's CIFAR-10 examples, which the position paper runs on its edge devices."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Normalise, features_of

__all__ = ["ModerateCNN"]

_CHANNELS = ((1, 2), (4, 4), (8, 8))  # of the convolutions before each maximum, in widths


@MODELS.register("moderatecnn")
@dataclass(frozen=True, slots=True)
class ModerateCNN:
    """Six 3x3 convolutions (`width` to 8 width channels) with ReLU, a 2x2 maximum after every second, and three linear
    layers: 3.5 million parameters for 32x32 pictures.

    NVFlare's ModerateCNN (after Wang et al. 2020, "Federated learning with matched averaging", its VGG), without its
    dropout, with the scaling of pictures before it that every network here has. Pictures of at least 8x8.

    `he`: begin with weights as large as nine layers of ReLU need (He et al. 2015, uniform); else as torch does by
    itself, and so as published, from which the first hundreds of steps come to nothing but the most frequent class.
    """

    width: Annotated[int, Field(ge=1, le=1024)] = 32
    hidden: Annotated[int, Field(ge=1, le=1 << 16)] = 512
    he: bool = False
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(normalise=Normalise())
        channels = shape[0]
        for block, widths in enumerate(_CHANNELS, start=1):
            for number, factor in enumerate(widths, start=1):
                layers[f"conv{block}{number}"] = nn.Conv2d(channels, factor * self.width, 3, padding=1)
                layers[f"relu{block}{number}"] = nn.ReLU()
                channels = factor * self.width
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        features = features_of(nn.Sequential(layers), shape)
        layers |= {"fc1": nn.Linear(features, self.hidden), "relu1": nn.ReLU()}
        layers |= {"fc2": nn.Linear(self.hidden, self.hidden), "relu2": nn.ReLU()}
        layers["fc3"] = nn.Linear(self.hidden, classes)
        return nn.Sequential(layers)

    def bound(self, fan_in: int) -> float:
        """sqrt(6 / fan_in), or 1 / sqrt(fan_in)."""
        return float(((6 if self.he else 1) / fan_in) ** 0.5)
