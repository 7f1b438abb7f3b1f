"""Frames on a byte stream: each after its length, an unsigned 32-bit integer, most significant byte first."""

from collections.abc import Iterator

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.transports.base import MAX_FRAME

__all__ = ["LENGTH_BYTES", "FrameReader", "in_pieces"]

LENGTH_BYTES = 4
GATHERED_BYTES = 1 << 14


def in_pieces(frame: bytes, size: int) -> Iterator[bytes]:
    """A frame as it goes on the stream, at most `size` bytes of the frame at a time; the first piece has its length."""
    yield len(frame).to_bytes(LENGTH_BYTES, "big") + frame[:size]
    for start in range(size, len(frame), size):
        yield frame[start : start + size]


class FrameReader:
    """Cuts a byte stream, fed in whatever pieces it arrives, back into frames.

    Memory is taken as bytes arrive, never on the word of a length alone. What arrives in large pieces is copied once,
    when its frame is whole; small pieces are gathered first, so that a stream of single bytes is no way to fill memory
    with the pieces' own weight.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._parts: list[bytes | bytearray | memoryview] = []
        self._held = 0
        self._size: int | None = None  # of the frame that has begun, once its length is there

    @property
    def held(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return self._held

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Every frame that `chunk` completes. Raises RemoteError(OVERSIZED) at a length over the cap."""
        self._add(chunk)
        while (size := self._announced()) is not None and self._held >= size:
            yield self._cut(size)
            self._size = None

    def _add(self, chunk: bytes | memoryview) -> None:
        self._held += len(chunk)
        last = self._parts[-1] if self._parts else None
        if isinstance(last, bytearray) and len(last) + len(chunk) <= GATHERED_BYTES:
            last += chunk
        elif chunk:
            self._parts.append(bytearray(chunk) if len(chunk) < GATHERED_BYTES else chunk)

    def _cut(self, size: int) -> bytes:
        """The first `size` of the bytes that are held."""
        taken: list[bytes | bytearray | memoryview] = []
        left = size
        while left and len(self._parts[0]) <= left:
            taken.append(self._parts.pop(0))
            left -= len(taken[-1])
        if left:
            rest = memoryview(self._parts[0])
            taken.append(rest[:left])
            self._parts[0] = rest[left:]
        self._held -= size
        return b"".join(taken)

    def _announced(self) -> int | None:
        if self._size is None and self._held >= LENGTH_BYTES:
            size = int.from_bytes(self._cut(LENGTH_BYTES), "big")
            if size > self._max_frame:
                raise RemoteError(Refusal.OVERSIZED, f"a frame of {size} bytes, of at most {self._max_frame}")
            self._size = size
        return self._size
