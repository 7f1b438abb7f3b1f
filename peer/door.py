"""Who may come in: announcements, and the door that judges them. Pure.

An announcement is a card with a *ticket*, and travels as a frame of its own, in clear: whoever says it for the first
time shares no key with anybody yet. The ticket shows that its writer knows the mesh's join secret, and is checked
before anything expensive is. The secret itself is not in it, but somebody who taps the wire can try guesses against a
ticket, as fast as hashes go: a join secret is drawn at random, never thought up.

What a ticket does not show is that the peer on the card asked for it. Whoever knows the secret can let anybody in;
where that is too much, name the members in an allow-list as well.
"""

import hmac
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.envelope import Card
from veilmesh.crypto.identity import PeerId

__all__ = ["SECRET_BYTES", "TICKET_BYTES", "Announcement", "Door"]

TICKET_BYTES: Final = 32

SECRET_BYTES: Final = 16
"""The shortest join secret: shorter ones could be guessed from a ticket."""

_NO_TICKET: Final = bytes(TICKET_BYTES)
_DOMAIN: Final = b"veilmesh join v1"
_VERSION: Final = 1
_LONGEST_CARD: Final = 1024  # a bound on what is hashed; the card has its own, tighter one


@dataclass(frozen=True, slots=True)
class Announcement:
    """A peer's card on its way to those that do not know it yet. Nothing in it is checked before the door has."""

    MAGIC: ClassVar[bytes] = b"VA"

    ticket: bytes  # 32
    card: bytes  # as `Card.to_bytes` writes it

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Take apart, and no more. Raises RemoteError(TRUNCATED or VERSION)."""
        if len(raw) < len(cls.MAGIC) + 1 + TICKET_BYTES:
            raise RemoteError(Refusal.TRUNCATED, "an announcement")
        if not raw.startswith(cls.MAGIC) or raw[len(cls.MAGIC)] != _VERSION:
            raise RemoteError(Refusal.VERSION, "not an announcement of this version")
        rest = raw[len(cls.MAGIC) + 1 :]
        return cls(rest[:TICKET_BYTES], rest[TICKET_BYTES:])

    def to_bytes(self) -> bytes:
        """The announcement as it travels: 35 bytes and the card."""
        return self.MAGIC + bytes([_VERSION]) + self.ticket + self.card


class Door:
    """Whom a mesh lets in: those with a ticket, those on the list, or, where both are given, those with both.

    Args:
        run: the run's id, 16 bytes.
        secret: the mesh's join secret, at least 16 random bytes; None: tickets are not asked for.
        allowed: who may come in; None: everybody with a ticket.

    Raises LocalError: neither is given (a door for nobody), or the secret is too short.
    """

    def __init__(self, run: bytes, secret: bytes | None, allowed: frozenset[PeerId] | None) -> None:
        if secret is None and allowed is None:
            raise LocalError("a door needs a join secret, a list of those allowed in, or both")
        if secret is not None and len(secret) < SECRET_BYTES:
            raise LocalError(f"a join secret has at least {SECRET_BYTES} bytes, not {len(secret)}")
        self._run = run
        self._key = None if secret is None else HKDF(SHA256(), 32, salt=run, info=_DOMAIN).derive(secret)
        self._allowed = allowed

    def ticket(self, card: Card) -> bytes:
        """What `card` must be announced with: 32 bytes, zeros where tickets are not asked for."""
        return self._ticket(card.to_bytes())

    def announce(self, card: Card) -> Announcement:
        """`card` with its ticket."""
        return Announcement(self.ticket(card), card.to_bytes())

    def check(self, announcement: Announcement) -> Card:
        """The card, if its peer may come in. Cheapest first: a flood costs a hash each.

        Raises RemoteError, in this order: OVERSIZED, STRANGER (no ticket, a wrong one, or not on the list), whatever
        `Card.from_bytes` does, WRONG_RUN, BAD_SIGNATURE.
        """
        if len(announcement.card) > _LONGEST_CARD:
            raise RemoteError(Refusal.OVERSIZED, "a card")
        if not hmac.compare_digest(announcement.ticket, self._ticket(announcement.card)):
            raise RemoteError(Refusal.STRANGER, "an announcement without a ticket of this mesh")
        card = Card.from_bytes(announcement.card)
        if self._allowed is not None and card.peer not in self._allowed:
            raise RemoteError(Refusal.STRANGER, f"{card.peer} is not on the list of those allowed in")
        if card.run != self._run:
            raise RemoteError(Refusal.WRONG_RUN, "a card of another run")
        card.verify()
        return card

    def _ticket(self, card: bytes) -> bytes:
        return _NO_TICKET if self._key is None else hmac.digest(self._key, card, "sha256")
