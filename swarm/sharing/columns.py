"""Columns of weight matrices: what FedQSN hides, because without its column a matrix never sees a hidden unit.

Source: FedQSN (arXiv 2508.18911), section 4: masks multiply the vectors between layers, which is to zero columns of the
weight matrices that these vectors meet. A matrix (out, in) has one column for each unit it sees, a convolution
(out, in, kh, kw) one for each channel; vectors (biases, norms) have none, and are always shown.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.swarm.guards.base import Layout
from veilmesh.swarm.sharing.base import Setting
from veilmesh.swarm.sharing.whole_model import network

__all__ = ["Columns", "columns_of"]


@dataclass(frozen=True)
class Columns:
    """The columns of a network, numbered through from its first matrix to its last.

    `of` (d,): the column that each coordinate is in, -1 where it is in none. `counts`: how many each matrix has.
    """

    of: NDArray[np.int64]
    counts: tuple[int, ...]

    @classmethod
    def in_layout(cls, layout: Layout) -> "Columns":
        """Of a network whose parameters lie so in the flat vector."""
        pieces: list[NDArray[np.int64]] = []
        counts: list[int] = []
        for _, shape, _ in layout:
            if len(shape) < 2:
                pieces.append(np.full(int(np.prod(shape)), -1))
                continue
            numbers = sum(counts) + np.arange(shape[1]).reshape(1, -1, *(1 for _ in shape[2:]))
            pieces.append(np.broadcast_to(numbers, shape).reshape(-1))
            counts.append(shape[1])
        return cls(np.concatenate(pieces) if pieces else np.zeros(0, np.int64), tuple(counts))

    @property
    def total(self) -> int:
        """How many columns there are."""
        return sum(self.counts)

    @cached_property
    def matrices(self) -> tuple[slice, ...]:
        """Which columns each matrix has."""
        ends = np.cumsum(self.counts).tolist()
        return tuple(slice(end - count, end) for end, count in zip(ends, self.counts, strict=True))

    def drawn(self, share: float, rng: np.random.Generator, among: Mask | None = None) -> Mask:
        """A mask (columns,) that keeps all of `among` (None: all) but round(share x those there are) of each matrix,
        and at least one."""
        kept = np.ones(self.total, np.bool_) if among is None else among.copy()
        for matrix in self.matrices:
            there = np.flatnonzero(kept[matrix])
            gone = min(round(share * there.size), max(there.size - 1, 0))
            kept[matrix.start + rng.permutation(there)[:gone]] = False
        return kept

    def spread(self, mask: Mask) -> Mask:
        """Which coordinates (d,) a mask (columns,) keeps: what is in no column, always."""
        kept: Mask = np.append(mask, True)[self.of]  # -1 is the last
        return kept

    def scale(self, mask: Mask) -> Vector:
        """The factor (d,) that makes a drawn mask unbiased: columns over columns kept, of each matrix; 0 where masked,
        1 in no column. FedQSN's 1 / (1 - p), with the share that was really drawn."""
        factors = np.ones(self.total + 1, np.float32)
        for matrix in self.matrices:
            kept = max(int(np.count_nonzero(mask[matrix])), 1)
            factors[matrix] = mask[matrix] * (mask[matrix].size / kept)
        scaled: Vector = factors[self.of]
        return scaled

    def shown(self, x: Vector) -> Mask:
        """Which columns (columns,) of `x` (d,) hold anything but zeros."""
        inside = self.of >= 0
        return np.bincount(self.of[inside], weights=x[inside] != 0, minlength=self.total) > 0


def columns_of(setting: Setting) -> Columns:
    """Of the network that the scenario names."""
    from veilmesh.tasks.models.build import build_model, layout

    return Columns.in_layout(tuple(layout(build_model(*network(setting)))))
