"""Everybody whose chunks arrive, and what is to be acknowledged to them: bounded, whoever sends. Pure.

Those that were introduced may send frames of any size. Anybody else may say hello: a few strangers, with short frames
of one chunk, and a new one takes the place of the one that was silent longest.
"""

from dataclasses import dataclass, field
from typing import Final

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.identity import PeerId
from veilmesh.peer.transports.mqtt_chunks import ACK_ENTRIES, Chunk, Piece, Reassembly

__all__ = ["STRANGERS", "STRANGERS_FRAME", "Senders"]

STRANGERS: Final = 64
STRANGERS_FRAME: Final = 64 << 10

PRESSING_BYTES: Final = 2 << 20
"""So much of one sender is acknowledged at once: a part of what it may have under way, so that it need not stop."""


RECENT: Final = 256
"""So many chunks are acknowledged again when one of them arrives twice: an acknowledgement of many may be lost."""


@dataclass(slots=True)
class _Sender:
    """One sender's present session."""

    session: bytes
    reassembly: Reassembly
    arrived: list[Piece] = field(default_factory=list)  # and is to be acknowledged
    octets: int = 0  # of what arrived
    recent: dict[tuple[int, int], int] = field(default_factory=dict)  # copies by frame and chunk, the newest last
    twice: bool = False  # one of the recent ones arrived again

    def note(self, chunk: Chunk) -> None:
        """It arrived."""
        key = (chunk.frame, chunk.index)
        self.twice = self.twice or self.recent.pop(key, None) is not None
        self.recent[key] = chunk.order
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]
        self.arrived.append((*key, chunk.order))
        self.octets += len(chunk.data)

    def collect(self) -> list[Piece]:
        """What to acknowledge since the last call."""
        pieces = self.arrived
        if self.twice:
            pieces = list(dict.fromkeys((*((*key, order) for key, order in self.recent.items()), *pieces)))
        self.arrived, self.octets, self.twice = [], 0, False
        return pieces


class Senders:
    """What arrives, by sender.

    Args:
        max_frame: the longest frame of those that were introduced, in bytes.
        octets: how many bytes unfinished frames of all of them may take; one sender, the first, always has room.
    """

    def __init__(self, max_frame: int, octets: int) -> None:
        self._max_frame = max_frame
        self._octets = octets
        self._senders: dict[PeerId, _Sender] = {}
        self.known: frozenset[PeerId] = frozenset()
        self.pressing = False  # somebody may be waiting for an acknowledgement

    @property
    def held(self) -> int:
        """Bytes that unfinished frames take."""
        return sum(sender.reassembly.held for sender in self._senders.values())

    def __len__(self) -> int:
        return len(self._senders)

    def take(self, who: PeerId, chunk: Chunk) -> bytes | None:
        """The frame that `chunk` completes, if it does; the chunk will be acknowledged.

        Raises RemoteError as `Reassembly.take`, and REPLAY: of a session that has ended; OVERSIZED: no room for it now.
        """
        if who not in self.known and (chunk.count > 1 or chunk.size > STRANGERS_FRAME):
            raise RemoteError(Refusal.OVERSIZED, "a stranger's frame")
        sender = self._sender(who, chunk.source)
        if not self._has_room(sender, sender.reassembly.needs(chunk)):
            raise RemoteError(Refusal.OVERSIZED, "too many unfinished frames")
        frame = sender.reassembly.take(chunk)
        sender.note(chunk)
        if sender.octets >= PRESSING_BYTES or (frame is not None and chunk.count > 1):
            self.pressing = True
        return frame

    def arrived(self) -> list[tuple[PeerId, bytes, tuple[Piece, ...]]]:
        """What to acknowledge since the last call: to whom, to which session, and the chunks."""
        found: list[tuple[PeerId, bytes, tuple[Piece, ...]]] = []
        for who, sender in self._senders.items():
            pieces = sender.collect()
            for start in range(0, len(pieces), ACK_ENTRIES):
                found.append((who, sender.session, tuple(pieces[start : start + ACK_ENTRIES])))
        self.pressing = False
        return found

    def _sender(self, who: PeerId, session: bytes) -> _Sender:
        sender = self._senders.get(who)
        if sender and session < sender.session:
            raise RemoteError(Refusal.REPLAY, "a chunk of a session that has ended")
        if sender and session == sender.session:
            return sender
        if not sender:
            self._make_room()
        self._senders.pop(who, None)
        made = self._senders[who] = _Sender(session, Reassembly(self._max_frame))
        return made

    def _make_room(self) -> None:
        strangers = [who for who in self._senders if who not in self.known]
        for who in strangers[: max(0, len(strangers) - STRANGERS + 1)]:
            del self._senders[who]

    def _has_room(self, sender: _Sender, size: int) -> bool:
        if not size or self.held + size <= self._octets:
            return True
        first = next((other for other in self._senders.values() if other.reassembly.held), sender)
        return first is sender  # so that somebody's frame gets finished
