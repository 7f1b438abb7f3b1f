"""Who is there, and whom of them a peer speaks to: fixed from the start, or anew with everybody who comes or goes."""

from collections.abc import Mapping

from veilmesh.peer.machine import PeerId
from veilmesh.swarm.strategies.base import Kit

__all__ = ["Links"]


class Links:
    """One peer's row of W.

    Fixed (`kit.links` is None): the row is `kit.weights`, and its keys are the neighbours, there or not. Elastic: the
    row follows from who is there. A round keeps the row it began with, `row`; `wish` is the row of the next one.
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self.elastic = kit.links is not None
        self.present: frozenset[PeerId] = frozenset()  # without ourselves
        self.row: Mapping[PeerId, float] = {} if self.elastic else kit.weights
        self.wish: Mapping[PeerId, float] = self.row

    def change(self, present: frozenset[PeerId]) -> frozenset[PeerId]:
        """Those of `present` that were not there before."""
        before, self.present = self.present, present - {self._kit.me}
        if self._kit.links is not None:
            members = sorted({*self.present, self._kit.me})
            row = self._kit.links(members)
            self.wish = {p: row[p] for p in members if p in row}
        return self.present - before

    def turn(self) -> None:
        """A round begins."""
        self.row = self.wish

    @property
    def neighbours(self) -> tuple[PeerId, ...]:
        """This round's, in the order of all sums."""
        order = self.row if self.elastic else self._kit.order
        return tuple(p for p in order if p in self.row and p != self._kit.me)

    @property
    def hearers(self) -> tuple[PeerId, ...]:
        """Who is there, and a neighbour now or from the next round on: whom to tell what we say."""
        peers = self.neighbours if self.row is self.wish else sorted({*self.row, *self.wish} - {self._kit.me})
        return tuple(p for p in peers if p in self.present)
