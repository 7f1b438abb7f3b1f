"""What is under way to one peer through the broker, and what of it must be said again. Pure: `now` is an argument.

Theory of operation. The receiver acknowledges every chunk. Only so many bytes are under way at a time: a slow receiver
holds up its sender, not the broker's memory. A chunk is said again when chunks said later were acknowledged before it
(it was dropped on the way), when nothing at all was acknowledged for long (the oldest only: one is enough to find out),
and when the connection is new. The receiver knows a chunk it has had, so nothing arrives twice.

How long is long follows the slowest acknowledgement of late (as TCP does, RFC 6298): at a megabit a chunk takes
seconds, and saying it again would only make it slower. What is short comes through sooner, so a long chunk is given as
much more as bytes have taken of late; before anything was acknowledged, as at a megabit that four share. Every chunk
that is said has a number, also one that is said again, and the acknowledgement repeats it: so it is known which copy
arrived, how long that copy took (what was lost before it tells nothing of the line: RFC 6298, section 3), and what went
before it and did not arrive.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from veilmesh.peer.transports.mqtt_chunks import AHEAD, Chunk, Piece

__all__ = ["Window"]

_FIRST_PATIENCE: Final = 2.0  # seconds without any acknowledgement before the oldest chunk is said again
_SLOWEST: Final = 31_250  # bytes in a second that a line is given the time for before it has shown what it is
_TELLING: Final = 1 << 14  # bytes of a chunk that shows how long a byte takes; what is shorter may have slipped through
_LONGEST_PATIENCE: Final = 60.0
_OVERTAKEN: Final = 3  # chunks said later that were acknowledged first: it was dropped, not delayed


_Key: TypeAlias = tuple[int, int]
"""A frame's number, and a chunk's in it."""


@dataclass(slots=True)
class _Frame:
    """A frame that has not wholly arrived, as far as we know."""

    data: bytes
    count: int
    unsaid: int  # the first chunk that was never said
    missing: int  # chunks that were not acknowledged


@dataclass(slots=True)
class _Said:
    """A chunk under way."""

    order: int  # of this copy
    at: float  # when this copy was said
    first: float  # when it was said for the first time


class Window:
    """Frames on their way to one session of one peer.

    Args:
        source, target: this process's session, and the other's.
        chunk_bytes: the size of a chunk.
        flight_bytes: how many bytes of chunks are under way at a time.
        room_bytes: how many bytes of frames wait here; a first one may be of any size.
    """

    def __init__(self, source: bytes, target: bytes, chunk_bytes: int, flight_bytes: int, room_bytes: int) -> None:
        self._source, self._target = source, target
        self._chunk_bytes = chunk_bytes
        self._flight_chunks = max(2, flight_bytes // chunk_bytes)
        self._room_bytes = room_bytes
        self._frames: dict[int, _Frame] = {}
        self._held = 0
        self._next = 0
        self._first_unsaid = 0
        self._flight: dict[_Key, _Said] = {}  # in the order they were said
        self._again: dict[_Key, float] = {}  # when they were said for the first time
        self._order = 0
        self._patience = self._usual = _FIRST_PATIENCE
        self._due = 0.0
        self._pace = 1 / _SLOWEST  # seconds that a byte takes, waiting included, at the slowest of late
        self.repeated = 0  # chunks that were said again

    def __len__(self) -> int:
        """How many frames have not wholly arrived."""
        return len(self._frames)

    @property
    def held(self) -> int:
        """How many bytes of frames wait here."""
        return self._held

    def has_room(self, size: int) -> bool:
        """Whether a frame of `size` bytes may be added."""
        if not self._frames:
            return True
        ahead = self._next - next(iter(self._frames))
        return self._held + size <= self._room_bytes and ahead < AHEAD // 2

    def add(self, data: bytes) -> None:
        """Put a frame in."""
        count = max(1, -(-len(data) // self._chunk_bytes))
        self._frames[self._next] = _Frame(data, count, 0, count)
        self._held += len(data)
        self._next += 1

    def say(self, now: float) -> Chunk | None:
        """The next chunk to be said, if one is."""
        self._lose_patience(now)
        while self._again:
            key = next(iter(self._again))
            first = self._again.pop(key)
            if key[0] in self._frames:
                self.repeated += 1
                return self._put(key, now, first)
        if len(self._flight) >= self._flight_chunks:
            return None
        while self._first_unsaid < self._next:
            frame = self._frames.get(self._first_unsaid)
            if frame and frame.unsaid < frame.count:
                frame.unsaid += 1
                return self._put((self._first_unsaid, frame.unsaid - 1), now, now)
            self._first_unsaid += 1
        return None

    @property
    def due(self) -> float | None:
        """When patience ends; None while nothing is under way."""
        return self._due if self._flight else None

    def acknowledged(self, pieces: tuple[Piece, ...], now: float) -> None:
        """These have arrived. What was acknowledged before, or was never said, is passed over."""
        newest = -1
        for frame, index, order in pieces:
            key = (frame, index)
            if (said := self._flight.pop(key, None)) is not None:
                since = said.at if order >= said.order else said.first
            elif (since := self._again.pop(key, -1.0)) < 0:
                continue
            newest = max(newest, min(order, self._order))
            self._usual = min(_LONGEST_PATIENCE, max(_FIRST_PATIENCE, 0.9 * self._usual, 2 * (now - since)))
            if (size := len(self._piece(key))) >= _TELLING:
                self._pace = max(0.9 * self._pace, (now - since) / size)
            self._patience = self._usual
            self._arrived(frame)
        if newest >= 0 and self._flight:
            self._due = now + self._patience + self._crossing(next(iter(self._flight)))
        self._overtaken_by(newest)

    def resume(self) -> None:
        """The connection is new: whatever was under way may be lost, and is said again."""
        self._say_again(list(self._flight))

    def drop(self) -> int:
        """Give up whatever waits; how many frames that is. The numbers go on from there."""
        lost = len(self._frames)
        self._frames.clear()
        self._flight.clear()
        self._again.clear()
        self._held, self._first_unsaid = 0, self._next
        return lost

    def _arrived(self, number: int) -> None:
        frame = self._frames[number]
        frame.missing -= 1
        if not frame.missing:
            self._held -= len(frame.data)
            del self._frames[number]

    def _overtaken_by(self, newest: int) -> None:
        self._say_again([key for key, said in self._flight.items() if said.order + _OVERTAKEN <= newest])

    def _say_again(self, keys: list[_Key]) -> None:
        for key in keys:
            self._again[key] = self._flight.pop(key).first

    def _lose_patience(self, now: float) -> None:
        if self._flight and not self._again and now >= self._due:
            oldest = next(iter(self._flight))
            self._say_again([oldest])
            self._patience = min(_LONGEST_PATIENCE, 2 * self._patience)
            self._due = now + self._patience + self._crossing(oldest)

    def _put(self, key: _Key, now: float, first: float) -> Chunk:
        number, index = key
        frame = self._frames[number]
        data = self._piece(key)
        if not self._flight and first == now:
            self._due = now + self._patience + self._crossing(key)
        self._flight[key] = _Said(self._order, now, first)
        self._order += 1
        low, order = next(iter(self._frames)), self._order - 1
        return Chunk(self._source, self._target, low, order, number, len(frame.data), index, frame.count, data)

    def _piece(self, key: _Key) -> memoryview:
        number, index = key
        begin = index * self._chunk_bytes
        return memoryview(self._frames[number].data)[begin : begin + self._chunk_bytes]

    def _crossing(self, key: _Key) -> float:
        """Seconds that a chunk's bytes take."""
        return min(_LONGEST_PATIENCE, self._pace * len(self._piece(key)))
