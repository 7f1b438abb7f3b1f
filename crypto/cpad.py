"""CKKS gives its secret key away with what it decrypts (IND-CPA-D: Li and Micciancio, Eurocrypt 2021, section 4).

A CKKS decryption is c0 + c1 s = m + e, noise included: whoever sees a ciphertext and its full-precision decryption has
a linear equation for the key s, of as many unknowns as the ring has coefficients. TenSEAL hands out the real parts of
the slots, which is half of the equations, so two decrypted ciphertexts determine s: pointwise in the transform's
domain, a point and its inverse make one 2 x 2 system modulo q. A vector of two chunks is two ciphertexts.

What it takes: decryptions whose error in the ring is below a half. Double precision is enough at the usual scales;
float32 is at a scale of 2^30, and not at 2^40. Rounding more is not a defence, only the end of this form of the attack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.homomorphic import Approximate, Floats
from veilmesh.crypto.residues import Words
from veilmesh.crypto.ring import Integers, Ring

__all__ = ["RecoveredKey", "recover_secret"]


@dataclass(frozen=True, slots=True, eq=False)
class RecoveredKey:
    """A secret key that nobody gave away: `coefficients` (N,) of -1, 0 and 1."""

    scheme: Approximate
    coefficients: NDArray[np.int8]

    def read(self, ciphertext: bytes, dimension: int) -> Floats:
        """What any ciphertext (or sum) under that key holds, (dimension,). Raises RemoteError if it is none."""
        ring, scale = _ring(self.scheme), _scale(self.scheme)
        secret = ring.transform(self.coefficients.astype(object))
        parts = []
        for words in self.scheme.words(ciphertext, dimension):
            left, right = _polynomials(words)
            parts.append(ring.slots(ring.inverse(left + right * secret), scale))
        return np.concatenate([np.empty(0), *parts])[:dimension]


def recover_secret(
    scheme: Approximate, ciphertexts: Sequence[bytes], decryptions: Sequence[Floats]
) -> RecoveredKey | None:
    """The secret key, from ciphertexts under one key and what they decrypt to, each (d,).

    None where fewer than two whole chunks are known (the slots behind a vector's end are noise that nobody publishes),
    or the decryptions were rounded too far. Raises RemoteError for what is no ciphertext.
    """
    known = list(_whole_chunks(scheme, ciphertexts, decryptions))[:2]
    if len(known) < 2:
        return None
    coefficients = _solved(_ring(scheme), _scale(scheme), known)
    if coefficients is None or not np.isin(coefficients, (-1, 0, 1)).all():
        return None  # SEAL's keys are ternary: anything else is not the key
    return RecoveredKey(scheme, coefficients.astype(np.int8))


def _whole_chunks(
    scheme: Approximate, ciphertexts: Sequence[bytes], decryptions: Sequence[Floats]
) -> Iterator[tuple[Words, Floats]]:
    size = scheme.capacity
    for raw, values in zip(ciphertexts, decryptions, strict=True):
        for i, words in enumerate(scheme.words(raw, values.size)[: values.size // size]):
            yield words, values[i * size : (i + 1) * size].astype(np.float64)


def _solved(ring: Ring, scale: float, known: list[tuple[Words, Floats]]) -> Integers | None:
    """Cramer's rule at every pair of points; None where one pair has no single solution (one in 2^48 or so has none).

    With t the value of s at a point and u at its inverse: c1 t + c1' u = r - c0 - c0', where ' is the value at the
    inverse and r is p(X) + p(1/X), the same at both.
    """
    (a, b, right), (c, d, below) = (_equation(ring, scale, words, values) for words, values in known)
    determinant = (a * d - b * c) % ring.prime
    if not determinant.all():
        return None
    return ring.inverse((right * d - b * below) * ring.invert(determinant))


def _equation(ring: Ring, scale: float, words: Words, values: Floats) -> tuple[Integers, Integers, Integers]:
    left, right = _polynomials(words)
    real = ring.transform(ring.doubled_real(values, scale))
    return right, right[::-1], real - left - left[::-1]


def _polynomials(words: Words) -> tuple[Integers, Integers]:
    """Both polynomials modulo the first prime, as Python integers."""
    return words[0, 0].astype(object), words[1, 0].astype(object)


def _ring(scheme: Approximate) -> Ring:
    residues = scheme.template.ciphertext
    return Ring(residues.degree, residues.primes[0])


def _scale(scheme: Approximate) -> float:
    return float(2.0**scheme.scale_bits)
