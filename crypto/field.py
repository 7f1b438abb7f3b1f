"""Arithmetic modulo the Mersenne prime p = 2^31 - 1, on whole arrays, exactly.

Elements are uint64 in [0, p): a product of two fits in 62 bits, and a number is reduced by folding its high bits onto
its low ones, for 2^31 = 1 modulo p. Products of matrices go through float64, which is exact below 2^53: an element is
split in two limbs of 16 and 15 bits, and sums of 2^20 products of limbs stay below 2^52. So BLAS does the work.
"""

from typing import Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from veilmesh.core import LocalError, Refusal, RemoteError

__all__ = [
    "PRIME", "Elements", "centred", "elements", "inverse", "matmul", "multiply", "pack", "random_elements", "reduced",
    "subtract", "unpack",
]  # fmt: skip

PRIME: Final = (1 << 31) - 1
_BITS, _P = np.uint64(31), np.uint64(PRIME)
_LIMB, _LOW = np.uint64(16), np.uint64(0xFFFF)
_SPAN = 1 << 20  # products of limbs that are added up before they are reduced

Elements: TypeAlias = NDArray[np.uint64]
"""Field elements, each in [0, p)."""


def reduced(x: Elements) -> Elements:
    """Any uint64 modulo p."""
    x = (x & _P) + (x >> _BITS)
    x = (x & _P) + (x >> _BITS)  # now at most p + 4
    folded: Elements = np.minimum(x, x - _P)  # below p, the difference wraps around to something huge
    return folded


def elements(x: NDArray[np.int64]) -> Elements:
    """Signed integers modulo p."""
    return (x % PRIME).astype(np.uint64)


def centred(x: Elements) -> NDArray[np.int64]:
    """Elements as the signed integers nearest to zero, in [-(p - 1) / 2, (p - 1) / 2]."""
    signed = x.astype(np.int64)
    return np.where(signed > PRIME // 2, signed - PRIME, signed)


def subtract(a: Elements, b: Elements) -> Elements:
    """a - b modulo p."""
    return reduced(a + (_P - b))


def multiply(a: Elements, b: Elements) -> Elements:
    """a x b modulo p, coordinate by coordinate."""
    return reduced(a * b)


def inverse(a: int) -> int:
    """The number that a has to be multiplied by to make 1. Raises ValueError for a multiple of p."""
    return pow(a, -1, PRIME)


def matmul(a: Elements, b: Elements) -> Elements:
    """(r, m) x (m, c) modulo p: (r, c)."""
    total = np.zeros((a.shape[0], b.shape[1]), np.uint64)
    for begin in range(0, a.shape[1], _SPAN):
        total = reduced(total + _product(a[:, begin : begin + _SPAN], b[begin : begin + _SPAN]))
    return total


def _product(a: Elements, b: Elements) -> Elements:
    low_a, high_a = _limbs(a)
    low_b, high_b = _limbs(b)
    low = reduced((low_a @ low_b).astype(np.uint64))
    middle = reduced((low_a @ high_b).astype(np.uint64)) + reduced((high_a @ low_b).astype(np.uint64))
    high = reduced((high_a @ high_b).astype(np.uint64))  # counts 2^32, which is 2 modulo p
    return reduced(low + (reduced(middle) << _LIMB) + (high << np.uint64(1)))


def _limbs(x: Elements) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (x & _LOW).astype(np.float64), (x >> _LIMB).astype(np.float64)


def random_elements(key: bytes, count: int, stream: int = 0) -> Elements:
    """`count` elements, uniform, from the ChaCha20 keystream of a secret `key` of 32 bytes, by number of the `stream`.

    31 of the bits of each word; the one value in 2^31 that is no element is drawn again. The same key and stream give
    the same elements: a key is used for one sharing only.
    """
    if len(key) != 32:
        raise LocalError(f"a key of {len(key)} bytes for a keystream of ChaCha20")
    cipher = Cipher(ChaCha20(key, bytes(8) + stream.to_bytes(8, "big")), mode=None).encryptor()
    found: list[Elements] = []
    while (missing := count - sum(len(part) for part in found)) > 0:
        words = np.frombuffer(cipher.update(bytes(4 * missing)), "<u4").astype(np.uint64) & _P
        found.append(words[words < _P])
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def pack(x: Elements) -> bytes:
    """Elements as little-endian words of four bytes."""
    return x.astype("<u4").tobytes()


def unpack(raw: bytes, count: int) -> Elements:
    """`count` elements of a remote peer. Raises RemoteError(MALFORMED)."""
    if len(raw) != 4 * count:
        raise RemoteError(Refusal.MALFORMED, f"{len(raw)} bytes for {count} field elements")
    x = np.frombuffer(raw, "<u4").astype(np.uint64)
    if (x >= _P).any():
        raise RemoteError(Refusal.MALFORMED, "a number that is no field element")
    return x
