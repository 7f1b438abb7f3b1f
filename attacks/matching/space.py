"""What is searched: the pictures themselves, or fewer numbers that they are made from."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from veilmesh.core import generator

__all__ = ["Coarse", "Pixels", "Space", "Start", "starting_pictures"]

Start: TypeAlias = Literal["noise", "grey", "pattern-4", "pattern-16"]
"""How a search begins: noise, grey, or random tiles of 4x4 or 16x16 pixels, repeated."""


class Space(Protocol):
    """A parametrisation of pictures."""

    def raw(self, x: Tensor) -> Tensor:
        """What to search from where pictures `x` (P, B, C, H, W) are to come out first, as near as can be."""
        ...

    def pictures(self, raw: Tensor) -> Tensor:
        """Pictures (P, B, C, H, W) of what is searched; differentiable."""
        ...


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pictures as they are."""

    def raw(self, x: Tensor) -> Tensor:
        return x

    def pictures(self, raw: Tensor) -> Tensor:
        return raw


@dataclass(frozen=True, slots=True)
class Coarse:
    """Pictures of `factor` times fewer rows and columns, brought to full size by bicubic interpolation: a prior that
    needs no data (ROG: Yue et al., USENIX Security 2023)."""

    factor: int
    size: tuple[int, int]  # (H, W) of a picture

    def raw(self, x: Tensor) -> Tensor:
        small = (max(1, self.size[0] // self.factor), max(1, self.size[1] // self.factor))
        return functional.interpolate(x.flatten(0, 1), small, mode="area").view(*x.shape[:3], *small)

    def pictures(self, raw: Tensor) -> Tensor:
        large = functional.interpolate(raw.flatten(0, 1), self.size, mode="bicubic", align_corners=False)
        return large.view(*raw.shape[:3], *self.size)


def starting_pictures(how: Start, shape: tuple[int, ...], seed: int, *name: str | int) -> Tensor:
    """Pictures (B, C, H, W) in [0, 1] to begin from, drawn from the stream called `name`."""
    if how == "grey":
        return torch.full(shape, 0.5)
    rng = generator(seed, "start", *name)
    size = (*shape[:2], int(how.rpartition("-")[2]), int(how.rpartition("-")[2])) if how != "noise" else shape
    drawn = torch.from_numpy((0.5 + 0.25 * rng.standard_normal(size)).astype("float32")).clamp_(0, 1)
    if how == "noise":
        return drawn
    times = (-(-shape[2] // size[2]), -(-shape[3] // size[3]))
    return drawn.repeat(1, 1, *times)[..., : shape[2], : shape[3]].contiguous()
