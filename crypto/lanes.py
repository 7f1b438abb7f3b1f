"""Several quantised coordinates in one integer, with room for their sum: lane packing (BatchCrypt: Zhang et al. 2020,
section 4).

A coordinate is a level from -L to L, L = 2^(value_bits-1) - 1, stored as level + L, so that it is never negative. A
lane is `value_bits` and the guard bits that a sum of `peers` vectors needs; lane j of slot i holds coordinate
j * slots + i. Pure arithmetic on integers: nothing here is secret, and nothing is random but the rounding.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError, Refusal, RemoteError

__all__ = ["Integers", "Packing", "guard_bits", "quantised"]

Integers: TypeAlias = NDArray[np.int64]

_BLOCK: Final = 1 << 16  # coordinates rounded at once: what fits a cache


def guard_bits(peers: int) -> int:
    """Bits by which a sum of `peers` numbers may be longer than each of them."""
    return (peers - 1).bit_length()


def quantised(x: NDArray[np.float32], limit: float, largest: int, rng: np.random.Generator | None) -> Integers:
    """Levels (d,) from -`largest` to `largest` for `x` (d,) clipped to +-`limit`.

    Rounded to the nearest (ties to even) without `rng`; with it at random to one of the two nearest, so that the mean
    is `x` (stochastic rounding), which draws one uniform number a coordinate.
    """
    levels = np.empty(x.size, np.int64)
    for start in range(0, x.size, _BLOCK):
        part = x[start : start + _BLOCK] * np.float64(largest / limit)
        part = np.rint(part) if rng is None else np.floor(part + rng.random(part.size))
        levels[start : start + _BLOCK] = np.clip(part, -largest, largest)
    return levels


@dataclass(frozen=True, slots=True)
class Packing:
    """`lanes` lanes of `width` bits in each of `slots` integers; a coordinate takes `value_bits` of its lane."""

    slots: int
    lanes: int
    width: int
    value_bits: int

    def __post_init__(self) -> None:
        if not (self.lanes >= 1 and 2 <= self.value_bits <= self.width and self.lanes * self.width <= 62):
            raise LocalError(f"{self.lanes} lanes of {self.width} bits for values of {self.value_bits} bits")

    @property
    def largest(self) -> int:
        """L, the largest level."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def capacity(self) -> int:
        """Coordinates that one set of slots holds."""
        return self.slots * self.lanes

    def pack(self, levels: Integers) -> Integers:
        """Slots (slots,) that hold `levels` (at most `capacity`); the rest holds level 0."""
        lanes = np.full(self.capacity, self.largest, np.int64)
        lanes[: levels.size] += levels
        packed = lanes[: self.slots]
        for lane in range(1, self.lanes):
            packed |= lanes[lane * self.slots : (lane + 1) * self.slots] << (lane * self.width)
        return packed

    def unpack(self, packed: Integers, size: int, count: int) -> Integers:
        """The first `size` levels of a sum of `count` vectors that were packed so.

        Raises RemoteError(MISMATCH) where no `count` honest vectors have that sum, in any lane, padding included.
        """
        if (packed < 0).any() or (packed >> (self.lanes * self.width)).any():
            raise RemoteError(Refusal.MISMATCH, "a sum that is larger than its lanes")
        levels = np.empty(self.capacity, np.int64)
        for lane in range(self.lanes):
            part = packed >> (lane * self.width) & ((1 << self.width) - 1)
            levels[lane * self.slots : (lane + 1) * self.slots] = part
        levels -= count * self.largest
        if levels.max(initial=0) > count * self.largest or levels[size:].any():
            raise RemoteError(Refusal.MISMATCH, f"a sum that {count} vectors cannot have")
        return levels[:size]
