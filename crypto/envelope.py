"""Sealed envelopes: everything that crosses a wire is one of these, and nothing is parsed before it is authentic.

The `Mailroom` is a machine without clock or socket: bodies in, frames out, and back. For every peer it holds one
outgoing and at most a few incoming one-way sessions (`session`), whose frames (`frame`) may be lost and may overtake
each other. Therefore:

* The hello that opens a session rides in every frame until the other side says, in the `ack` of its own frames, that it
  has opened the session. Whatever subset of frames arrives, and in whatever order, each can be opened alone.
* Replay is judged per session by a sliding window, which moves only after a seal has opened.
* Sessions are refused beyond a few rather than evicted: an evicted session could be opened again by a replayed hello,
  with an empty window. An honest peer opens one per start; a new card (with a higher serial) clears the table.

The signature covers the ciphertext, not the body. That order is unsafe where another can strip the signature and sign
the same ciphertext as its own; here the session key is bound to both identities (in the HPKE info, the HKDF info and
the associated data), so a frame signed by anybody else than the one who sealed it does not open.

Keys move on: every 16 frames a key is left behind and deleted (`session`, `ratchet`).

Not hidden: who speaks to whom, when, of which kind, and how long bodies are, unless they are padded (`padding`). One
Mailroom belongs to one thread, and to one process:
its copy in a forked child would seal other bodies under the same nonces, so it refuses to.
"""

import os
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto import frame as layout
from veilmesh.crypto.card import RUN_BYTES, Card
from veilmesh.crypto.frame import HELLO_BYTES, TAG_BYTES, Header, frame_size
from veilmesh.crypto.identity import Identity, PeerId, public_key
from veilmesh.crypto.padding import Padding, pad, unpad
from veilmesh.crypto.ratchet import EPOCH_FRAMES, Chain
from veilmesh.crypto.session import NO_SESSION_ID, Ends, Incoming, Outgoing, accept, agree, begin, join

__all__ = ["INCOMING_SESSIONS", "KINDS", "MAX_BODY", "PROTECTIONS", "Card", "Mailroom", "Opened"]

PROTECTIONS: Final = {
    "signature": "ed25519",
    "first contact": "hpke (x25519, hkdf-sha256, aes-256-gcm)",
    "envelope": f"aes-256-gcm, replay window, keys ratcheted every {EPOCH_FRAMES} frames",
}
"""What every frame of a Mailroom has, for a run's record of what was in force. There is no mode without."""

MAX_BODY: Final = 128 << 20
"""The largest body, in bytes, unless told otherwise: 32 million numbers as float32. A bound, and never allocated."""

KINDS: Final = frozenset(range(1, 9))
"""The kinds of message a frame may announce, unless told otherwise. A closed table: unknown kinds are refused."""

INCOMING_SESSIONS: Final = 4
"""How many sessions one peer may open under one card."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An authentic body. What it says is still only its sender's word."""

    sender: PeerId
    kind: int
    body: bytes


@dataclass(slots=True)
class _Contact:
    """Everything held about one admitted peer."""

    card: Card
    public: bytes
    shared: bytes = field(repr=False)
    outgoing: Outgoing | None = None
    incoming: dict[bytes, Incoming] = field(default_factory=dict)
    newest: bytes = NO_SESSION_ID


class Mailroom:
    """Seals what one peer says, and opens what it is told.

    Args:
        identity: signs every frame.
        sealing_key: this start's X25519 key, whose public half is on this peer's own card.
        run: the run's id, 16 bytes; frames and cards of other runs are refused.
        max_body: the largest body in bytes, in both directions.
        kinds: the kinds of message spoken here, each in [0, 255].
        padding: how bodies are made longer before they are sealed; one that says so itself may then have a byte less
            than `max_body`. Frames are opened whether they are padded or not.
    """

    def __init__(
        self,
        identity: Identity,
        sealing_key: X25519PrivateKey,
        run: bytes,
        max_body: int = MAX_BODY,
        kinds: frozenset[int] = KINDS,
        padding: Padding = "none",
    ) -> None:
        if len(run) != RUN_BYTES or not 0 < max_body < (1 << 32) - TAG_BYTES or not kinds <= set(range(256)):
            raise LocalError("a mailroom needs a 16-byte run id, a body cap below 4 GiB, and kinds that fit one byte")
        self._identity = identity
        self._key = sealing_key
        self._sealing = sealing_key.public_key().public_bytes_raw()
        self._run = run
        self._max_body = max_body
        self._kinds = kinds
        self._padding = padding
        self._room = max_body - (padding != "none")  # for a body and its padding's mark
        self._process = os.getpid()
        self._contacts: dict[bytes, _Contact] = {}
        self._by_peer: dict[PeerId, _Contact] = {}

    @property
    def me(self) -> PeerId:
        """The peer this mailroom belongs to."""
        return self._identity.peer

    def admit(self, card: Card) -> bool:
        """Verify `card` and put it in the roster, in place of the peer's earlier one; whether that changed anything.

        This peer's own card changes nothing. Sessions live on if the sealing key is the same, and end if it is new.
        Raises RemoteError: WRONG_RUN, BAD_SIGNATURE, MALFORMED (a key that agrees with nothing), or REPLAY (another
        card than the known one, whose serial is not higher).
        """
        known = self._by_peer.get(card.peer)
        if card.peer == self._identity.peer or (known is not None and known.card == card):
            return False
        if card.run != self._run:
            raise RemoteError(Refusal.WRONG_RUN, "a card of another run")
        card.verify()
        if known is not None and card.serial <= known.card.serial:
            raise RemoteError(
                Refusal.REPLAY, f"a card with serial {card.serial}, which is not newer than the known one"
            )
        if known is not None and known.card.sealing == card.sealing:
            known.card = card
            return True
        contact = _Contact(card, public_key(card.peer), agree(self._key, card.sealing))
        self._contacts[contact.public] = self._by_peer[card.peer] = contact
        return True

    def forget(self, peer: PeerId) -> None:
        """Take `peer` out of the roster, with its sessions.

        Frames that were taken under its card could then be taken again: the caller never admits that card again.
        """
        if (contact := self._by_peer.pop(peer, None)) is not None:
            del self._contacts[contact.public]

    def card(self, peer: PeerId) -> Card | None:
        """The card under which `peer` is in the roster, or None."""
        contact = self._by_peer.get(peer)
        return contact.card if contact else None

    def seal(self, to: PeerId, kind: int, body: bytes) -> bytes:
        """The frame that says `body` to `to`. Raises LocalError: a stranger, an unknown kind, too large a body,
        or a mailroom that was made by another process."""
        contact = self._by_peer.get(to)
        if contact is None:
            raise LocalError(f"{to} is not in the roster: admit its card first")
        if kind not in self._kinds or len(body) > self._room:
            raise LocalError(f"a body of kind {kind} and {len(body)} bytes is not one this mailroom may send")
        if os.getpid() != self._process:
            raise LocalError("a mailroom that was copied by a fork would use its nonces twice; make one after the fork")
        session = contact.outgoing or self._begin(contact)
        hello = b"" if session.acknowledged else session.hello
        padded, sequence = pad(body, self._padding, self._max_body), session.next_sequence()
        header = Header(
            kind, self._run, self._identity.public, contact.public, session.id, session.joined,
            sequence, len(hello), len(padded) + TAG_BYTES, self._padding != "none",
        )  # fmt: skip
        return layout.write(header, hello, session.chain.write(sequence), padded, self._identity)

    def open(self, frame: bytes) -> Opened:
        """Check `frame`, cheapest first, and open it. State changes only if it opens.

        Raises RemoteError, in this order: OVERSIZED, TRUNCATED, VERSION, WRONG_RUN, MISDIRECTED, STRANGER,
        BAD_SIGNATURE, NO_SESSION, BAD_SEAL or MALFORMED (hello), REPLAY, BAD_SEAL, MALFORMED (padding).
        """
        header, contact = self._check_header(frame)
        if not layout.signed(frame, header.sender):
            raise RemoteError(Refusal.BAD_SIGNATURE, contact.card.peer)
        session = self._session(contact, header, frame)
        session.window.check(header.sequence)
        joint = self._joint(contact, header.session, session)
        chain = _chain_of(contact, header, session, joint)
        body = _decrypt(chain.cipher(header.sequence), header, frame)
        session.take(header.sequence, chain)
        if header.session not in contact.incoming:
            contact.incoming[header.session] = session
            contact.newest = header.session
        if joint is not None and contact.outgoing is not None:
            _join(contact.outgoing, header.session, session, joint)
        if contact.outgoing is not None and header.ack == contact.outgoing.id:
            contact.outgoing.acknowledged = True
        return Opened(contact.card.peer, header.kind, body)

    def _begin(self, contact: _Contact) -> Outgoing:
        """A session to write under, joined at once if the other side was heard before."""
        session = contact.outgoing = begin(self._ends_to(contact), contact.shared)
        known = contact.incoming.get(contact.newest)
        if known is not None and (joint := self._joint(contact, contact.newest, known)) is not None:
            _join(session, contact.newest, known, joint)
        return session

    def _joint(self, contact: _Contact, name: bytes, incoming: Incoming) -> tuple[Chain, Chain] | None:
        """The joint chains of what this peer writes under and what it reads, if neither is joined yet."""
        if contact.outgoing is None or contact.outgoing.share is None:
            return None
        return join(self._ends_to(contact), contact.outgoing, name, incoming.share, contact.shared)

    def _check_header(self, frame: bytes) -> tuple[Header, _Contact]:
        """Everything that costs nothing: sizes, version, run, addressee and roster."""
        if len(frame) > frame_size(self._max_body, with_hello=True):
            raise RemoteError(Refusal.OVERSIZED, f"a frame of {len(frame)} bytes")
        header = layout.read(frame)
        if header.ciphertext > self._max_body + TAG_BYTES:
            raise RemoteError(Refusal.OVERSIZED, f"a body of {header.ciphertext - TAG_BYTES} bytes")
        if header.kind not in self._kinds:
            raise RemoteError(Refusal.VERSION, f"kind {header.kind}")
        if header.run != self._run:
            raise RemoteError(Refusal.WRONG_RUN, header.run.hex())
        if header.receiver != self._identity.public:
            raise RemoteError(Refusal.MISDIRECTED, "a frame for somebody else")
        contact = self._contacts.get(header.sender)
        if contact is None:
            raise RemoteError(Refusal.STRANGER, header.sender.hex())
        return header, contact

    def _session(self, contact: _Contact, header: Header, frame: bytes) -> Incoming:
        """The session a signed frame belongs to: a known one, or the one its hello opens (not yet remembered)."""
        known = contact.incoming.get(header.session)
        if known is not None:
            return known
        if not header.hello or len(contact.incoming) >= INCOMING_SESSIONS:
            raise RemoteError(Refusal.NO_SESSION, contact.card.peer)
        hello = frame[header.sealed_from - HELLO_BYTES : header.sealed_from]
        return accept(self._ends_from(contact), header.session, hello, self._key, contact.shared)

    def _ends_to(self, contact: _Contact) -> Ends:
        return Ends(self._run, self._identity.public, contact.public, self._sealing, contact.card.sealing)

    def _ends_from(self, contact: _Contact) -> Ends:
        return Ends(self._run, contact.public, self._identity.public, contact.card.sealing, self._sealing)


def _chain_of(contact: _Contact, header: Header, session: Incoming, joint: tuple[Chain, Chain] | None) -> Chain:
    """What a frame says it is sealed under. Raises RemoteError(BAD_SEAL): it acknowledges what is not joined."""
    if header.ack == NO_SESSION_ID:
        return session.alone
    chain = session.joint or (joint[1] if joint else None)
    if contact.outgoing is None or header.ack != contact.outgoing.id or chain is None:
        raise RemoteError(Refusal.BAD_SEAL, "an acknowledgement of a session that is not joined with this one")
    return chain


def _join(outgoing: Outgoing, name: bytes, incoming: Incoming, joint: tuple[Chain, Chain]) -> None:
    """Go over to the joint chains, and delete what they came from."""
    outgoing.chain, incoming.joint = joint
    outgoing.joined, outgoing.share, incoming.share = name, None, b""


def _decrypt(cipher: AESGCM, header: Header, frame: bytes) -> bytes:
    start, end = header.sealed_from, header.sealed_from + header.ciphertext
    with memoryview(frame) as view:
        try:
            body = cipher.decrypt(layout.nonce(header.sequence), view[start:end], view[:start])
        except InvalidTag:
            raise RemoteError(Refusal.BAD_SEAL, "a body that does not open") from None
    return unpad(body) if header.padded else body
