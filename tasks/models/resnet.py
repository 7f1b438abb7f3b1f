"""Residual networks for small pictures."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import (
    Activation,
    Head,
    Norm,
    Normalise,
    Padding,
    activation_layer,
    convolution,
    features_of,
)

__all__ = ["Resnet"]


def _six_n_plus_two(depth: int) -> int:
    if depth % 6 != 2:
        raise ValueError(
            f"{depth} is not 6 n + 2; take 8, 14, 20, 26, 32, 44, 56 ... (three stages of n blocks of two)"
        )
    return depth


@MODELS.register("resnet")
@dataclass(frozen=True, slots=True)
class Resnet:
    """The residual network for CIFAR: `depth` = 6 n + 2 layers in three stages of `width` times 1, 2, 4 channels.

    Source: He et al., arXiv 1512.03385, section 4.2, with shortcuts without parameters (their option A): ResNet-20 has
    269 722 parameters, running statistics not counted. A width of 64 is the ResNet20-4 of Inverting Gradients, but for
    its shortcuts. Without normalisation, convolutions have biases and begin smaller.
    """

    depth: Annotated[int, Field(ge=8, le=110), AfterValidator(_six_n_plus_two)] = 20
    width: Annotated[int, Field(ge=1, le=512)] = 16
    norm: Norm = "batch"
    padding: Padding = "zeros"
    activation: Activation = "relu"
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        layers: list[nn.Module] = [Normalise(), *self._convolution(shape[0], self.width, 1)]
        layers.append(activation_layer(self.activation))
        channels = self.width
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                outputs, stride = self.width << stage, 2 if stage and not block else 1
                branch = [
                    *self._convolution(channels, outputs, stride),
                    activation_layer(self.activation),
                    *self._convolution(outputs, outputs, 1),
                ]
                layers.append(_Residual(nn.Sequential(*branch), outputs - channels, stride, self.activation))
                channels = outputs
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*body, Head(features_of(body, shape), classes))

    def bound(self, fan_in: int) -> float:
        """sqrt(6 / fan_in), He's; without normalisation, where that doubles the variance with every block, less."""
        return float((fan_in if self.norm == "none" else fan_in / 6) ** -0.5)

    def _convolution(self, inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return convolution(inputs, outputs, stride, self.padding, self.norm, bias=self.norm == "none")


class _Residual(nn.Module):
    """activation(x + branch(x)); where the branch halves and widens, x is subsampled, and zeros fill it up."""

    def __init__(self, branch: nn.Module, wider: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.branch = branch
        self.activation = activation_layer(activation)
        self._fill = (0, 0, 0, 0, wider // 2, wider - wider // 2)
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        shortcut = x
        if self._stride > 1:
            shortcut = functional.pad(x[:, :, :: self._stride, :: self._stride], self._fill)
        return self.activation(shortcut + self.branch(x))  # type: ignore[no-any-return]  # nn.Module's call is typed Any
