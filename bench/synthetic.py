"""The benchmark's data: 28x28 pictures of ten classes, made in a second, no download.

A class is a fixed blocky prototype; a picture is its prototype, shifted by up to two pixels, under strong noise. A
linear model is far from it and a small MLP reaches about 93 % in five epochs, so accuracy shows whether mixing works.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPREAD", "draw", "write_idx"]

NOISE = 4.0
SPREAD = 7.0  # pictures lie within this of 0, but for one pixel in hundreds; those are clipped

Pictures = NDArray[np.float32]
Labels = NDArray[np.int64]


def draw(train: int, test: int, seed: int = 0) -> tuple[Pictures, Labels, Pictures, Labels]:
    """(train, 28, 28) pictures with labels (train,), and as many for testing as asked."""
    coarse = np.random.default_rng(seed).normal(size=(10, 7, 7)).astype(np.float32)
    prototypes = np.kron(coarse, np.ones((4, 4), np.float32))
    return (*_some(prototypes, train, seed + 1), *_some(prototypes, test, seed + 2))


def _some(prototypes: Pictures, count: int, seed: int) -> tuple[Pictures, Labels]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    shifts = rng.integers(-2, 3, (count, 2))
    shifted = [np.roll(prototypes[y], tuple(shift), (0, 1)) for y, shift in zip(labels, shifts, strict=True)]
    pictures = np.stack(shifted) + NOISE * rng.normal(size=(count, 28, 28))
    return (pictures / 3).astype(np.float32), labels


def write_idx(folder: Path, train: int, test: int, seed: int = 0) -> None:
    """The same as MNIST's files, for the task `mnist`: bytes, [-SPREAD, SPREAD] mapped to [0, 255]."""
    x, y, test_x, test_y = draw(train, test, seed)
    for part, pictures, labels in (("train", x, y), ("t10k", test_x, test_y)):
        scaled = np.clip((pictures + SPREAD) / (2 * SPREAD) * 255, 0, 255).round().astype(np.uint8)
        _write(folder / f"{part}-images-idx3-ubyte", scaled)
        _write(folder / f"{part}-labels-idx1-ubyte", labels.astype(np.uint8))


def _write(path: Path, array: NDArray[np.uint8]) -> None:
    sizes = b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
