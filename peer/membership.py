"""Who is believed to be alive: heartbeats and suspicion, sans-IO.

A neighbour is present while it was heard within `patience` seconds. A hint that its connection broke shortens that to
`grace`: a killed process is noticed at once, and a mere reconnect is forgiven. A neighbour that said goodbye is gone
for good, unless it begins anew (`renew`). In a mesh that grows, neighbours are added, and forgotten after long silence.
"""

from collections.abc import Iterable

from veilmesh.peer.machine import PeerId

__all__ = ["Membership"]


class Membership:
    """One peer's view of its neighbours.

    Args:
        neighbours: all it should hear from.
        patience: seconds of silence after which a neighbour is suspected.
        grace: seconds of silence that are forgiven after its connection broke.
    """

    def __init__(self, neighbours: Iterable[PeerId], patience: float, grace: float) -> None:
        self._patience = patience
        self._grace = grace
        self._deadline: dict[PeerId, float | None] = dict.fromkeys(neighbours)  # None: never heard
        self._last: dict[PeerId, float] = {}  # when it was heard, or added
        self._left: set[PeerId] = set()

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._deadline

    @property
    def everybody(self) -> frozenset[PeerId]:
        """All neighbours, alive or not."""
        return frozenset(self._deadline)

    @property
    def present(self) -> frozenset[PeerId]:
        """Those believed to be alive and taking part."""
        return frozenset(p for p, deadline in self._deadline.items() if deadline is not None and p not in self._left)

    @property
    def listening(self) -> frozenset[PeerId]:
        """Those that are there, taking part or not: one that said goodbye still waits for ours."""
        return frozenset(p for p, deadline in self._deadline.items() if deadline is not None)

    @property
    def unheard(self) -> list[PeerId]:
        """Those that have not been heard at all, or not lately."""
        return [p for p, deadline in self._deadline.items() if deadline is None and p not in self._left]

    def add(self, peer: PeerId, now: float) -> None:
        """`peer` is a neighbour from now on; it has not been heard yet."""
        self._deadline[peer] = None
        self._last[peer] = now

    def renew(self, peer: PeerId, now: float) -> bool:
        """`peer` has begun anew, whatever it said before, and is not heard yet; whether that changes who is present."""
        was_present = self._deadline[peer] is not None and peer not in self._left
        self._left.discard(peer)
        self.add(peer, now)
        return was_present

    def drop(self, peer: PeerId) -> None:
        """`peer` is no neighbour any more."""
        del self._deadline[peer]
        self._last.pop(peer, None)
        self._left.discard(peer)

    def silent_since(self, then: float) -> list[PeerId]:
        """Those that have not been heard since time `then`: never, or before it. The initial ones wait to be heard."""
        return [p for p, last in self._last.items() if last <= then and self._deadline[p] is None]

    def heard(self, peer: PeerId, now: float) -> bool:
        """`peer` said something; whether that changes who is present."""
        if peer not in self._deadline or peer in self._left:
            return False
        back = self._deadline[peer] is None
        self._deadline[peer] = now + self._patience
        self._last[peer] = now
        return back

    def broken(self, peer: PeerId, now: float) -> None:
        """The transport lost its connection to `peer`."""
        deadline = self._deadline.get(peer)
        if deadline is not None:
            self._deadline[peer] = min(deadline, now + self._grace)

    def left(self, peer: PeerId) -> bool:
        """`peer` said goodbye; whether that changes who is present."""
        before = self.present
        if peer in self._deadline:
            self._left.add(peer)
        return self.present != before

    def tick(self, now: float) -> list[PeerId]:
        """Those whose time is up at `now`: they are no longer present."""
        silent = [p for p, deadline in self._deadline.items() if deadline is not None and deadline <= now]
        for peer in silent:
            self._deadline[peer] = None
        return [p for p in silent if p not in self._left]
