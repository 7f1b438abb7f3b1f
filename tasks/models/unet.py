"""The U-Net of the position paper's reconstruction experiment: can a segmentation network be inverted?"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Normalise

__all__ = ["Begin", "Level", "Unet", "Widths", "bound_of"]

Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=512)], ...], Field(min_length=1, max_length=6)]
Begin: TypeAlias = Literal["he", "torch"]
"""How parameters begin, uniformly: within sqrt(6 / fan_in), He's, or within 1 / sqrt(fan_in), as torch does."""


@MODELS.register("unet")
@dataclass(frozen=True, slots=True)
class Unet:
    """Encoder and decoder with skip connections, two 3x3 convolutions at each level, every pixel a class.

    `widths`: channels at each level; max pooling halves on the way down, 2x2 transposed convolutions double on the way
    up. The shape of Ronneberger et al., arXiv 1505.04597; with these widths, 3 channels and 1 output it has 71 401
    parameters, with the paper's 4 channels its 71 545. Pictures may have any size. `begin`: how far parameters begin
    apart, "he" or "torch"; with He's the whole trains better, and is harder to invert.
    """

    widths: Widths = (16, 24, 48)
    begin: Begin = "he"
    per_pixel: ClassVar[bool] = True

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`."""
        return _Unet(shape[0], self.widths, classes)

    def bound(self, fan_in: int) -> float:
        """sqrt(6 / fan_in), He's, unless torch's is wanted: with it a deep stack of ReLUs starts too flat to learn."""
        return bound_of(self.begin, fan_in)


def bound_of(begin: Begin, fan_in: int) -> float:
    """The end of the range that a layer's parameters begin in."""
    return float((6 / fan_in) ** 0.5) if begin == "he" else float(fan_in**-0.5)


class Level(nn.Sequential):
    """Two 3x3 convolutions, each with a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
        )


class _Unet(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        steps = list(zip(widths, widths[1:], strict=False))
        self.normalise = Normalise()
        self.down = nn.ModuleList(Level(a, b) for a, b in zip((channels, *widths), widths, strict=False))
        self.wider = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(steps))
        self.up = nn.ModuleList(Level(2 * a, a) for a, _ in reversed(steps))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to logits (B, classes, H, W)."""
        x = self.normalise(x)
        skipped: list[Tensor] = []
        for level in self.down:
            x = level(functional.max_pool2d(x, 2, ceil_mode=True) if skipped else x)
            skipped.append(x)
        for wider, level, skip in zip(self.wider, self.up, reversed(skipped[:-1]), strict=True):
            x = wider(x)[..., : skip.shape[-2], : skip.shape[-1]]  # an odd side was rounded up on the way down
            x = level(torch.cat([x, skip], dim=1))
        return self.head(x)  # type: ignore[no-any-return]  # nn.Module's call is typed Any
