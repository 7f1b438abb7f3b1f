"""Fixed-point integers: real numbers whose sums are exact, and which a mask can hide perfectly.

A float32 sum depends on its order, and noise added to it hides little unless it drowns it. Modulo 2^bits both are
exact: a uniform word added to an integer leaves a uniform word, and taken off again leaves the integer to the last bit
(Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", section 4).
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError
from veilmesh.crypto.codecs.base import Vector

__all__ = ["BITS", "FixedPoint", "Words", "word_type"]

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Integers modulo 2^16 or 2^32, little-endian as they stand on the wire: of a vector, (d,)."""

BITS: Final = (16, 32)


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The type of words of 16 or 32 bits."""
    if bits not in BITS:
        raise LocalError(f"words have 16 or 32 bits, not {bits}")
    return np.dtype(f"<u{bits // 8}")


@dataclass(frozen=True)
class FixedPoint:
    """Vectors as integers modulo 2^bits, as fine as they can be if the sum of `count` of them must not wrap.

    `limit`: the largest magnitude of a coordinate; what is beyond it is clipped. A word counts steps of `step`.
    """

    bits: Literal[16, 32]
    limit: float
    count: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.count < 1 or self.top < 1 or not 0 < self.limit < np.inf:
            raise LocalError(f"no fixed point of {self.bits} bits holds {self.count} x {self.limit}")

    @property
    def top(self) -> int:
        """The largest integer that stands for a coordinate: `count` of them stay below 2^(bits - 1)."""
        return int(((1 << (self.bits - 1)) - 1) // self.count)

    @property
    def step(self) -> float:
        """What one counts for: the resolution."""
        return self.limit / self.top

    def quantise(self, x: Vector, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """The integers (d,) that stand for `x` (d,): the nearest ones, or with `rng` rounded up or down at random, so
        that the mean is x itself. Raises LocalError where `x` is not finite."""
        scaled = np.asarray(x, np.float64) * (self.top / self.limit)
        if not np.isfinite(scaled).all():
            raise LocalError("what is not finite has no fixed point")
        rounded = np.rint(scaled) if rng is None else np.floor(scaled + rng.random(scaled.shape))
        return np.clip(rounded, -self.top, self.top).astype(np.int64)

    def encode(self, x: Vector, rng: np.random.Generator | None = None) -> Words:
        """The words (d,) of `x` (d,), rounded as by `quantise`."""
        return self.words(self.quantise(x, rng))

    def words(self, integers: NDArray[np.int64]) -> Words:
        """Integers (d,) modulo 2^bits."""
        return integers.astype(word_type(self.bits))  # numpy keeps the low bits: the representative below 2^bits

    def value(self, integers: NDArray[np.int64]) -> NDArray[np.float64]:
        """What integers (d,) stand for."""
        return np.multiply(integers, self.step, dtype=np.float64)

    def decode_sum(self, words: Words) -> NDArray[np.float64]:
        """What the sum (d,), modulo 2^bits, of at most `count` vectors' words stands for: exactly the sum of their
        integers, in steps."""
        return self.value(words.view(f"<i{self.bits // 8}").astype(np.int64))
