"""Exact arithmetic on polynomials modulo X^N + 1 and primes of at most 40 bits, in numpy.

Residues are split into limbs so short that double precision holds every sum of products exactly: by scalars as a matrix
product, by polynomials as a discrete Fourier transform of N / 2 complex points (X^(N/2) stands for i, and a twist makes
the convolution negacyclic). Only public numbers and the evaluator's own go through here, but for `times_ternary`, by
which a key's owner multiplies with its key: no branch and no address depends on what is multiplied.
"""

import functools
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError
from veilmesh.crypto import ring

__all__ = [
    "LIMB_BITS", "Integers", "Spectra", "flood", "halved", "horner", "product", "rounded", "spectra", "times",
    "times_scalars", "times_ternary", "transform",
]  # fmt: skip

Integers: TypeAlias = NDArray[np.int64]
Spectra: TypeAlias = NDArray[np.complex128]
Floats: TypeAlias = NDArray[np.float64]

LIMB_BITS: Final = 19
"""Bits of a limb of `flood`."""

_STEP: Final = 22  # bits by which a residue of 40 bits may be shifted within 63
_POLYNOMIAL_LIMBS: Final = (14, 3)  # bits, count: 42 >= 40
_SCALAR_LIMBS: Final = ((20, 2), (14, 3))
_TERNARY_LIMBS: Final = (20, 2)
_EXACT: Final = float(1 << 53)


def times(values: Integers, factor: int | Integers, prime: int) -> Integers:
    """`values` (...), signed, below 2^62 in magnitude, times `factor`, modulo `prime`: from 0 to prime - 1."""
    low, factor = values % prime, factor % prime
    high: Integers = (low >> _STEP) * factor % prime << _STEP
    return (high + (low & ((1 << _STEP) - 1)) * factor % prime) % prime


def horner(limbs: Integers, bits: int, prime: int) -> Integers:
    """The numbers modulo `prime` whose limbs of `bits` (at most 22), the lowest first, are `limbs` (count, ...).

    Limbs may be signed, and of any length.
    """
    total: Integers = limbs[-1] % prime
    for limb in limbs[-2::-1]:
        total = ((total << bits) + limb % prime) % prime
    return total


def flood(count: int, bits: int, stream: Callable[[int], bytes]) -> Integers:
    """Limbs (L, count), the lowest first, of numbers uniform from -2^(bits-1) to 2^(bits-1) - 1.

    `stream`: a source of secret bytes. `horner` makes residues of them.
    """
    limbs = -(-bits // LIMB_BITS)
    drawn = np.frombuffer(stream(4 * limbs * count), "<u4").reshape(limbs, count).astype(np.int64)
    drawn &= (1 << LIMB_BITS) - 1
    top = bits - LIMB_BITS * (limbs - 1)
    drawn[-1] = (drawn[-1] & ((1 << top) - 1)) - (1 << (top - 1))
    return drawn


def transform(coefficients: Integers, prime: int) -> Integers:
    """Values (..., N) of polynomials (..., N), residues modulo `prime`, at all roots of X^N + 1 in SEAL's order.

    As `ring.Ring.transform`, on whole arrays (Longa and Naehrig 2016, algorithm 1).
    """
    degree, values = coefficients.shape[-1], coefficients[..., None, :]
    roots, blocks = _roots(degree, prime), 1
    while blocks < degree:
        left, right = np.split(values, 2, axis=-1)
        right = times(right, roots[blocks : 2 * blocks, None], prime)
        values = np.stack([left + right, left - right], axis=-2) % prime
        blocks *= 2
        values = values.reshape(*coefficients.shape[:-1], blocks, -1)
    return values.reshape(coefficients.shape)


def times_scalars(words: Integers, scalars: Integers, primes: tuple[int, ...]) -> Integers:
    """Sums over K of residues `words` (K, 2, P, N) times `scalars` (K, M), signed: residues (M, 2, P, N).

    Raises LocalError where double precision could not hold the sums.
    """
    largest = float(np.abs(scalars).astype(np.float64).sum(0).max(initial=0))
    fits = [(bits, count) for bits, count in _SCALAR_LIMBS if largest * (1 << bits) < _EXACT]
    if not fits:
        raise LocalError(f"scalars whose magnitudes sum to {largest:.0f} are too many for double precision")
    (bits, count), factors = fits[0], scalars.T.astype(np.float64)
    flat = words.reshape(words.shape[0], -1)
    sums = np.stack([(factors @ limb).astype(np.int64) for limb in _limbs(flat, bits, count)])
    return _reduced(sums.reshape(count, scalars.shape[1], *words.shape[1:]), bits, primes)


def spectra(polynomials: Integers) -> Spectra:
    """Transforms (..., N / 2) of integer polynomials (..., N)."""
    return _forward(polynomials.astype(np.float64))


def halved(words: Integers) -> Spectra:
    """Transforms (limbs, ..., N / 2) of the limbs of residues (..., N), centred at 0."""
    bits, count = _POLYNOMIAL_LIMBS
    return np.stack([_forward(limb) for limb in _limbs(words, bits, count)])


def product(words: Spectra, factor: Spectra) -> Spectra:
    """Sums over K of transforms `words` (L, K, 2, P, N / 2) times `factor` (K, N / 2): (L, 2, P, N / 2)."""
    total = np.zeros((words.shape[0], *words.shape[2:]), np.complex128)
    for k in range(words.shape[1]):
        total += words[:, k] * factor[k]
    return total


def rounded(total: Spectra, primes: tuple[int, ...]) -> Integers:
    """Residues (2, P, N) of a `product` (L, 2, P, N / 2). Raises LocalError where a sum came out between integers."""
    return _reduced(_whole(_backward(total)), _POLYNOMIAL_LIMBS[0], primes)


def times_ternary(residues: Integers, secret: NDArray[np.int8], prime: int) -> Integers:
    """Residues (..., N) modulo `prime` times the polynomial `secret` (N,) of -1, 0 and 1."""
    bits, count = _TERNARY_LIMBS
    factor = _forward(secret.astype(np.float64))
    sums = np.stack([_whole(_backward(_forward(limb) * factor)) for limb in _limbs(residues, bits, count)])
    return horner(sums, bits, prime)


def _reduced(sums: Integers, bits: int, primes: tuple[int, ...]) -> Integers:
    """Residues (..., P, N) of sums by limb (L, ..., P, N)."""
    return np.stack([horner(sums[..., i, :], bits, prime) for i, prime in enumerate(primes)], axis=-2)


def _limbs(words: Integers, bits: int, count: int) -> list[Floats]:
    """Limbs of `bits`, the lowest first, each from -2^(bits-1) to 2^(bits-1) - 1 but for the last one."""
    limbs, rest, half = [], words, 1 << (bits - 1)
    for _ in range(count - 1):
        low = ((rest + half) & ((1 << bits) - 1)) - half
        limbs.append(low.astype(np.float64))
        rest = (rest - low) >> bits
    return [*limbs, rest.astype(np.float64)]


def _forward(coefficients: Floats) -> Spectra:
    half = coefficients.shape[-1] // 2
    points = coefficients[..., :half] + 1j * coefficients[..., half:]
    return np.fft.fft(points * _twist(half))


def _backward(points: Spectra) -> Floats:
    half = points.shape[-1]
    plain = np.fft.ifft(points) * _twist(half).conj()
    return np.concatenate([plain.real, plain.imag], axis=-1)


def _whole(numbers: Floats) -> Integers:
    whole = np.rint(numbers)
    if np.abs(numbers - whole).max(initial=0) > 0.25:
        raise LocalError("a product of polynomials came out between integers: its factors are too large")
    return whole.astype(np.int64)


@functools.lru_cache(maxsize=4)
def _twist(half: int) -> Spectra:
    twist: Spectra = np.exp(0.5j * np.pi * np.arange(half) / half)
    twist.flags.writeable = False
    return twist


@functools.lru_cache(maxsize=16)
def _roots(degree: int, prime: int) -> Integers:
    return ring.bit_reversed_roots(degree, prime).astype(np.int64)
