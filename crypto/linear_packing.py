"""How a batch of examples lies in the coefficients of polynomials, so that products of polynomials are a linear layer.

A tile of R examples x G features is one polynomial, the sum of x[r, g] X^(r G C + g); a tile of G features x C outputs
is another, the sum of w[g, c] X^(c G + G - 1 - g). In their product the coefficient r G C + c G + G - 1 is the sum over
g of x[r, g] w[g, c] and nothing else, as long as R G C <= N: neither other products nor what wraps around X^N + 1 falls
there. Products of the tiles along the features add up. Special cases: G = C = 1 is one ciphertext a feature with the
batch in it, and weights are scalars; R = 1, G = F is one example a ciphertext (Cheetah: Huang et al. 2022).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput
from veilmesh.crypto.negacyclic import Integers

__all__ = ["DEGREE", "MOST", "Packing", "packing"]

DEGREE: Final = 8192
"""N, the ring degree."""
MOST: Final = (1 << 20, 1 << 15, 1 << 15)
"""The largest batch, inputs and outputs."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A layer of F `inputs` and O `outputs` on `batch` examples, in tiles of `rows` x `features` and `features` x
    `columns`."""

    batch: int
    inputs: int
    outputs: int
    rows: int
    features: int
    columns: int

    @property
    def row_tiles(self) -> int:
        return -(-self.batch // self.rows)

    @property
    def feature_tiles(self) -> int:
        return -(-self.inputs // self.features)

    @property
    def column_tiles(self) -> int:
        return -(-self.outputs // self.columns)

    @property
    def up(self) -> int:
        """Ciphertexts that go to the evaluator."""
        return self.row_tiles * self.feature_tiles

    @property
    def down(self) -> int:
        """Ciphertexts that come back."""
        return self.row_tiles * self.column_tiles

    @property
    def scalar(self) -> bool:
        """Whether weights are scalars: one ciphertext a feature, the batch in its coefficients."""
        return self.features == 1 and self.columns == 1

    @property
    def read(self) -> NDArray[np.intp]:
        """The coefficients (rows * columns,) of a product that hold outputs, row after row."""
        return np.arange(1, self.rows * self.columns + 1) * self.features - 1

    def polynomials(self, x: Integers) -> Integers:
        """Polynomials (row_tiles, feature_tiles, N) of `x` (B, F)."""
        tiles, pad = self.row_tiles, self.feature_tiles
        padded = np.zeros((tiles * self.rows, pad * self.features), np.int64)
        padded[: self.batch, : self.inputs] = x
        placed = np.zeros((tiles, pad, self.rows, self.columns, self.features), np.int64)
        placed[:, :, :, 0] = padded.reshape(tiles, self.rows, pad, self.features).transpose(0, 2, 1, 3)
        out = np.zeros((tiles, pad, DEGREE), np.int64)
        out[..., : self.rows * self.columns * self.features] = placed.reshape(tiles, pad, -1)
        return out

    def values(self, polynomials: Integers) -> Integers:
        """What `polynomials` began with."""
        tiles, pad, used = self.row_tiles, self.feature_tiles, self.rows * self.columns * self.features
        placed = polynomials[..., :used].reshape(tiles, pad, self.rows, self.columns, self.features)[:, :, :, 0]
        return placed.transpose(0, 2, 1, 3).reshape(tiles * self.rows, -1)[: self.batch, : self.inputs]

    def columns_of(self, weights: Integers) -> Iterator[Integers]:
        """For every tile of outputs the polynomials (feature_tiles, N) of `weights` (F, O)."""
        pad = self.feature_tiles
        padded = np.zeros((pad * self.features, self.column_tiles * self.columns), np.int64)
        padded[: self.inputs, : self.outputs] = weights
        for start in range(0, padded.shape[1], self.columns):
            part = padded[:, start : start + self.columns].reshape(pad, self.features, self.columns)
            out = np.zeros((pad, DEGREE), np.int64)
            out[:, : self.features * self.columns] = part[:, ::-1].transpose(0, 2, 1).reshape(pad, -1)
            yield out

    def tiled(self, outputs: Integers) -> Integers:
        """Outputs (B, O) in the order they are read in: (row_tiles, column_tiles, rows * columns), padded with 0."""
        rows, columns = self.row_tiles, self.column_tiles
        padded = np.zeros((rows * self.rows, columns * self.columns), outputs.dtype)
        padded[: self.batch, : self.outputs] = outputs
        parts = padded.reshape(rows, self.rows, columns, self.columns).transpose(0, 2, 1, 3)
        return parts.reshape(rows, columns, -1)

    def untiled(self, tiles: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `tiled` began with."""
        parts = tiles.reshape(self.row_tiles, self.column_tiles, self.rows, self.columns).transpose(0, 2, 1, 3)
        flat = parts.reshape(self.row_tiles * self.rows, self.column_tiles * self.columns)
        return flat[: self.batch, : self.outputs]


@functools.lru_cache(maxsize=256)
def packing(batch: int, inputs: int, outputs: int) -> Packing:
    """The packing of fewest ciphertexts, both ways together, for this batch and layer: the same at both ends.

    Small batches end up as few polynomials that hold many features and outputs, batches of N as one ciphertext a
    feature. Raises BadInput for sizes out of range.
    """
    sizes = (batch, inputs, outputs)
    if not all(1 <= size <= most for size, most in zip(sizes, MOST, strict=True)):
        raise BadInput(f"A layer of {inputs} inputs and {outputs} outputs on {batch} examples is none; see MOST.")
    return min(_candidates(*sizes), key=lambda p: (p.up + p.down, p.up * p.column_tiles, p.features))


def _candidates(batch: int, inputs: int, outputs: int) -> Iterator[Packing]:
    for row_parts in _parts(batch):
        rows = -(-batch // row_parts)
        for column_parts in _parts(outputs):
            columns = -(-outputs // column_parts)
            features = min(inputs, DEGREE // (rows * columns))
            if features:
                even = -(-inputs // -(-inputs // features))  # tiles of one size, as small as their number allows
                yield Packing(batch, inputs, outputs, rows, even, columns)


def _parts(size: int) -> list[int]:
    """Into how many tiles `size` may be cut: every number up to 16, then in steps of an eighth."""
    counts, count = [], 1
    while count < size:
        counts.append(count)
        count += max(1, count // 8)
    return [*counts, size]
