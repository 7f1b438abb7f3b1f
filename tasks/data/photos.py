"""Crops of the colour photographs that come with scikit-image: colour pictures that everybody has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.tasks.data.assemble import Pool, assemble
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.data.crops import by_area, cut, lively

__all__ = ["Photos"]

_SIZE = 32  # pixels, of a crop's side
_PHOTOGRAPHS = (
    "astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket",
)  # fmt: skip


@SOURCES.register("photos")
@dataclass(frozen=True, slots=True)
class Photos:
    """32x32 colour crops of eight photographs that come with scikit-image; the class is which of them a crop is from.

    Private, test and public crops do not overlap, but are of the same photographs: whoever knows the public ones knows
    the colours and textures of the private ones, more than an attacker would know of somebody's own pictures. The
    floors say what that alone is worth.

    `side`: the shorter side of every photograph is brought to about so many pixels first, by area; more give more
    crops, with less in each. `limit`: use only so many training pictures.
    """

    side: Annotated[int, Field(ge=64, le=1024)] = 256
    limit: Annotated[int, Field(ge=1)] | None = None

    def load(self) -> Dataset:
        """As `Source.load`: 344 training, 114 test and 114 public pictures of eight classes."""
        found = [cut(by_area(photograph, self.side), _SIZE) for photograph in _photographs()]
        x = np.ascontiguousarray(np.concatenate(found).transpose(0, 3, 1, 2), dtype=np.float32)
        y = np.repeat(np.arange(len(found), dtype=np.int64), [len(crops) for crops in found])
        kept = lively(x)
        return assemble("photos", Pool.of(x[kept], y[kept]), None, len(found), self.limit, "scikit-image's set")


def _photographs() -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) each, from the library's own folder: nothing is fetched."""
    from skimage import data  # a second of imports that only this task pays

    for name in _PHOTOGRAPHS:
        yield getattr(data, name)()
    left, _, _ = data.stereo_motorcycle()  # type: ignore[no-untyped-call]  # scikit-image is not typed
    yield left
