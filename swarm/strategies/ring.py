"""The ring of an all-reduce: in which order the parts of a vector go round, and who is next. Pure, without state.

A vector of (d,) is cut in as many parts as the ring has members. Part k starts at the member in place k and walks once
round: on the way everybody adds to it, and the last one hands the average to the first, from where it walks again.
Whoever is gone is stepped over: its part starts at the next one that is there.
"""

from collections.abc import Collection, Iterator

from veilmesh.peer.machine import PeerId
from veilmesh.swarm.strategies.butterfly import Butterfly

__all__ = ["Ring"]


class Ring:
    """One round's order of `order`'s members, and how a vector of `dimension` is cut among them.

    In all that follows `there` are those that are there, the peer that asks among them.
    """

    def __init__(self, order: tuple[PeerId, ...], dimension: int) -> None:
        self.order = order
        self._cut = Butterfly(order, dimension, 0, 1)
        self._place = {peer: place for place, peer in enumerate(order)}

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._place

    @property
    def parts(self) -> range:
        """The parts, by number; nobody gets an empty one."""
        return self._cut.parts

    def span(self, part: int) -> slice:
        """The coordinates of a part."""
        return self._cut.span(part)

    def length(self, part: int) -> int:
        """How many coordinates a part has."""
        return self._cut.length(part)

    def steps(self, part: int, peer: PeerId) -> int:
        """How many steps a part makes before it comes to `peer`, when all are there."""
        return (self._place[peer] - part) % len(self.order)

    def first(self, part: int, there: Collection[PeerId]) -> PeerId:
        """Where a part starts."""
        return next(peer for peer in self._from(part, 0) if peer in there)

    def end(self, part: int) -> PeerId:
        """Where a part ends its first walk, when all are there."""
        return self.order[part - 1]

    def after(self, part: int, peer: PeerId, there: Collection[PeerId]) -> PeerId | None:
        """To whom `peer` passes a part on; None where it is the last."""
        return next((p for p in self._from(part, self.steps(part, peer) + 1) if p in there), None)

    def behind(self, peer: PeerId, there: Collection[PeerId]) -> tuple[PeerId, ...]:
        """Those just before `peer` in the ring: the nearest that is there, last, and those gone in between."""
        found: list[PeerId] = []
        for one in self._back(self._place[peer]):
            if one == peer:
                break
            found.append(one)
            if one in there:
                break
        return tuple(found)

    def between(self, peer: PeerId, other: PeerId) -> tuple[PeerId, ...]:
        """Those that stand after `peer` and before `other`."""
        count = (self._place[other] - self._place[peer]) % len(self.order) or len(self.order)
        return tuple(self.order[(self._place[peer] + step) % len(self.order)] for step in range(1, count))

    def _from(self, part: int, steps: int) -> Iterator[PeerId]:
        """The rest of a part's walk, after so many steps."""
        return (self.order[(part + step) % len(self.order)] for step in range(steps, len(self.order)))

    def _back(self, place: int) -> Iterator[PeerId]:
        """Everybody, from the member before `place` backwards."""
        return (self.order[(place - 1 - step) % len(self.order)] for step in range(len(self.order)))
