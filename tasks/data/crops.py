"""Photographs to small square pictures: brought to a modest size by area, then cut, without overlap."""

import numpy as np
from numpy.typing import NDArray

from veilmesh.tasks.data.base import Pictures

__all__ = ["LEAST_SPREAD", "by_area", "cut", "lively"]

LEAST_SPREAD = 0.04
"""Standard deviation of values in [0, 1] below which a crop counts as flat: plain sky is no picture of anything."""


def by_area(picture: NDArray[np.generic], short: int) -> NDArray[np.float32]:
    """`picture` (H, W, C) in bytes as (h, w, C) in [0, 1], each value the mean of a whole block of pixels.

    The block's side is the whole number that brings the shorter side nearest to `short` pixels; at least 1.
    """
    side = max(1, round(min(picture.shape[:2]) / short))
    height, width = (length // side for length in picture.shape[:2])
    blocks = picture[: height * side, : width * side].reshape(height, side, width, side, -1)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float64) / 255, dtype=np.float32)


def cut(picture: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """Squares of `size` pixels side by side, (N, size, size, C) of (H, W, C), row by row; what is left over is not
    used."""
    rows, columns = (length // size for length in picture.shape[:2])
    squares = picture[: rows * size, : columns * size].reshape(rows, size, columns, size, -1)
    return squares.swapaxes(1, 2).reshape(rows * columns, size, size, -1)


def lively(crops: Pictures) -> NDArray[np.bool_]:
    """(N,) which of the crops are not flat."""
    return np.asarray(crops.reshape(len(crops), -1).std(axis=1) >= LEAST_SPREAD)
