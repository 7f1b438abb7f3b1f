"""Who hears whom and who adds for whom in `blind_proxy`: drawn alike by everybody from the public seed.

The roster is seated at a round table, in an order drawn from the public seed. Everybody's neighbours sit at the same
distances from it; so does its proxy, at one distance in every round, that goes through all there are: everybody adds
for one other in a round, and everybody's turn comes. Whoever sits further off than the neighbours is taken first; where
all are neighbours, the proxy is one of them, and hides its own part in the sum as the others do.
"""

from dataclasses import dataclass
from functools import lru_cache

from veilmesh.core import BadInput, seed_number

__all__ = ["Table", "distances"]


def distances(peers: int, near: int) -> tuple[int, ...]:
    """The distances at which `near` neighbours sit (0: all others). Raises BadInput if no table seats them so."""
    if near == 0 or near >= peers - 1:
        return tuple(range(1, peers))
    if near % 2 and peers % 2:
        raise BadInput(f"{peers} peers cannot have {near} neighbours each; take an even number, or 0 for all.")
    half = near // 2
    opposite = (peers // 2,) if near % 2 else ()
    return (*range(1, half + 1), *opposite, *range(peers - half, peers))


@lru_cache(maxsize=16)
def _seats(seed: int, peers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Who sits where, and where everybody sits."""
    seated = tuple(sorted(range(peers), key=lambda place: (seed_number(seed, "seat", place), place)))
    return seated, tuple(seated.index(place) for place in range(peers))


@dataclass(frozen=True)
class Table:
    """The seating of one run; peers are places in the roster."""

    peers: int
    seed: int
    near: int

    def neighbours(self, place: int) -> tuple[int, ...]:
        """Whose sum `place` is told, in roster order; the same peers are told its part."""
        return tuple(sorted(self._at(place, distance) for distance in distances(self.peers, self.near)))

    def proxy(self, round_: int, place: int) -> int:
        """Who adds for `place` in a round."""
        return self._at(place, self._distance(round_))

    def served(self, round_: int, place: int) -> int:
        """For whom `place` adds in a round."""
        return self._at(place, -self._distance(round_))

    def _distance(self, round_: int) -> int:
        near = distances(self.peers, self.near)
        free = [d for d in range(1, self.peers) if d not in near] or list(near)
        return sorted(free, key=lambda d: (seed_number(self.seed, "proxy", d), d))[round_ % len(free)]

    def _at(self, place: int, distance: int) -> int:
        seated, seat = _seats(self.seed, self.peers)
        return seated[(seat[place] + distance) % self.peers]
