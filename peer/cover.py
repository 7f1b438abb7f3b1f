"""Cover traffic: frames of one length at a fixed pace, whether there is something to say or not. Pure.

A line to a neighbour is cut into slots. In each leaves one frame, whose body has always the same length: as much of
what waits as there is room for, in pieces, and zeros. What it carries, and of which kind that is, lies inside the
seal; a slot without anything looks like any other, and nobody answers it. So lengths and times of frames no longer
depend on what is said (Chaum, "Untraceable Electronic Mail", CACM 1981, has dummies; Shmatikov and Wang, "Timing
Analysis in Low-Latency Mix Networks", ESORICS 2006, what times tell).

What it does not hide: that a peer is there, when it begins and ends, and a slot that leaves late because the machine
was busy. A slot that was missed is left out, never made up for: a burst would say that there was one.

    item   kind, number of the body, its length, where the piece begins, how long the piece is; the piece
    slot   items, and zeros up to its length
"""

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from veilmesh.core import LocalError, Refusal, RemoteError

__all__ = ["LEAST_PIECE", "LEAST_SLOT", "Cover", "Packer", "Slot", "Slots", "Unpacker"]

_ITEM: Final = struct.Struct("!BIIII")
_NUMBERS: Final = 1 << 32

LEAST_PIECE: Final = 64
"""Bytes of a body in a piece that does not end it, at least: pieces never weigh more than what they hold."""

LEAST_SLOT: Final = 256
"""The shortest slot, in bytes: room for a sign of life and a piece."""

_UNFINISHED: Final = 8  # bodies of one sender of which pieces are missing: later ones push out the earliest


@dataclass(frozen=True, slots=True)
class Cover:
    """How a peer covers what it says. Raises LocalError: no pace, or too short a slot.

    `octets` are those of a slot before it is sealed; a model takes as many slots as it needs.
    """

    pace: float  # seconds between two slots of a line
    octets: int

    def __post_init__(self) -> None:
        if not self.pace > 0 or self.octets < LEAST_SLOT:
            raise LocalError(f"cover traffic needs a pace above 0 and slots of {LEAST_SLOT} bytes or more")


class Slots:
    """When slots are due: at `start`, and every `pace` seconds from then on."""

    def __init__(self, start: float, pace: float) -> None:
        self._start = start
        self._pace = pace
        self._next = 0
        self.missed = 0  # slots that were left out because they could not leave in time

    @property
    def due(self) -> float:
        """When the next slot is."""
        return self._start + self._next * self._pace

    def taken(self, now: float) -> None:
        """The slot that was due has left; those that passed meanwhile are left out."""
        passed = max(self._next, int((now - self._start) / self._pace))
        self.missed += passed - self._next
        self._next = passed + 1


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot as it leaves: its bytes, how many signs of life are in it, and which bodies have now left whole."""

    body: bytes
    signs: int
    left: tuple[tuple[int, bytes], ...]

    @property
    def idle(self) -> bool:
        """Whether it says nothing."""
        return not any(self.body[:1])


class Packer:
    """Cuts what waits for one neighbour into slots of `octets` bytes."""

    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._number = 0
        self._at = 0  # how much of the first body that waits has left

    def slot(self, signs: dict[int, bytes], bodies: deque[tuple[int, bytes]]) -> Slot:
        """The next slot; takes what leaves whole in it out of `signs`, which are short and go first, and `bodies`."""
        items, room, said = list[bytes](), self._octets, 0
        for kind in sorted(signs):
            if _ITEM.size + len(signs[kind]) <= room:
                body, said = signs.pop(kind), said + 1
                items.append(_ITEM.pack(kind, 0, len(body), 0, len(body)) + body)
                room -= len(items[-1])
        return self._fill(items, room, said, bodies)

    def _fill(self, items: list[bytes], room: int, said: int, bodies: deque[tuple[int, bytes]]) -> Slot:
        left: list[tuple[int, bytes]] = []
        while bodies:
            kind, body = bodies[0]
            size = min(room - _ITEM.size, len(body) - self._at)
            if size < min(LEAST_PIECE, len(body) - self._at):
                break
            piece = body[self._at : self._at + size]
            items.append(_ITEM.pack(kind, self._number, len(body), self._at, size) + piece)
            room -= len(items[-1])
            self._at += size
            if self._at < len(body):
                break
            left.append(bodies.popleft())
            self._at, self._number = 0, (self._number + 1) % _NUMBERS
        return Slot(b"".join((*items, bytes(room))), said, tuple(left))


@dataclass(slots=True)
class _Body:
    """A body of which something is missing."""

    kind: int
    size: int
    held: int = 0
    pieces: dict[int, bytes] = field(default_factory=dict)  # by where they begin


class Unpacker:
    """What one neighbour's slots hold, whatever the order in which they arrive, and whichever are lost.

    Args:
        max_body: the longest body, in bytes; no more is kept of unfinished ones together.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._unfinished: dict[int, _Body] = {}

    @property
    def held(self) -> int:
        """Bytes of bodies that are not whole yet."""
        return sum(body.held for body in self._unfinished.values())

    def take(self, slot: bytes) -> list[tuple[int, bytes]]:
        """Kinds and bodies that are whole now. Raises RemoteError(TRUNCATED, OVERSIZED or MALFORMED): the rest of the
        slot is then lost too."""
        whole, at = list[tuple[int, bytes]](), 0
        while at < len(slot) and slot[at]:
            if len(slot) < at + _ITEM.size:
                raise RemoteError(Refusal.TRUNCATED, "an item of a slot")
            kind, number, length, begin, size = _ITEM.unpack_from(slot, at)
            at += _ITEM.size + size
            if at > len(slot):
                raise RemoteError(Refusal.TRUNCATED, "a piece in a slot")
            if length > self._max_body:
                raise RemoteError(Refusal.OVERSIZED, f"a body of {length} bytes in slots")
            if begin + size > length or (begin + size < length and size < LEAST_PIECE) or (length and not size):
                raise RemoteError(Refusal.MALFORMED, "a piece that does not fit its body")
            piece = slot[at - size : at]
            if (body := piece if size == length else self._add(number, _Body(kind, length), begin, piece)) is not None:
                whole.append((kind, body))
        return whole

    def _add(self, number: int, new: _Body, begin: int, piece: bytes) -> bytes | None:
        body = self._unfinished.setdefault(number, new)
        if (body.kind, body.size) != (new.kind, new.size):
            raise RemoteError(Refusal.MALFORMED, "two pieces of a body disagree on it")
        if begin in body.pieces:
            return None
        body.pieces[begin] = piece
        body.held += len(piece)
        if body.held >= body.size:
            return self._join(number)
        while len(self._unfinished) > _UNFINISHED or (len(self._unfinished) > 1 and self.held > self._max_body):
            del self._unfinished[next(iter(self._unfinished))]
        return None

    def _join(self, number: int) -> bytes:
        body, at = self._unfinished.pop(number), 0
        for begin in sorted(body.pieces):
            if begin != at:
                raise RemoteError(Refusal.MALFORMED, "pieces of a body that overlap")
            at += len(body.pieces[begin])
        return b"".join(body.pieces[begin] for begin in sorted(body.pieces))
