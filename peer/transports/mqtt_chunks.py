"""Frames in chunks, and back: what travels through a broker that may drop, repeat, reorder and damage. Pure.

A frame is cut into chunks of one size (the last may be shorter). Every chunk says which session of which process it
comes from and is meant for, so that nothing of an earlier process reaches a later one, and the lowest frame its sender
still cares for, so that a receiver knows what it may forget. The checksum catches damage on the way before anything
is put together; whoever damages on purpose can write another one, and meets the envelope's signature. Nothing here is
authenticated: that is the envelope's part, and keeping strangers out of an inbox is the broker's (its access lists).
"""

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.peer.transports.base import MAX_FRAME

__all__ = [
    "ACK_ENTRIES", "AHEAD", "CHUNK_OVERHEAD", "LEAST_CHUNK", "SESSION_BYTES", "Acks", "Chunk", "Piece", "Reassembly",
    "read",
]  # fmt: skip

SESSION_BYTES: Final = 16
"""A session names one opening of a transport: 8 bytes that only grow (a clock) and 8 random ones."""

LEAST_CHUNK: Final = 1 << 10
"""The smallest chunk size, in bytes: a frame is never so many pieces that their own weight fills the memory."""

ACK_ENTRIES: Final = 1024
"""How many chunks one acknowledgement names at most."""

AHEAD: Final = 4096
"""How many frames beyond the lowest a sender cares for may be under way: the receiver remembers no more."""

_MAGIC: Final = b"VQ"
_VERSION: Final = 1
_CHUNK, _ACKS = 1, 2
# magic, version, kind, session it comes from, session it is meant for
_HEAD: Final = struct.Struct(f"!2sBB{SESSION_BYTES}s{SESSION_BYTES}s")
# lowest frame cared for, how many chunks were said before, frame, its size, number of the chunk, how many there are
_BODY: Final = struct.Struct("!QQQIII")
_CHECKSUM: Final = 16
# Under a key that everybody knows, AES-GCM's tag is a checksum: of 128 bits, at a seventh of the time of CRC-32.
_SUM: Final = AESGCM(bytes(16))
_NONCE: Final = bytes(12)
_ENTRY: Final = struct.Struct("!QIQ")

CHUNK_OVERHEAD: Final = _HEAD.size + _BODY.size + _CHECKSUM
"""What a chunk adds to its piece of the frame, in bytes."""

Piece: TypeAlias = tuple[int, int, int]
"""A frame's number, a chunk's number in it, and how many chunks were said before it: which of its copies this is."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a frame: `data` is chunk `index` of `count`, of a frame of `size` bytes; `order` were said before."""

    source: bytes
    target: bytes
    low: int
    order: int
    frame: int
    size: int
    index: int
    count: int
    data: bytes | memoryview

    def to_bytes(self) -> bytes:
        """The chunk as it travels."""
        head = _HEAD.pack(_MAGIC, _VERSION, _CHUNK, self.source, self.target)
        head += _BODY.pack(self.low, self.order, self.frame, self.size, self.index, self.count)
        return b"".join((head, _checksum(head, self.data), self.data))

    @property
    def step(self) -> int:
        """The size of the frame's chunks, all but the last; 0: this one's numbers do not fit each other."""
        if self.count == 1:
            return len(self.data)
        last = self.index == self.count - 1
        step, rest = divmod(self.size - len(self.data), self.count - 1) if last else (len(self.data), 0)
        fits = not rest and 0 < self.size - (self.count - 1) * step <= step
        return step if fits else 0


@dataclass(frozen=True, slots=True)
class Acks:
    """These chunks have arrived (again)."""

    source: bytes
    target: bytes
    pieces: tuple[Piece, ...]

    def to_bytes(self) -> bytes:
        """The acknowledgement as it travels. Raises LocalError: it names too many."""
        if len(self.pieces) > ACK_ENTRIES:
            raise LocalError(f"an acknowledgement of {len(self.pieces)} chunks, of at most {ACK_ENTRIES}")
        head = _HEAD.pack(_MAGIC, _VERSION, _ACKS, self.source, self.target)
        return head + b"".join(_ENTRY.pack(*piece) for piece in self.pieces)


def read(raw: bytes) -> Chunk | Acks:
    """What came. Raises RemoteError(TRUNCATED, VERSION, OVERSIZED, MALFORMED or BAD_SEAL: damaged)."""
    if len(raw) < _HEAD.size:
        raise RemoteError(Refusal.TRUNCATED, "a chunk's head")
    magic, version, kind, source, target = _HEAD.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION or kind not in (_CHUNK, _ACKS):
        raise RemoteError(Refusal.VERSION, "neither a chunk nor an acknowledgement of this version")
    rest = memoryview(raw)[_HEAD.size :]
    if kind == _ACKS:
        return Acks(source, target, _pieces(rest))
    if len(raw) < CHUNK_OVERHEAD:
        raise RemoteError(Refusal.TRUNCATED, "a chunk")
    low, order, frame, size, index, count = _BODY.unpack_from(rest)
    data = memoryview(raw)[CHUNK_OVERHEAD:]
    covered = _HEAD.size + _BODY.size
    if raw[covered:CHUNK_OVERHEAD] != _checksum(raw[:covered], data):
        raise RemoteError(Refusal.BAD_SEAL, "a chunk was damaged on the way")
    return _sound(Chunk(source, target, low, order, frame, size, index, count, data))


def _pieces(rest: memoryview) -> tuple[Piece, ...]:
    if len(rest) % _ENTRY.size:
        raise RemoteError(Refusal.TRUNCATED, "an acknowledgement")
    if len(rest) > ACK_ENTRIES * _ENTRY.size:
        raise RemoteError(Refusal.OVERSIZED, "an acknowledgement")
    return tuple((frame, index, order) for frame, index, order in _ENTRY.iter_unpack(rest))


def _sound(chunk: Chunk) -> Chunk:
    """`chunk`, if its numbers fit each other."""
    most = max(1, -(-chunk.size // LEAST_CHUNK))
    fits = chunk.index < chunk.count <= most and chunk.low <= chunk.frame
    whole = chunk.step > 0 if chunk.count > 1 else len(chunk.data) == chunk.size
    if not fits or not whole:
        raise RemoteError(Refusal.MALFORMED, "a chunk whose numbers do not fit each other")
    return chunk


def _checksum(head: bytes, data: bytes | memoryview) -> bytes:
    return _SUM.encrypt(_NONCE, head, data)[-_CHECKSUM:]


class _Partial:
    """A frame of which something is missing: every chunk is put to its place as it comes, and nothing twice."""

    def __init__(self, size: int, count: int, step: int) -> None:
        self.shape = (size, count, step)
        self.missing = count
        self._have = bytearray(count)
        self._whole = io.BytesIO(bytes(size))

    def put(self, chunk: Chunk) -> None:
        """The piece `chunk`, unless it is there."""
        if self._have[chunk.index]:
            return
        self._have[chunk.index] = 1
        self._whole.seek(chunk.index * self.shape[-1])
        self._whole.write(chunk.data)
        self.missing -= 1

    def whole(self) -> bytes:
        """The frame, without another copy (CPython's BytesIO hands out what it wrote to)."""
        return self._whole.getvalue()


class Reassembly:
    """What arrived of one sender's session: every frame comes out whole, once, in the order they are completed.

    Args:
        max_frame: the longest frame put together, in bytes.
        max_held: how many bytes unfinished frames may take; a first one may be of any size up to `max_frame`.
    """

    def __init__(self, max_frame: int = MAX_FRAME, max_held: int = MAX_FRAME) -> None:
        self.max_frame = max_frame
        self.max_held = max_held
        self._low = 0
        self._done: set[int] = set()
        self._partial: dict[int, _Partial] = {}

    @property
    def held(self) -> int:
        """How many bytes unfinished frames take: their whole size, from their first chunk on."""
        return sum(partial.shape[0] for partial in self._partial.values())

    def needs(self, chunk: Chunk) -> int:
        """How many bytes more `chunk` would have this take."""
        known = chunk.frame in self._partial or chunk.frame in self._done or chunk.frame < self._low
        return 0 if known or chunk.count == 1 else chunk.size

    def take(self, chunk: Chunk) -> bytes | None:
        """The frame that `chunk` completes, if it does. What returns is to be acknowledged, new or not.

        Raises RemoteError(OVERSIZED: no room for it, now or ever; MALFORMED: it contradicts an earlier chunk), and then
        it is not to be acknowledged.
        """
        if chunk.size > self.max_frame:
            raise RemoteError(Refusal.OVERSIZED, f"a frame of {chunk.size} bytes, of at most {self.max_frame}")
        self._forget_below(chunk.low)
        if chunk.frame >= self._low + AHEAD:
            raise RemoteError(Refusal.OVERSIZED, "a frame too far ahead of those that are waited for")
        if chunk.frame < self._low or chunk.frame in self._done:
            return None
        if chunk.count == 1:
            self._finish(chunk.frame)
            return bytes(chunk.data)
        return self._add(chunk)

    def _add(self, chunk: Chunk) -> bytes | None:
        partial, shape = self._partial.get(chunk.frame), (chunk.size, chunk.count, chunk.step)
        if partial is None:
            if self._partial and self.held + chunk.size > self.max_held:
                raise RemoteError(Refusal.OVERSIZED, "too many unfinished frames")
            partial = self._partial[chunk.frame] = _partial(*shape)
        if partial.shape != shape:
            raise RemoteError(Refusal.MALFORMED, "two chunks of a frame disagree on its size")
        partial.put(chunk)
        if partial.missing:
            return None
        self._finish(chunk.frame)
        return partial.whole()

    def _finish(self, frame: int) -> None:
        self._partial.pop(frame, None)
        self._done.add(frame)

    def _forget_below(self, low: int) -> None:
        if low <= self._low:
            return
        self._low = low
        self._done = _from(self._done, low)
        self._partial = {frame: partial for frame, partial in self._partial.items() if frame >= low}


def _partial(size: int, count: int, step: int) -> _Partial:
    try:
        return _Partial(size, count, step)
    except MemoryError:
        raise RemoteError(Refusal.OVERSIZED, f"no memory for a frame of {size} bytes") from None


def _from(frames: Iterable[int], low: int) -> set[int]:
    return {frame for frame in frames if frame >= low}
