"""Ciphertexts and keys of SEAL as what they are: polynomials of N coefficients, each modulo several primes.

On our wire these numbers are all there is of them, little-endian, 7 or 8 bytes each: a ciphertext and a public key are
two polynomials, a secret key is one. Adding ciphertexts is adding residues, and needs no key and no library.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import Refusal, RemoteError

__all__ = ["Residues", "Words"]

Words: TypeAlias = NDArray[np.uint64]
"""Residues: shape (2, primes, N), both polynomials of a ciphertext or a public key; (1, primes, N) of a secret key."""


@dataclass(frozen=True, slots=True)
class Residues:
    """The polynomials of a ciphertext (or a key) modulo `primes`, and their bytes."""

    degree: int
    primes: tuple[int, ...]
    polynomials: int = 2

    @property
    def width(self) -> int:
        """Bytes of one residue."""
        return -(-max(self.primes).bit_length() // 8)

    @property
    def size(self) -> int:
        """Bytes of all polynomials."""
        return self.polynomials * len(self.primes) * self.degree * self.width

    def read(self, raw: bytes | memoryview) -> Words:
        """Residues (polynomials, primes, N).

        Raises RemoteError: TRUNCATED unless of exactly `size`, MALFORMED if one is not below its prime.
        """
        if len(raw) != self.size:
            raise RemoteError(Refusal.TRUNCATED, f"{len(raw)} bytes of residues where {self.size} belong")
        words = self._wide(raw).reshape(self.polynomials, len(self.primes), self.degree)
        if (words >= self._moduli()).any():
            raise RemoteError(Refusal.MALFORMED, "a residue that is not below its prime")
        return words

    def write(self, words: Words) -> bytes:
        """The bytes that `read` takes."""
        flat = np.ascontiguousarray(words, "<u8").reshape(-1, 1).view(np.uint8)
        return np.ascontiguousarray(flat[:, : self.width]).tobytes()

    def add(self, left: Words, right: Words) -> Words:
        """The sum modulo the primes: what SEAL's add does to ciphertexts; two residues together stay below 2^64."""
        total = left + right
        smaller: Words = np.minimum(total, total - self._moduli())  # what would be negative is huge instead
        return smaller

    def _wide(self, raw: bytes | memoryview) -> Words:
        """One number of 64 bits for every `width` bytes: read eight at a time, and the next one's cut off. By far the
        fastest way; the last one has nothing behind it to read."""
        count = len(raw) // self.width
        words = np.empty(count, np.uint64)
        words[:-1] = np.ndarray((count - 1,), "<u8", raw, 0, (self.width,))
        words[-1] = int.from_bytes(raw[-self.width :], "little")
        words &= np.uint64((1 << 8 * self.width) - 1)
        return words

    def _moduli(self) -> Words:
        return np.array(self.primes, np.uint64)[None, :, None]
