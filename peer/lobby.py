"""Whom this peer has let in, and what it hands on about them. Pure: announcements in, cards out.

The roster only grows by announcements that the door has checked. A peer's newer card (a higher serial) takes the place
of its older one; an older one says nothing new and is passed over. Members that fell silent are *forgotten*: their
cards and sessions stay, since whoever taped their frames could play them again to somebody who remembers nothing, but
they make room when the roster is full. Of one that had to go only its serial is kept: it may come back with a newer
card, never with that one. The number of peers that a run can see in all is bounded by that, too.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.envelope import Card, Mailroom
from veilmesh.peer.door import Announcement, Door
from veilmesh.peer.machine import PeerId

__all__ = ["DIGEST_BYTES", "PAGE", "ROSTER", "Lobby", "pages", "unpack"]

ROSTER: Final = 1024
"""How many peers are let in, unless told otherwise."""

PAGE: Final = 64
"""How many announcements travel in one body."""

DIGEST_BYTES: Final = 8

_GONE: Final = 16  # for each place in the roster, so many that had to go are remembered
_LENGTH: Final = struct.Struct("!H")


class Lobby:
    """One peer's roster.

    Args:
        mailroom: admits whom the lobby lets in.
        door: judges announcements.
        card: this peer's own.
        founders: cards that were agreed on beforehand; not judged, but they must be of this run and signed.
        cap: how many peers are let in.

    Raises RemoteError: a founder's card is not good.
    """

    def __init__(
        self, mailroom: Mailroom, door: Door, card: Card, founders: Iterable[Card] = (), cap: int = ROSTER
    ) -> None:
        self._mailroom = mailroom
        self._door = door
        self._cap = cap
        self._hello = door.announce(card).to_bytes()
        self._said: dict[PeerId, bytes] = {mailroom.me: self._hello}
        self._whose: dict[bytes, PeerId] = {self._hello: mailroom.me}
        self._forgotten: dict[PeerId, None] = {}  # the longest forgotten first
        self._gone: dict[PeerId, int] = {}  # serials
        self.turned_away = 0  # announcements that found the roster full
        for founder in founders:
            if founder.peer != mailroom.me:
                mailroom.admit(founder)
                self._write_down(founder, door.announce(founder).to_bytes())

    @property
    def members(self) -> frozenset[PeerId]:
        """Everybody in the roster who is not forgotten, and not this peer."""
        return frozenset(self._said.keys() - self._forgotten.keys() - {self._mailroom.me})

    def hello(self) -> bytes:
        """This peer's own announcement."""
        return self._hello

    def card(self, peer: PeerId) -> Card | None:
        """The card under which `peer` was let in, or None."""
        return self._mailroom.card(peer) if peer in self._said else None

    def remembers(self, peer: PeerId) -> bool:
        """Whether `peer` has ever been let in."""
        return peer in self._said or peer in self._gone

    def take(self, raw: bytes) -> Card | None:
        """Judge an announcement: the card, if its peer is new here, came back, or has a newer card; None if not.

        Raises RemoteError: what `Announcement.from_bytes`, `Door.check` and `Mailroom.admit` do; STRANGER: the roster
        is full; REPLAY: not newer than the card of a peer that had to go.
        """
        if (known := self._whose.get(raw)) is not None:
            return self.recall(known)
        card = self._door.check(Announcement.from_bytes(raw))
        old = self.card(card.peer)
        if card.peer == self._mailroom.me or (old is not None and card.serial < old.serial):
            return None
        if card.serial <= self._gone.get(card.peer, -1):
            raise RemoteError(Refusal.REPLAY, f"a card of {card.peer} that was taken before")
        if old is None:
            self._make_room()
        self._mailroom.admit(card)
        self._write_down(card, raw)
        return card

    def recall(self, peer: PeerId) -> Card | None:
        """`peer` is there after all: its card, if it was forgotten."""
        if peer not in self._forgotten:
            return None
        del self._forgotten[peer]
        return self.card(peer)

    def forget(self, peer: PeerId) -> None:
        """`peer` has been silent for long: it is no member until it is heard of again, and may have to go."""
        if peer in self._said and peer != self._mailroom.me:
            self._forgotten[peer] = None

    def known(self, peers: Iterable[PeerId]) -> list[bytes]:
        """The announcements of `peers`, as far as they are in the roster, and this peer's own; sorted."""
        return sorted(self._said[peer] for peer in {*peers, self._mailroom.me} if peer in self._said)

    def digest(self, peers: Iterable[PeerId]) -> bytes:
        """8 bytes that are the same for two peers who hand on the same announcements."""
        return hashlib.sha256(b"".join(self.known(peers))).digest()[:DIGEST_BYTES]

    def _make_room(self) -> None:
        if len(self._said) - 1 < self._cap:
            return
        if not self._forgotten or len(self._gone) >= _GONE * self._cap:
            self.turned_away += 1
            raise RemoteError(Refusal.STRANGER, f"a newcomer, but the roster is full ({self._cap})")
        peer = next(iter(self._forgotten))
        card = self._mailroom.card(peer)
        self._gone[peer] = card.serial if card else 0
        self._mailroom.forget(peer)
        del self._forgotten[peer], self._whose[self._said.pop(peer)]

    def _write_down(self, card: Card, raw: bytes) -> None:
        if (old := self._said.get(card.peer)) is not None:
            del self._whose[old]
        self._said[card.peer] = raw
        self._whose[raw] = card.peer
        self._forgotten.pop(card.peer, None)
        self._gone.pop(card.peer, None)


def pages(announcements: list[bytes]) -> Iterator[bytes]:
    """Bodies that hold the announcements, PAGE in each: two bytes of length before every one."""
    for start in range(0, len(announcements), PAGE):
        yield b"".join(_LENGTH.pack(len(raw)) + raw for raw in announcements[start : start + PAGE])


def unpack(page: bytes) -> list[bytes]:
    """The announcements in a body, unchecked. Raises RemoteError(TRUNCATED or OVERSIZED)."""
    found: list[bytes] = []
    at = 0
    while at < len(page):
        if len(found) == PAGE:
            raise RemoteError(Refusal.OVERSIZED, "a page of announcements")
        end = at + _LENGTH.size + int.from_bytes(page[at : at + _LENGTH.size], "big")
        if len(page) < max(end, at + _LENGTH.size):
            raise RemoteError(Refusal.TRUNCATED, "a page of announcements")
        found.append(page[at + _LENGTH.size : end])
        at = end
    return found
