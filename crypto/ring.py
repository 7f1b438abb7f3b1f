"""Arithmetic in SEAL's ring Z_q[X] / (X^N + 1): its number-theoretic transform, and CKKS's embedding.

For attacks on CKKS, which hold public values only: nothing here is constant-time, and nothing honest runs it. Residues
are Python integers in numpy's object arrays, because products of 60-bit numbers are longer than 64 bits.

SEAL keeps transforms in bit-reversed order: entry i is the value at psi^(2 bitrev(i) + 1), psi its smallest primitive
2N-th root of unity; so entry N - 1 - i is the value at the inverse of that point. Slot j of CKKS is the value at
exp(i pi 3^j / N) over the scale (Cheon et al. 2017, section 3.2).
"""

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Integers", "Ring", "bit_reversed_roots"]

Integers: TypeAlias = NDArray[Any]
"""Python integers, shape (N,), dtype object."""


@dataclass(frozen=True, slots=True)
class Ring:
    """Degree N, a power of two, and a prime q that is 1 modulo 2N."""

    degree: int
    prime: int

    def transform(self, coefficients: Integers) -> Integers:
        """Values at all roots, in SEAL's order (Longa and Naehrig 2016, algorithm 1)."""
        values = coefficients.reshape(1, -1) % self.prime
        roots, blocks = _roots(self.degree, self.prime)[0], 1
        while blocks < self.degree:
            left, right = np.hsplit(values, 2)
            right = right * roots[blocks : 2 * blocks, None] % self.prime
            values = np.stack([left + right, left - right], axis=1).reshape(2 * blocks, -1) % self.prime
            blocks *= 2
        flat: Integers = values.reshape(-1)
        return flat

    def inverse(self, values: Integers) -> Integers:
        """Coefficients, centred at 0, of values at all roots in SEAL's order."""
        rows, blocks = values.reshape(-1, 1) % self.prime, self.degree
        roots = _roots(self.degree, self.prime)[1]
        while blocks > 1:
            blocks //= 2
            left, right = rows[0::2], rows[1::2]
            rows = np.hstack([left + right, (left - right) * roots[blocks : 2 * blocks, None]]) % self.prime
        flat: Integers = rows.reshape(-1) * pow(self.degree, -1, self.prime) % self.prime
        return np.where(flat > self.prime // 2, flat - self.prime, flat)

    def invert(self, numbers: Integers) -> Integers:
        """Inverses modulo q of numbers that have one."""
        return np.array([pow(int(number), -1, self.prime) for number in numbers], object)

    def doubled_real(self, slots: NDArray[np.float64], scale: float) -> Integers:
        """Of a polynomial p whose slots have these real parts (N / 2,): p(X) + p(1/X), rounded.

        The other half of p is in the imaginary parts, which TenSEAL does not hand out.
        """
        at = np.empty(self.degree, np.complex128)  # at[k]: the value at exp(i pi (2k + 1) / N)
        places = self._places()
        at[places] = at[self.degree - 1 - places] = 2.0 * slots * scale
        twist = np.exp(-1j * np.pi * np.arange(self.degree) / self.degree)
        return _whole((np.fft.fft(at) / self.degree * twist).real)

    def slots(self, coefficients: Integers, scale: float) -> NDArray[np.float64]:
        """The real parts of the slots (N / 2,) of a polynomial with centred `coefficients`."""
        twist = np.exp(1j * np.pi * np.arange(self.degree) / self.degree)
        at = np.fft.ifft(coefficients.astype(np.float64) * twist) * self.degree
        real: NDArray[np.float64] = at[self._places()].real / scale
        return real

    def _places(self) -> NDArray[np.int64]:
        """Where slot j is among the odd powers of exp(i pi / N)."""
        powers = [1]
        for _ in range(self.degree // 2 - 1):
            powers.append(powers[-1] * 3 % (2 * self.degree))
        return np.array(powers) // 2


def _whole(numbers: NDArray[np.float64]) -> Integers:
    return np.array([int(number) for number in np.rint(numbers)], object)


def bit_reversed_roots(degree: int, prime: int) -> Integers:
    """Powers of psi in bit-reversed order: the factors of the transform's butterflies."""
    return _roots(degree, prime)[0]


@functools.lru_cache(maxsize=4)
def _roots(degree: int, prime: int) -> tuple[Integers, Integers]:
    """Powers of psi and of its inverse, bit-reversed."""
    psi, bits = _smallest_root(degree, prime), degree.bit_length() - 1
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(degree)]
    return _powers(psi, prime, order), _powers(pow(psi, -1, prime), prime, order)


def _powers(root: int, prime: int, order: list[int]) -> Integers:
    powers = [1]
    for _ in range(len(order) - 1):
        powers.append(powers[-1] * root % prime)
    return np.array([powers[i] for i in order], object)


def _smallest_root(degree: int, prime: int) -> int:
    """The smallest primitive 2N-th root of unity modulo `prime`, which is SEAL's choice."""
    candidate = 2
    while pow(root := pow(candidate, (prime - 1) // (2 * degree), prime), degree, prime) != prime - 1:
        candidate += 1
    square, smallest = root * root % prime, root
    for _ in range(degree - 1):
        root = root * square % prime
        smallest = min(smallest, root)
    return smallest
