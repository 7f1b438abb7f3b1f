"""Masks: keystreams that two peers, or one, can draw again, and that leave of a vector nothing but uniform words.

A pair's seed is HKDF-SHA256 (RFC 5869) over an X25519 secret (RFC 7748) of two keys made for one use; a keystream is
ChaCha20 (RFC 8439), nonce zero, under a key that is derived for this use and no other. The cipher is the secure choice
and the fast one: a Mersenne twister is neither (reported of other systems: masks drawn from it under 32 bits of seed).

Private keys are plain bytes here: whoever uses this shares them out by Shamir's scheme (`shares`), lest the mask of one
that is gone stays in the sum.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from veilmesh.core import LocalError
from veilmesh.crypto.fixed import Words
from veilmesh.crypto.session import agree

__all__ = ["KEY_BYTES", "add_mask", "check_public", "derive", "key_pair", "keystream", "pair_secret", "subtract_mask"]

KEY_BYTES: Final = 32
_CHUNK: Final = 1 << 18  # bytes: what a core's cache holds twice over
_ZEROS: Final = bytes(_CHUNK)
_ANY: Final = bytes(31) + b"\x01"  # a low order shows with every private key
_NONCE: Final = bytes(16)  # counter and nonce: a key is used once


def key_pair(entropy: bytes) -> tuple[bytes, bytes]:
    """An X25519 key pair (private, public), 32 bytes each. `entropy`: 32 secret bytes that were drawn for it."""
    key = X25519PrivateKey.from_private_bytes(entropy)
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def check_public(public: bytes) -> None:
    """Raises RemoteError(MALFORMED) on a public key that agrees with nothing (a point of low order)."""
    agree(X25519PrivateKey.from_private_bytes(_ANY), public)


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes by HKDF-SHA256 from `secret`: others for every `salt` (where it is used) and `info` (what for)."""
    return HKDF(SHA256(), KEY_BYTES, salt=salt, info=info).derive(secret)


def pair_secret(private: bytes, theirs: bytes, salt: bytes, info: bytes) -> bytes:
    """What the holders of two X25519 keys can both derive, and nobody else: 32 bytes.

    `info` is the same at both ends: the ids in one order. Raises RemoteError(MALFORMED) on a key that agrees with
    nothing (a point of low order).
    """
    return derive(agree(X25519PrivateKey.from_private_bytes(private), theirs), salt, info)


def keystream(key: bytes) -> Callable[[int], bytes]:
    """A source of secret bytes that follows from `key` (32 bytes): the next so many at each call."""
    stream = Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()
    return lambda count: stream.update(bytes(count))


def add_mask(words: Words, key: bytes) -> None:
    """Add the keystream of `key` to `words` (d,), in place. Never twice with one key, other than to take it off."""
    _apply(words, key, np.add)


def subtract_mask(words: Words, key: bytes) -> None:
    """Subtract the keystream of `key` from `words` (d,), in place."""
    _apply(words, key, np.subtract)


def _apply(words: Words, key: bytes, operation: np.ufunc) -> None:
    if words.dtype not in (np.dtype("<u2"), np.dtype("<u4")) or not words.flags.c_contiguous:
        raise LocalError("masks are for contiguous words of 16 or 32 bits")
    stream = Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()
    buffer: NDArray[np.uint8] = np.empty(min(_CHUNK, words.nbytes), np.uint8)
    mask, per_chunk = buffer.view(words.dtype), _CHUNK // words.itemsize
    for start in range(0, words.size, per_chunk):
        part = words[start : start + per_chunk]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], buffer.data[: part.nbytes])
        operation(part, mask[: part.size], out=part)
