"""The upper half of every float32 (bfloat16): 2 bytes a coordinate, within 0.4 % of it, over float32's whole range.

Layout: d little-endian 16-bit words, each the sign, the exponent and the first 7 bits of the mantissa of a float32
whose other 16 bits are zero. Rounded to the nearest, to the even one of two that are as near (the rounding of IEEE 754,
and of what computes in bfloat16); what would become infinite is rounded down.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import CODECS, Decoded, Vector
from veilmesh.crypto.codecs.checks import local_vector, require_length

__all__ = ["BFloat16"]

_LARGEST: Final = 0x7F7F  # finite; the next is infinity
_AT_A_TIME: Final = 1 << 16


@CODECS.register("bf16")
@dataclass(frozen=True, slots=True)
class BFloat16:
    """The nearest bfloat16 of each coordinate, within 0.4 % of it: no scales, no noise, half of `dense`."""

    wire_id: ClassVar[int] = 13
    lossless: ClassVar[bool] = False

    def encode(self, x: Vector, rng: np.random.Generator) -> bytes:
        """2 d bytes; draws nothing from `rng`."""
        bits = local_vector(x).view(np.uint32)
        halves = np.empty(bits.size, "<u2")
        for start in range(0, bits.size, _AT_A_TIME):  # a large model needs no second copy of itself
            halves[start : start + _AT_A_TIME] = _rounded(bits[start : start + _AT_A_TIME])
        return halves.tobytes()

    @classmethod
    def decode(cls, raw: bytes, dimension: int) -> Decoded:
        """Every coordinate. Raises RemoteError(MISMATCH) on another length, MALFORMED on NaN or infinity."""
        require_length(raw, 2 * dimension, dimension)
        values = np.frombuffer(raw, "<u2").astype(np.uint32)
        values <<= np.uint32(16)
        if not np.isfinite(values.view(np.float32)).all():
            raise RemoteError(Refusal.MALFORMED, "NaN or infinity")
        return Decoded(values.view(np.float32))


def _rounded(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The upper halves of floats that are finite, to the nearest."""
    halves = bits >> np.uint32(16)
    up = ((bits & np.uint32(0xFFFF)) + np.uint32(0x7FFF) + (halves & np.uint32(1))) >> np.uint32(16)
    up[(halves & np.uint32(0x7FFF)) == _LARGEST] = 0
    rounded: NDArray[np.uint32] = halves + up
    return rounded
