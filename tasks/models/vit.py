"""A small vision transformer."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput
from veilmesh.tasks.models.base import MODELS, Shape
from veilmesh.tasks.models.layers import Learned, Normalise

__all__ = ["VitTiny"]


@MODELS.register("vit-tiny")
@dataclass(frozen=True, slots=True)
class VitTiny:
    """A small vision transformer: `patch` pixels a side a token, `depth` blocks of `heads` heads, `width` features.

    Learned positions, normalisation before each part of a block, the mean over tokens before the last layer. Source:
    Dosovitskiy et al., arXiv 2010.11929, without its class token. Pictures that patches do not divide are filled up
    with grey at the right and the bottom.
    """

    patch: Annotated[int, Field(ge=1, le=64)] = 4
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    depth: Annotated[int, Field(ge=1, le=24)] = 4
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    expansion: Annotated[int, Field(ge=1, le=8)] = 2
    per_pixel: ClassVar[bool] = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """As `Model.build`. Raises BadInput where heads do not divide the width."""
        if self.width % self.heads:
            raise BadInput(f"model 'vit-tiny': {self.heads} heads do not divide a width of {self.width}; change one.")
        places = -(-shape[1] // self.patch) * -(-shape[2] // self.patch)
        blocks = [_Block(self.width, self.heads, self.width * self.expansion) for _ in range(self.depth)]
        return nn.Sequential(
            Normalise(),
            _Patches(shape[0], self.patch, self.width),
            Learned(places, self.width),
            *blocks,
            nn.LayerNorm(self.width),
            _Mean(),
            nn.Linear(self.width, classes),
        )

    def bound(self, fan_in: int) -> float:
        """1 / sqrt(fan_in), as torch does by itself."""
        return float(fan_in**-0.5)


class _Patches(nn.Module):
    """Pictures (B, C, H, W) to tokens (B, N, width), row by row."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self._patch = patch

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, -x.shape[-1] % self._patch, 0, -x.shape[-2] % self._patch))
        return self.embed(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]  # nn.Module's call is typed Any


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.before_attention, self.before_rest = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.rest = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.rest(self.before_rest(x))  # type: ignore[no-any-return]  # nn.Module's call is typed Any


class _Attention(nn.Module):
    """Self-attention, written out: torch's fused kernel has no second derivative on the CPU, which inversion needs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # as above


class _Mean(nn.Module):
    """Tokens (B, N, width) to their mean (B, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
