"""How much one peer may have waiting: so many things and so many bytes each, whatever the others have."""

from collections import Counter

from veilmesh.peer.machine import PeerId

__all__ = ["Allowance"]


class Allowance:
    """What is waiting for, or from, each peer.

    Args:
        things: how many may wait at once, for each peer.
        octets: how many bytes may wait at once, for each peer; one thing alone may always wait, however large.
    """

    def __init__(self, things: int, octets: int) -> None:
        self._things = things
        self._octets = octets
        self._count: Counter[PeerId] = Counter()
        self._held: Counter[PeerId] = Counter()

    def take(self, peer: PeerId, size: int) -> bool:
        """Whether `size` bytes more may wait for `peer`; if so they count from now on."""
        waiting = self._count[peer]  # a Counter does not remember what it was only asked for
        if waiting >= self._things or (waiting and self._held[peer] + size > self._octets):
            return False
        self._count[peer] += 1
        self._held[peer] += size
        return True

    def give_back(self, peer: PeerId, size: int) -> None:
        """What was taken for `size` bytes waits no more."""
        self._count[peer] -= 1
        self._held[peer] -= size
        if not self._count[peer]:  # peers come and go
            del self._count[peer], self._held[peer]
