"""A low-rank factorisation (PowerSGD: Vogels et al. 2019, algorithm 1), of the flat vector as a matrix.

A codec knows no layers. The vector (d,) becomes a near-square matrix M (m, n), n = ceil(sqrt(d)), row by row, the end
filled up with zeros; or one of `columns` columns, which loses less where that is the row length of the model's largest
weight. What is sent is P (m, r), orthonormal, and Q = M^T P; what is read is P Q^T, the projection of M onto r columns.

A biased compressor: use it on differences with memory (public copies or `feedback`), never on bare models. It keeps no
state, so there is no warm start; power iterations from a random start take its place (Halko et al. 2011, algorithm
4.3).

Layout: d, n, u32, and r, u8, big-endian; the largest magnitude s of M; P; Q / s; all float32 little-endian, row by row.
"""

import math
import struct
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.codecs.base import CODECS, Decoded, Vector
from veilmesh.crypto.codecs.checks import local_vector, received_floats, require_dimension
from veilmesh.crypto.codecs.planes import Reader

__all__ = ["LowRank", "orthonormal"]

_HEAD: Final = struct.Struct("!IIB")  # d, columns, rank
_LARGEST_RANK: Final = 64  # the work of a decoder grows with it

Matrix = NDArray[np.float32]


@CODECS.register("low-rank")
@dataclass(frozen=True, slots=True)
class LowRank:
    """The projection of the vector, as a matrix of `columns` columns (0: near-square), onto `rank` of its directions.

    `iterations` of the power method sharpen the choice of directions. Never more values than the vector has, but for
    rank 1.
    """

    wire_id: ClassVar[int] = 11
    lossless: ClassVar[bool] = False

    rank: int = 4
    columns: int = 0
    iterations: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= _LARGEST_RANK:
            raise BadInput(f"Codec 'low-rank' takes a rank of 1 to {_LARGEST_RANK}, not {self.rank}.")
        if not (0 <= self.columns < 1 << 32 and 0 <= self.iterations <= 16):
            raise BadInput("Codec 'low-rank' takes columns of 0 (near-square) or more, and 0 to 16 iterations.")

    def encode(self, x: Vector, rng: np.random.Generator) -> bytes:
        """4 r (m + n) + 13 bytes; draws the (n, r) normal numbers of the start."""
        x = local_vector(x)
        n = min(self.columns or math.isqrt(max(x.size - 1, 0)) + 1, max(x.size, 1))
        m = -(-x.size // n)
        rank = max(1, min(self.rank, m, n, x.size // max(m + n, 1)))
        scale = np.abs(x).max(initial=0)
        matrix = np.zeros((m, n), np.float32)
        np.divide(x, scale if scale > 0 else 1, out=matrix.reshape(-1)[: x.size])
        start = rng.standard_normal((n, rank), np.float32)
        p = _directions(matrix, start, self.iterations)
        parts = [np.array([scale]), p, matrix.T @ p]
        return _HEAD.pack(x.size, n, rank) + b"".join(part.astype("<f4").tobytes() for part in parts)

    @classmethod
    def decode(cls, raw: bytes, dimension: int) -> Decoded:
        """Every coordinate, none larger than the largest encoded. Raises RemoteError(MALFORMED or MISMATCH)."""
        reader = Reader(raw)
        said, n, rank = reader.head(_HEAD)
        require_dimension(said, dimension)
        if not 1 <= n <= max(dimension, 1) or not 1 <= rank <= _LARGEST_RANK:
            raise RemoteError(Refusal.MALFORMED, f"rank {rank} in {n} columns of {dimension} coordinates")
        m = -(-dimension // n)
        (scale,) = received_floats(reader.take(4), count=1, offset=0)
        p = received_floats(reader.take(4 * m * rank), count=m * rank, offset=0).reshape(m, rank)
        q = received_floats(reader.take(4 * n * rank), count=n * rank, offset=0).reshape(n, rank)
        reader.end()
        values = _product(p, q)
        if scale < 0 or not np.isfinite(values).all():
            raise RemoteError(Refusal.MALFORMED, "a negative scale, or factors whose product is not finite")
        np.clip(values, -1, 1, out=values)
        return Decoded((values * scale).reshape(-1)[:dimension])


def _directions(matrix: Matrix, start: Matrix, iterations: int) -> Matrix:
    """An orthonormal basis (m, r) of where `matrix` (m, n) sends `start` (n, r), after so many power iterations."""
    p = orthonormal(matrix @ start)
    for _ in range(iterations):
        p = orthonormal(matrix @ (matrix.T @ p))
    return p


def orthonormal(a: Matrix) -> Matrix:
    """Gram and Schmidt's basis of the columns of a (m, r); zero where a column depends on those before it."""
    basis = a.astype(np.float64)
    for j in range(basis.shape[1]):
        before = np.linalg.norm(basis[:, j])
        for _ in range(2):  # once leaves the rounding errors of columns that nearly depend on each other
            basis[:, j] -= basis[:, :j] @ (basis[:, :j].T @ basis[:, j])
        norm = np.linalg.norm(basis[:, j])
        basis[:, j] = basis[:, j] / norm if norm > 1e-6 * before else 0
    return basis.astype(np.float32)


def _product(p: Matrix, q: Matrix) -> Matrix:
    """P Q^T, one rank after the other: a matrix product's sums differ between machines in the last bit, and with them
    the public copies that all of a peer's neighbours have to agree on."""
    total = np.zeros((len(p), len(q)), np.float32)
    term = np.empty_like(total)
    with np.errstate(over="ignore", invalid="ignore"):
        for left, right in zip(p.T, q.T, strict=True):
            total += np.multiply.outer(left, right, out=term)
    return total
