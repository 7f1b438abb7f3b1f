"""One-way sessions: how two peers come to share a key that only one of them writes under.

First contact is HPKE (RFC 9180, base mode, X25519 / HKDF-SHA256 / AES-256-GCM) of a fresh 32-byte secret to the sealing
key on the receiver's card. Base mode says nothing about the sender, so the session key is

    HKDF-SHA256(ikm = secret || X25519(own sealing key, their sealing key), salt = run, info = label || both)

where *both* are the two identities, the two sealing keys and the session id: only these two processes can compute it,
and it is another key for every pair, direction and start. A restarted peer has a new sealing key, so frames sealed to
its earlier life open no more.

The secret is an X25519 share: the public half of a key that its sender keeps until it has opened the other side's
hello. Then both sides go over to a *joint* key in each direction,

    HKDF-SHA256(ikm = X25519(share, share) || sender's share || receiver's share || X25519(sealing, sealing), ...)

and delete the private halves. Which of the two a frame is sealed under, its `ack` says: none, or the session that was
joined. Either key is the root of a chain that is ratcheted (`ratchet`). So:

* somebody who takes a peer's identity key later reads nothing;
* somebody who takes a peer's memory at some moment, its sealing key included, reads what comes after, and of what was
  recorded before only the frames of epochs that were not over (16 frames), and what was said before the other side had
  been heard, which the sealing key opens by itself: signs of life, but no message of a protocol, since nodes wait for
  them;
* what follows that moment is not healed within a start: a new start is a new card, with new keys.

Keys are never derived from a scenario's seed: secrets come from the operating system, and that is the one exception to
"randomness is an argument". A seeded key would be a key that everybody who reads the scenario file has.
"""

import os
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.ratchet import EPOCH_FRAMES, Chain, epoch_of

__all__ = [
    "NO_SESSION_ID", "WINDOW_BITS", "Ends", "Incoming", "Outgoing", "ReplayWindow", "accept", "agree", "begin", "join",
]  # fmt: skip

WINDOW_BITS: Final = 1024
"""How far behind the newest frame of a session another may arrive and still be taken."""

NO_SESSION_ID: Final = bytes(8)

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HELLO_LABEL = b"veilmesh session v2 hello\x00"
_KEY_LABEL = b"veilmesh session v2 key\x00"
_JOINT_LABEL = b"veilmesh session v2 joint\x00"


class Ends(NamedTuple):
    """The two ends of a one-way session; every field has a fixed length, so their concatenation is unambiguous."""

    run: bytes
    sender: bytes
    receiver: bytes
    sender_sealing: bytes
    receiver_sealing: bytes

    def back(self) -> Self:
        """The ends of a session the other way."""
        return self._replace(
            sender=self.receiver,
            receiver=self.sender,
            sender_sealing=self.receiver_sealing,
            receiver_sealing=self.sender_sealing,
        )


@dataclass(slots=True)
class ReplayWindow:
    """Which sequence numbers were taken: the highest, and a bit for each of the 1024 up to it (RFC 4303, 3.4.3)."""

    highest: int = -1
    taken: int = 0

    def check(self, sequence: int) -> None:
        """Raises RemoteError(REPLAY) if `sequence` was taken, or is too old to tell."""
        behind = self.highest - sequence
        if behind >= WINDOW_BITS or (behind >= 0 and self.taken >> behind & 1):
            raise RemoteError(Refusal.REPLAY, f"sequence {sequence}")

    def take(self, sequence: int) -> None:
        """Mark `sequence`; only after the seal has opened, or a forger could close the window for honest frames."""
        ahead = sequence - self.highest
        if ahead <= 0:
            self.taken |= 1 << -ahead
            return
        # a jump beyond the window must not shift by what a peer says: that would be its memory bill on us
        kept = self.taken << ahead if ahead < WINDOW_BITS else 0
        self.taken = (kept | 1) & ((1 << WINDOW_BITS) - 1)
        self.highest = sequence

    @property
    def oldest(self) -> int:
        """The lowest number that would still be taken, were it not taken already."""
        return max(0, self.highest - WINDOW_BITS + 1)

    def whole(self, epoch: int) -> bool:
        """Whether every number of `epoch` was taken, as far as the window goes back."""
        behind = self.highest - (epoch + 1) * EPOCH_FRAMES + 1
        every = (1 << EPOCH_FRAMES) - 1
        return behind >= 0 and self.taken >> behind & every == every


@dataclass(slots=True)
class Outgoing:
    """The session this peer writes under, and the hello it attaches until the other side has acknowledged it."""

    id: bytes
    hello: bytes = field(repr=False)
    chain: Chain
    share: X25519PrivateKey | None = field(repr=False)  # until the session is joined
    sequence: int = 0
    acknowledged: bool = False
    joined: bytes = NO_SESSION_ID  # the other side's session, once both write under joint keys

    def next_sequence(self) -> int:
        """A number never given before: counted up before it is used, so that no failure can repeat a nonce."""
        self.sequence += 1
        return self.sequence - 1


@dataclass(slots=True)
class Incoming:
    """A session another peer writes under, alone and then jointly; both count the same frames."""

    alone: Chain
    share: bytes = field(repr=False)  # empty once the session is joined
    joint: Chain | None = None
    window: ReplayWindow = field(default_factory=ReplayWindow)

    def take(self, sequence: int, chain: Chain) -> None:
        """A frame has opened under `chain`: mark its number, and delete the keys that no frame needs any more."""
        self.window.take(sequence)
        epoch = epoch_of(sequence)
        if epoch >= chain.reached:
            chain.reach(sequence, self.window.oldest)
            if chain is not self.alone:
                self.alone.close(sequence, self.window.oldest)  # whoever writes jointly never goes back
        if self.window.whole(epoch):
            chain.drop(sequence)
            self.alone.drop(sequence)


def agree(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """The static X25519 secret of two sealing keys. Raises RemoteError(MALFORMED) on a low-order key."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise RemoteError(Refusal.MALFORMED, "a sealing key that agrees with nothing") from None


def begin(ends: Ends, shared: bytes) -> Outgoing:
    """A fresh session towards the receiver of `ends`."""
    session, share = os.urandom(8), X25519PrivateKey.generate()
    secret = share.public_key().public_bytes_raw()
    theirs = X25519PublicKey.from_public_bytes(ends.receiver_sealing)
    hello = _SUITE.encrypt(secret, theirs, info=_bound(_HELLO_LABEL, ends, session))
    return Outgoing(session, hello, _chain(ends, _bound(_KEY_LABEL, ends, session), secret + shared), share)


def accept(ends: Ends, session: bytes, hello: bytes, own: X25519PrivateKey, shared: bytes) -> Incoming:
    """The session that `hello` opens.

    Raises RemoteError: BAD_SEAL if it was not made for exactly these ends, MALFORMED if it holds a low-order share.
    """
    try:
        secret = _SUITE.decrypt(hello, own, info=_bound(_HELLO_LABEL, ends, session))
    except (InvalidTag, ValueError):
        raise RemoteError(Refusal.BAD_SEAL, "a hello that does not open") from None
    agree(own, secret)  # refused here, so that joining cannot fail
    return Incoming(_chain(ends, _bound(_KEY_LABEL, ends, session), secret + shared), secret)


def join(ends: Ends, outgoing: Outgoing, session: bytes, theirs: bytes, shared: bytes) -> tuple[Chain, Chain]:
    """The joint chains of `outgoing` (whose ends these are) and of the other side's `session` with the share `theirs`.

    The first is to write under, the second to read. Changes nothing. Raises LocalError if `outgoing` is joined already.
    """
    if outgoing.share is None:
        raise LocalError("a session is joined once")
    ours, both = outgoing.share.public_key().public_bytes_raw(), agree(outgoing.share, theirs)
    out = _bound(_JOINT_LABEL, ends, outgoing.id + session)
    back = _bound(_JOINT_LABEL, ends.back(), session + outgoing.id)
    return _chain(ends, out, both + ours + theirs + shared), _chain(ends, back, both + theirs + ours + shared)


def _chain(ends: Ends, info: bytes, secrets: bytes) -> Chain:
    return Chain(HKDF(SHA256(), 32, salt=ends.run, info=info).derive(secrets))


def _bound(label: bytes, ends: Ends, session: bytes) -> bytes:
    return label + b"".join(ends) + session
