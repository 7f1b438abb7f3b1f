"""Updates as two thin matrices whose sums a group makes by masks: PowerSGD (Vogels et al. 2019, algorithm 1 and 2).

An update (d,) with what was left out before, e_i, is a near-square matrix M_i (m, n) as in `crypto.codecs.lowrank`. All
have the same orthonormal Q (n, r): drawn at first, then from the last round's sum. Two sums make a round,

    P = sum over S of M_i Q                         (m, r): the first; P_hat is an orthonormal basis of its columns
    Q = sum over S' of M_i^T P_hat / |S'|           (n, r): the second
    x <- x + P_hat Q^T;  e_i = M_i - P_hat P_hat^T M_i

so that r (m + n) words are said in place of m n, and both sums are exact. S and S' may differ: the step is the mean of
the projections of what those in S' wanted. But of a member, or a cohort, that is in only one of both, P_hat^T M_i Q can
be told from the two sums: r x r numbers.
"""

import math

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.lowrank import orthonormal
from veilmesh.crypto.fixed import FixedPoint, Words
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.secure_session import GroupSum

__all__ = ["HiddenFactors"]

Matrix = NDArray[np.float32]


class HiddenFactors:
    """One peer's side of it, with its memory. Models stay alike as long as everybody has every round's sums: a peer
    without one of them stays where it is, and for good apart by that round's step. A round in which this peer does not
    survive leaves its memory as it was: what it wanted is lost, as it would pile up."""

    def __init__(self, kit: Kit, rank: int) -> None:
        self._kit = kit
        size = kit.initial.size
        n = math.isqrt(size - 1) + 1
        self._shape = (-(-size // n), n)
        self._rank = min(rank, *self._shape)
        self._memory: Matrix = np.zeros(self._shape, np.float32)
        self._wanted = self._memory  # M of this round
        self._columns = self._refilled(np.zeros((n, self._rank), np.float32), 0)  # Q
        self._basis: Matrix = np.zeros((self._shape[0], self._rank), np.float32)  # P_hat

    @property
    def lengths(self) -> tuple[int, ...]:
        """Words in each of a round's sums."""
        return tuple(side * self._rank for side in self._shape)

    @property
    def left_out(self) -> Vector:
        """(d,) what this peer still has to say."""
        return self._memory.reshape(-1)[: self._kit.initial.size]

    def words(self, x: Vector, wanted: Vector, fixed: FixedPoint, round_: int) -> tuple[Words, int]:
        """This peer's part of the first sum, and how many numbers had to be clipped."""
        update: Matrix = np.zeros(self._shape, np.float32)
        update.reshape(-1)[: x.size] = wanted - x
        self._wanted = self._memory + update
        return _said(self._wanted @ self._columns, fixed)

    def answer(self, fixed: FixedPoint, summed: GroupSum) -> tuple[Words, int]:
        """Its part of the second, from the first sum."""
        total = fixed.decode_sum(summed.words).reshape(-1, self._rank) / len(summed.survivors)
        self._basis = orthonormal(total.astype(np.float32))
        return _said(self._wanted.T @ self._basis, fixed)

    def mixed(self, x: Vector, wanted: Vector, fixed: FixedPoint, round_: int, summed: GroupSum) -> Vector:
        """The next model (d,), from the second sum; where parts of it are missing, the same as before."""
        if summed.missing:
            return x
        mean = fixed.decode_sum(summed.words).reshape(-1, self._rank) / len(summed.survivors)
        step = self._basis.astype(np.float64) @ mean.T
        if self._kit.me in summed.survivors:
            self._memory = self._wanted - self._basis @ (self._basis.T @ self._wanted)
        self._columns = self._refilled(mean.astype(np.float32), round_ + 1)
        return x + step.astype(np.float32).reshape(-1)[: x.size]

    def alone(self, x: Vector, wanted: Vector) -> Vector:
        """The next model where there is no sum: a lone step would set this peer apart for good."""
        return x

    def _refilled(self, columns: Matrix, round_: int) -> Matrix:
        """An orthonormal basis (n, r) that begins with that of `columns`: where they depend on each other, with others
        that everybody draws alike, or the directions would be fewer for good."""
        basis = orthonormal(columns)
        drawn = generator(self._kit.seed, "columns", round_).standard_normal(columns.shape, np.float32)
        return orthonormal(np.where(basis.any(axis=0), basis, drawn))


def _said(matrix: Matrix, fixed: FixedPoint) -> tuple[Words, int]:
    said = matrix.reshape(-1)
    return fixed.encode(said), int((np.abs(said) > fixed.limit).sum())
