"""What has arrived and nobody has taken yet: bounded in frames and in bytes, so that no sender can fill the memory."""

from collections import Counter, deque
from collections.abc import Hashable

import anyio
import anyio.lowlevel

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import INBOX_BYTES, INBOX_FRAMES, INBOX_SHARE, Arrival, Found, Frame, Gone, Traffic

__all__ = ["Inbox"]

_IN_A_ROW = 16
"""How many arrivals a reader takes before others have their turn."""


class Inbox:
    """An async iterator of arrivals that drops and counts what it has no room for. One reader; any writers.

    Args:
        traffic: where dropped frames are counted.
        frames, octets: how many of each wait at most; from one source, its share (INBOX_SHARE) of that.
    """

    def __init__(self, traffic: Traffic, frames: int = INBOX_FRAMES, octets: int = INBOX_BYTES) -> None:
        self._traffic = traffic
        self._frames = frames
        self._octets = octets
        self._waiting: deque[tuple[Hashable, Arrival]] = deque()
        self._frames_of: Counter[Hashable] = Counter()
        self._octets_of: Counter[Hashable] = Counter()
        self._held = 0
        self._taken = 0
        self._closed = False
        self._something: anyio.Event | None = None

    def offer(self, data: bytes, source: Hashable = None) -> None:
        """Put a frame in; if there is no room for it, or the inbox is closed, it is dropped and counted.

        `source` is where it came from, if the transport knows: one that floods loses its own frames only.
        """
        full = len(self._waiting) >= self._frames or self._held + len(data) > self._octets
        if self._closed or full or (source is not None and self._has_its_share(source, len(data))):
            self._traffic.dropped_frames += 1
            return
        self._held += len(data)
        self._frames_of[source] += 1
        self._octets_of[source] += len(data)
        self._put(Frame(data), source)

    def _has_its_share(self, source: Hashable, size: int) -> bool:
        waiting, octets = self._frames_of[source], self._octets_of[source] + size  # a first frame may be of any size
        return waiting >= self._frames // INBOX_SHARE or (waiting > 0 and octets > self._octets // INBOX_SHARE)

    def gone(self, peer: PeerId) -> None:
        """Put in the hint that the connection to `peer` was lost; a hint that finds no room is simply left out."""
        if not self._closed and len(self._waiting) < self._frames:
            self._put(Gone(peer))

    def found(self, peer: PeerId, address: str) -> None:
        """Put in the hint that `peer` may be at `address`; hints fill no more than a sender's share."""
        waiting = sum(isinstance(arrival, Found) for _, arrival in self._waiting)
        if not self._closed and len(self._waiting) < self._frames and waiting < self._frames // INBOX_SHARE:
            self._put(Found(peer, address))

    def close(self) -> None:
        """End the iteration; what was not taken yet is forgotten."""
        self._closed = True
        self._waiting.clear()
        self._wake()

    def __aiter__(self) -> "Inbox":
        return self

    async def __anext__(self) -> Arrival:
        self._taken += 1
        if self._taken % _IN_A_ROW and self._waiting:  # many may be writing for each turn the reader gets
            await anyio.lowlevel.checkpoint_if_cancelled()
        else:
            await anyio.lowlevel.checkpoint()  # before anything is taken: a cancelled reader loses nothing
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._something = anyio.Event()
            await self._something.wait()
        source, arrival = self._waiting.popleft()
        if isinstance(arrival, Frame):
            self._held -= len(arrival.data)
            self._octets_of[source] -= len(arrival.data)
            self._frames_of[source] -= 1
            if not self._frames_of[source]:
                del self._frames_of[source], self._octets_of[source]
        return arrival

    def _put(self, arrival: Arrival, source: Hashable = None) -> None:
        self._waiting.append((source, arrival))
        self._wake()

    def _wake(self) -> None:
        if self._something is not None:
            self._something.set()
