"""NormalFloat in two to four bits, for vectors whose zeros come in blocks: what is zero takes no bits at all.

The values are those that FedQSN (arXiv 2508.18911, section 4) rounds its proxies to: quantiles of a standard
normal, an exact zero among them (Dettmers et al. 2023, "QLoRA", appendix E; at four bits they are that paper's).

Layout: d and k, u32, k of d not being zero, the block, u16, and the bits, u8, big-endian; a plane (see `planes`) that
is a bitmap of what is not zero, the first coordinate in the highest bit: columns of zeros repeat in it, and zstd leaves
little of them. Then, of what is not zero alone: each block's largest magnitude (see `chunks`), and a plane of codes,
the highest bit first.
"""

import struct
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.codecs import chunks
from veilmesh.crypto.codecs.base import CODECS, Decoded, Vector
from veilmesh.crypto.codecs.checks import local_vector, require_dimension
from veilmesh.crypto.codecs.planes import Reader, store
from veilmesh.crypto.codecs.selection import mask_of_bits

__all__ = ["NormalFloat", "normal_values"]

_HEAD: Final = struct.Struct("!IIHB")  # d, k, block, bits
_LEVEL: Final = 9  # zstd's, for the bitmap
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 4096
_FEWEST, _MOST = 2, 4  # bits
_TAIL: Final = 0.9677083  # the outermost quantile of appendix E


@cache
def normal_values(bits: int) -> Vector:
    """The 2^bits values in [-1, 1], ascending: 2^(bits-1) positive ones, zero, and one negative one less."""
    half = 2 ** (bits - 1)
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(_TAIL, 0.5, half + 1)[:-1].tolist()]
    below = [-quantile(p) for p in np.linspace(_TAIL, 0.5, half)[:-1].tolist()]
    return (np.array(sorted([*above, 0.0, *below])) / above[0]).astype(np.float32)


@CODECS.register("normal-float")
@dataclass(frozen=True, slots=True)
class NormalFloat:
    """The nearest of 2^bits normal quantiles, scaled by each block's largest magnitude; zeros are left out: biased.

    `bits`: 2 to 4, of a coordinate that is not zero. `block`: how many of those share a scale.
    """

    wire_id: ClassVar[int] = 12
    lossless: ClassVar[bool] = False

    bits: Literal[2, 3, 4] = 4
    block: int = 64

    def __post_init__(self) -> None:
        if not _SMALLEST_BLOCK <= self.block <= _LARGEST_BLOCK:
            raise BadInput(
                f"Codec 'normal-float' takes a block of {_SMALLEST_BLOCK} to {_LARGEST_BLOCK}, not {self.block}."
            )

    def encode(self, x: Vector, rng: np.random.Generator) -> bytes:
        """At most d / 8 + bits k / 8 + 2 ceil(k / block) + 15 bytes, k of x not being zero; draws nothing."""
        there = local_vector(x) != 0
        count = int(np.count_nonzero(there))
        rows = chunks.chunked(x[there], self.block)
        scales = np.abs(rows).max(axis=1, initial=0)
        codes = _nearest(chunks.unscaled(rows, chunks.rounded_scales(scales)), self.bits)
        plane = _packed(codes.reshape(-1)[:count], self.bits)
        head = _HEAD.pack(x.size, count, self.block, self.bits)
        return b"".join(
            [head, store(np.packbits(there).tobytes(), level=_LEVEL), chunks.scales_bytes(scales), store(plane)]
        )

    @classmethod
    def decode(cls, raw: bytes, dimension: int) -> Decoded:
        """Every coordinate. Raises RemoteError(MALFORMED or MISMATCH)."""
        reader = Reader(raw)
        said, count, block, bits = reader.head(_HEAD)
        require_dimension(said, dimension)
        if not (_SMALLEST_BLOCK <= block <= _LARGEST_BLOCK and _FEWEST <= bits <= _MOST):
            raise RemoteError(Refusal.MALFORMED, f"{bits} bits in blocks of {block}")
        there = mask_of_bits(reader.plane(-(-dimension // 8)), count, dimension)
        scales = chunks.read_scales(reader, chunks.chunk_count(count, block))
        codes = _unpacked(reader.plane(chunks.packed_size(count, bits)), count, bits)
        reader.end()
        values = np.zeros(dimension, np.float32)
        values[there] = chunks.scaled(normal_values(bits)[codes], scales, block)
        return Decoded(values)


def _nearest(unit: chunks.Rows, bits: int) -> NDArray[np.uint8]:
    """The code of the value nearest to each number in [-1, 1]: how many midpoints it exceeds."""
    values = normal_values(bits)
    codes = np.zeros(unit.shape, np.uint8)
    for midpoint in (values[1:] + values[:-1]) / 2:
        codes += unit > midpoint
    return codes


def _packed(codes: NDArray[np.uint8], bits: int) -> bytes:
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :]).tobytes()


def _unpacked(plane: bytes, count: int, bits: int) -> NDArray[np.uint8]:
    given = np.unpackbits(np.frombuffer(plane, np.uint8), count=count * bits).reshape(count, bits)
    codes: NDArray[np.uint8] = np.packbits(np.pad(given, ((0, 0), (8 - bits, 0))), axis=1).reshape(-1)
    return codes
