"""The layout of a frame on the wire: header, hello, ciphertext, signature.

Whoever carries a frame reads its header: who, to whom, which run, how long and how many. The round and everything
else about the training lie inside the seal, because a relay must not see them. Timing is not hidden, and lengths are
only where bodies are padded (`padding`).
"""

import hashlib
import struct
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.identity import SIGNATURE_BYTES, Identity, verify
from veilmesh.crypto.padding import Padding, padded_size

__all__ = [
    "ENVELOPE_OVERHEAD", "HELLO_BYTES", "TAG_BYTES", "VERSION", "Header", "frame_size", "nonce", "read",
    "signed", "write",
]  # fmt: skip

VERSION: Final = 2  # 1 had one key for a whole start
TAG_BYTES: Final = 16  # of AES-GCM
HELLO_BYTES: Final = 80  # HPKE: a 32-byte X25519 share, a 32-byte secret, a 16-byte tag

_MAGIC = b"VM"
_DOMAIN = b"veilmesh frame v1\x00"
_HAS_HELLO, _PADDED = 1, 2
# magic, version, kind, flags, run, sender, receiver, session, ack, sequence, hello length, ciphertext length
_FIELDS = struct.Struct("!2sBBB16s32s32s8s8sQHI")

ENVELOPE_OVERHEAD: Final = _FIELDS.size + TAG_BYTES + SIGNATURE_BYTES
"""Bytes that a frame without a hello adds to its body (195)."""


class Header(NamedTuple):
    """What stands in front of a frame, in clear. Keys are raw Ed25519 public keys."""

    kind: int
    run: bytes  # 16
    sender: bytes  # 32
    receiver: bytes  # 32
    session: bytes  # 8: the one-way session that the ciphertext belongs to
    ack: bytes  # 8: the receiver's session that the sender has opened and joined; zeros if none
    sequence: int  # in [0, 2^64), the nonce
    hello: int  # length: 0 or HELLO_BYTES
    ciphertext: int  # length
    padded: bool = False  # whether the body was made longer before it was sealed

    @property
    def sealed_from(self) -> int:
        """Where the ciphertext begins; everything before it is authenticated with it."""
        return _FIELDS.size + self.hello


def frame_size(body_bytes: int, with_hello: bool, padding: Padding = "none", cap: int | None = None) -> int:
    """The exact length in bytes of a frame around a body of `body_bytes`, where none may be longer than `cap`."""
    return ENVELOPE_OVERHEAD + padded_size(body_bytes, padding, cap) + (HELLO_BYTES if with_hello else 0)


def write(header: Header, hello: bytes, cipher: AESGCM, body: bytes, identity: Identity) -> bytes:
    """Seal `body` under `cipher` and sign. One buffer is written in place and copied once, for large bodies' sake."""
    frame = bytearray(header.sealed_from + header.ciphertext + SIGNATURE_BYTES)
    flags = (_HAS_HELLO if header.hello else 0) | (_PADDED if header.padded else 0)
    _FIELDS.pack_into(frame, 0, _MAGIC, VERSION, header.kind, flags, *header[1:-1])
    frame[_FIELDS.size : header.sealed_from] = hello
    with memoryview(frame) as view:
        start, end = header.sealed_from, header.sealed_from + header.ciphertext
        cipher.encrypt_into(nonce(header.sequence), body, view[:start], view[start:end])
        view[end:] = identity.sign(_digest(view[:end]))
    return bytes(frame)


def read(frame: bytes) -> Header:
    """The header of `frame`. Raises RemoteError(TRUNCATED or VERSION); its lengths then fit the frame exactly."""
    if len(frame) < ENVELOPE_OVERHEAD:
        raise RemoteError(Refusal.TRUNCATED, f"{len(frame)} bytes are no frame")
    magic, version, kind, flags, *rest = _FIELDS.unpack_from(frame)
    if magic != _MAGIC or version != VERSION or flags & ~(_HAS_HELLO | _PADDED):
        raise RemoteError(Refusal.VERSION, "not a frame of this version")
    header = Header._make((kind, *rest, flags & _PADDED != 0))
    if header.hello != (HELLO_BYTES if flags & _HAS_HELLO else 0) or header.ciphertext < TAG_BYTES:
        raise RemoteError(Refusal.TRUNCATED, "a frame's inner lengths")
    if len(frame) != header.sealed_from + header.ciphertext + SIGNATURE_BYTES:
        raise RemoteError(Refusal.TRUNCATED, f"{len(frame)} bytes are not what the header says")
    return header


def signed(frame: bytes, sender: bytes) -> bool:
    """Whether the holder of the Ed25519 public key `sender` has signed `frame`."""
    with memoryview(frame) as view:
        return verify(sender, frame[-SIGNATURE_BYTES:], _digest(view[:-SIGNATURE_BYTES]))


def nonce(sequence: int) -> bytes:
    """The 96-bit AES-GCM nonce of a sequence number: unique, because a session's key has one writer that counts."""
    return sequence.to_bytes(12, "big")


def _digest(content: memoryview) -> bytes:
    """What is signed: a hash, because Ed25519 reads its message twice and is slow beyond a megabyte."""
    return _DOMAIN + hashlib.sha256(content).digest()
