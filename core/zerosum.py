"""Noise that cancels: what two neighbours draw alike from a secret of theirs, and add with opposite signs.

Here because peers add it in two places that do not see each other: to gradients while they train, and to updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.core.seeds import generator

__all__ = ["Pair", "zero_sum"]


@dataclass(frozen=True, slots=True)
class Pair:
    """What a peer has in common with one neighbour: a secret seed, and which of the two it is (`sign` 1 or -1)."""

    seed: int
    sign: int


def zero_sum(pairs: Sequence[Pair], dimension: int, *name: str | int) -> NDArray[np.float64]:
    """A peer's share (d,) of its neighbourhood's noise of that `name`: one standard normal vector for each pair.

    The same call at the neighbour holds the same vector with the other sign, to the last bit; over all peers of a
    graph the shares sum to zero.
    """
    total = np.zeros(dimension)
    for pair in pairs:
        total += pair.sign * generator(pair.seed, "zero-sum", *name).standard_normal(dimension)
    return total
