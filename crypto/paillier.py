"""Paillier's additively homomorphic encryption of integers (Paillier 1999, section 4, with g = n + 1).

    n = p q, a product of two primes of one length          Enc(m) = (1 + m n) r^n mod n^2, r random below n
    Enc(a) Enc(b) = Enc(a + b mod n)

Whoever holds p decrypts by half the modulus twice (Paillier 1999, section 7). Numbers are signed: above n / 2 they are
taken as negative. Sums are exact, and a decryption holds no noise: shown beside its ciphertext it tells nothing of the
key, as it does with CKKS (`cpad`). It is no encryption against chosen ciphertexts: anybody can add to one.

`cryptography`'s RSA makes the primes, which OpenSSL does well; it makes none for n of 512 bits, and rightly so: those
are `pycryptodome`'s, and there only because published systems have used that size. A number of 512 bits is factored in
hours on rented machines (Valenta et al. 2016), and whoever factors n reads everything.

Powers go through pycryptodome's `Integer`: ten times as fast as Python's own, and in constant time where its C part is
there, for exponents here are secrets.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric import rsa

from veilmesh.core import LocalError, Refusal, RemoteError

__all__ = ["INSECURE_BITS", "KeyBits", "PrivateKey", "PublicKey", "generate"]

KeyBits: TypeAlias = Literal[512, 1024, 2048, 3072]
"""Lengths of n. 2048 is the least that is thought to hold (112 bits); the two below are not secure."""

INSECURE_BITS: Final = (512, 1024)

_LEAST_RSA_BITS: Final = 1024  # what OpenSSL still makes


@dataclass(frozen=True)
class PublicKey:
    """n, with which anybody encrypts and adds. Ciphertexts are integers from 1 to n^2 - 1."""

    n: int

    @cached_property
    def square(self) -> int:
        """n^2, the modulus of ciphertexts."""
        return self.n * self.n

    @property
    def largest(self) -> int:
        """The largest magnitude of a number, or of a sum, that comes out as it went in."""
        return self.n // 2

    def encrypt(self, number: int) -> int:
        """A fresh ciphertext of a number from -`largest` to `largest`, by the system's generator. Raises LocalError."""
        if abs(number) > self.largest:
            raise LocalError(f"a number of {number.bit_length()} bits under a key of {self.n.bit_length()}")
        blind = _power(_unit(self.n), self.n, self.square)
        return (1 + number * self.n) % self.square * blind % self.square

    def add(self, ciphertexts: Sequence[int]) -> int:
        """The ciphertext of the sum. Raises RemoteError as `check`, and LocalError for no ciphertexts."""
        if not ciphertexts:
            raise LocalError("there is no sum of no ciphertexts")
        self.check(ciphertexts)
        total = 1
        for ciphertext in ciphertexts:
            total = total * ciphertext % self.square
        return total

    def check(self, ciphertexts: Iterable[int]) -> None:
        """Raises RemoteError(MALFORMED) unless all are units modulo n^2, as every honest ciphertext is."""
        product = 1
        for ciphertext in ciphertexts:
            if not 0 < ciphertext < self.square:
                raise RemoteError(Refusal.MALFORMED, "a Paillier ciphertext that is not below n^2")
            product = product * ciphertext % self.n
        if math.gcd(product, self.n) != 1:
            raise RemoteError(Refusal.MALFORMED, "a Paillier ciphertext that has a factor in common with n")


@dataclass(frozen=True)
class PrivateKey:
    """p and q, different odd primes of one length. `repr` leaves them out."""

    p: int = field(repr=False)
    q: int = field(repr=False)

    @cached_property
    def public(self) -> PublicKey:
        """The half that may be shown."""
        return PublicKey(self.p * self.q)

    def decrypt(self, ciphertext: int) -> int:
        """The number in `ciphertext`, from -n/2 to n/2. Raises RemoteError(MALFORMED) for what is no ciphertext."""
        self.public.check((ciphertext,))
        at_p, at_q = self._modulo(ciphertext, self.p, self._scale_p), self._modulo(ciphertext, self.q, self._scale_q)
        number = at_q + self.q * ((at_p - at_q) * self._q_inverse % self.p)
        return number - self.public.n if number > self.public.largest else number

    def _modulo(self, ciphertext: int, prime: int, scale: int) -> int:
        """The number modulo one of the primes."""
        return _logarithm(_power(ciphertext % prime**2, prime - 1, prime**2), prime) * scale % prime

    @cached_property
    def _scale_p(self) -> int:
        return _scale(self.public.n, self.p)

    @cached_property
    def _scale_q(self) -> int:
        return _scale(self.public.n, self.q)

    @cached_property
    def _q_inverse(self) -> int:
        return pow(self.q, -1, self.p)


def generate(bits: KeyBits = 2048) -> PrivateKey:
    """A fresh key of n with exactly so many bits, from the system's generator."""
    if bits >= _LEAST_RSA_BITS:
        numbers = rsa.generate_private_key(public_exponent=65537, key_size=bits).private_numbers()
        return PrivateKey(numbers.p, numbers.q)
    while True:
        p, q = _small_prime(bits // 2), _small_prime(bits // 2)
        if p != q and (p * q).bit_length() == bits:
            return PrivateKey(p, q)


def _small_prime(bits: int) -> int:
    from Crypto.Math.Primality import generate_probable_prime

    return int(generate_probable_prime(exact_bits=bits))


def _unit(n: int) -> int:
    """A random number below n that has no factor in common with it."""
    while True:
        number = secrets.randbelow(n)
        if math.gcd(number, n) == 1:
            return number


def _power(base: int, exponent: int, modulus: int) -> int:
    from Crypto.Math.Numbers import Integer

    return int(pow(Integer(base), Integer(exponent), Integer(modulus)))


def _logarithm(unit: int, prime: int) -> int:
    """Paillier's L: the logarithm to the base 1 + prime, modulo prime^2."""
    return (unit - 1) // prime


def _scale(n: int, prime: int) -> int:
    """The inverse of L((1 + n)^(prime - 1) mod prime^2) modulo a prime."""
    return pow(_logarithm(pow(1 + n, prime - 1, prime**2), prime), -1, prime)
