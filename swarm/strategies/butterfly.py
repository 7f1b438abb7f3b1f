"""The butterfly of an all-reduce: who averages which part of a vector, and what that comes to. Pure, without state.

A vector of (d,) is cut in as many parts as the group has members, as even as can be; member k averages part k, of
everybody (reduce-scatter), and hands it back to everybody (all-gather). Where member k is gone, the next one that is
there takes part k over.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["Butterfly", "Piece", "mean"]

Piece = tuple[Vector, Vector]
"""What is said of a part: its values, and its levels (see `group_all_reduce`), which may be none."""


@dataclass(frozen=True)
class Butterfly:
    """One group's division of labour in one round.

    `group`: its members in roster order; `dimension`: d; `stripe`, `every`: of the coordinates, those whose number
    leaves `stripe` when divided by `every` are levels.
    """

    group: tuple[PeerId, ...]
    dimension: int
    stripe: int
    every: int

    @property
    def parts(self) -> range:
        """The parts, by number; nobody gets an empty one."""
        return range(min(len(self.group), self.dimension))

    def span(self, part: int) -> slice:
        """The coordinates of a part."""
        count = len(self.parts)
        return slice(self.dimension * part // count, self.dimension * (part + 1) // count)

    def length(self, part: int) -> int:
        """How many coordinates a part has."""
        span = self.span(part)
        return int(span.stop - span.start)

    def levels(self, part: int) -> slice:
        """The levels among the coordinates of a part."""
        span = self.span(part)
        return slice(span.start + (self.stripe - span.start) % self.every, span.stop, self.every)

    def level_count(self, part: int) -> int:
        """How many levels a part has."""
        levels = self.levels(part)
        return len(range(levels.start, levels.stop, levels.step))

    def reducer(self, part: int, alive: Collection[PeerId]) -> PeerId:
        """Who averages a part, if `alive` are those that are there; one of them is a member."""
        turns = (*self.group[part:], *self.group[:part])
        return next(peer for peer in turns if peer in alive)


def mean(pieces: Sequence[Piece]) -> Piece:
    """The equally weighted average, summed in the order given, in double precision."""
    return _mean([values for values, _ in pieces]), _mean([levels for _, levels in pieces])


def _mean(vectors: Sequence[Vector]) -> Vector:
    total = np.zeros(vectors[0].shape)
    for vector in vectors:
        total += vector
    return (total / len(vectors)).astype(np.float32)
