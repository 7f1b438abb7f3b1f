"""Sums of vectors by Paillier's scheme: what it costs to do with it what `homomorphic` does with BFV and CKKS.

A coordinate is rounded to a level, and a level stored so that it is never negative, as in `lanes`. Either every
coordinate has a ciphertext of its own, as most code of federated learning has it; or as many as fit share one, each in
a lane with guard bits for the sum (Zhang et al. 2020, "BatchCrypt", section 4): 70 in 2048 bits with the defaults.

A frame as in `ciphertexts`; its body is n for a public key, p and q for a secret one, and for a ciphertext integers
below n^2, all big-endian and of the length that the scheme has. `check_ciphertext` has no key, so it checks sizes only;
whether they are units modulo n^2 is checked in `add` and `decrypt`, before anything is done with them.

One ciphertext takes milliseconds: run it as work (`homomorphic_work`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Self, get_args

import numpy as np
from pydantic import Field

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.ciphertexts import CIPHERTEXT, HEADER, PUBLIC, SECRET, Frames, Keys
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.checks import local_vector
from veilmesh.crypto.homomorphic import Floats
from veilmesh.crypto.lanes import Integers, guard_bits, quantised
from veilmesh.crypto.paillier import KeyBits, PrivateKey, PublicKey, generate

__all__ = ["Paillier"]


@dataclass(frozen=True, slots=True)
class Paillier(Frames):
    """Paillier on quantised coordinates: the sum of what `quantise` says is exact (`homomorphic.Exact`).

    Args:
        value_bits: of a coordinate, sign included: 2^value_bits - 1 levels.
        peers: the most vectors that may be summed.
        limit: the largest magnitude of a coordinate; a level is worth limit / (2^(value_bits-1) - 1).
        key_bits: of n. 512 and 1024 are not secure.
        packed: several coordinates to a ciphertext; else one.
        clips: a coordinate beyond `limit` is clipped to it; else it is refused.

    Raises BadInput for figures out of range.
    """

    value_bits: Annotated[int, Field(ge=2, le=32)] = 24
    peers: Annotated[int, Field(ge=2, le=4096)] = 32
    limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    key_bits: KeyBits = 2048
    packed: bool = True
    clips: bool = True

    def __post_init__(self) -> None:
        figures = 2 <= self.value_bits <= 32 and 2 <= self.peers <= 4096 and 0 < self.limit < float("inf")
        if not figures or self.key_bits not in get_args(KeyBits):
            raise BadInput(
                "Paillier takes 2 to 32 bits a value, 2 to 4096 peers, a limit above 0 and a key of 512, 1024, 2048 or "
                "3072 bits; change the one that is not."
            )

    @classmethod
    def fixed_point(cls, peers: int, scale: float = 1e5, key_bits: KeyBits = 2048, packed: bool = True) -> Self:
        """Coordinates as multiples of 1 / `scale`, up to 2^23 of them; what is larger is refused, not clipped."""
        return cls(24, peers, ((1 << 23) - 1) / scale, key_bits, packed, clips=False)

    @property
    def capacity(self) -> int:
        """Coordinates in one ciphertext."""
        return (self.key_bits - 2) // self._width if self.packed else 1

    @property
    def largest(self) -> int:
        """The largest level."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def step(self) -> float:
        """What one level is worth."""
        return self.limit / self.largest

    def ready(self) -> None:
        """Nothing has to be installed for it."""

    def quantise(self, x: Vector, rng: np.random.Generator | None = None) -> Integers:
        """As `Exact.quantise`. Raises BadInput for a coordinate beyond `limit` where that is not clipped."""
        if not self.clips and np.abs(local_vector(x)).max(initial=0) > self.limit:
            raise BadInput(
                f"An update has a coordinate beyond {self.limit:g}, too large for Paillier at this scale; use a lower "
                "learning rate."
            )
        return quantised(local_vector(x), self.limit, self.largest, rng)

    def dequantise(self, levels: Integers) -> Floats:
        """What levels, or a sum of levels, are worth."""
        return levels * np.float64(self.step)

    # --- keys --------------------------------------------------------------------------------------------------

    def keys(self) -> Keys:
        made = generate(self.key_bits)
        secret = b"".join(prime.to_bytes(self._bytes // 2, "big") for prime in (made.p, made.q))
        return Keys(
            self._frame(PUBLIC, 0) + made.public.n.to_bytes(self._bytes, "big"), self._frame(SECRET, 0) + secret
        )

    def keys_of(self, public: bytes, secret: bytes) -> Keys:
        """As `Scheme.keys_of`: tried on one number, for primes are not proved to be prime."""
        known, key = self._public(public), self._secret(secret)
        try:
            fits = key.public == known and key.decrypt(known.encrypt(1)) == 1
        except ValueError:  # no inverse: not primes
            fits = False
        if not fits:
            raise RemoteError(Refusal.MALFORMED, "not the two halves of one Paillier key")
        return Keys(public, secret)

    def check_public(self, public: bytes) -> None:
        """As `Scheme.check_public`. Whether n is a product of two primes only its owner knows, and only it is hurt."""
        self._public(public)

    def public_size(self) -> int:
        return self._size(PUBLIC, 0)

    def _public(self, raw: bytes) -> PublicKey:
        self._check_frame(raw, PUBLIC, 0)
        n = int.from_bytes(raw[HEADER:], "big")
        if n.bit_length() != self.key_bits or n % 2 == 0:
            raise RemoteError(Refusal.MALFORMED, "a Paillier key that is even or too short")
        return PublicKey(n)

    def _secret(self, raw: bytes) -> PrivateKey:
        self._check_frame(raw, SECRET, 0)
        half = HEADER + self._bytes // 2
        p, q = int.from_bytes(raw[HEADER:half], "big"), int.from_bytes(raw[half:], "big")
        if p % 2 == 0 or q % 2 == 0 or p == q or min(p, q) < 3:
            raise RemoteError(Refusal.MALFORMED, "a Paillier key of numbers that are no primes")
        return PrivateKey(p, q)

    # --- vectors -----------------------------------------------------------------------------------------------

    def encrypt(self, public: bytes, x: Vector, rng: np.random.Generator | None = None) -> bytes:
        key, levels = self._public(public), self.quantise(x, rng)
        parts = (levels[at : at + self.capacity] for at in range(0, levels.size, self.capacity))
        return self._joined(levels.size, (key.encrypt(self._pack(part)) for part in parts))

    def add(self, public: bytes, ciphertexts: Sequence[bytes]) -> bytes:
        """As `Scheme.add`. Raises LocalError for more than `peers`: their lanes would run over."""
        if not 0 < len(ciphertexts) <= self.peers:
            raise LocalError(f"a sum of {len(ciphertexts)} vectors where there is room for {self.peers}")
        key, dimension = self._public(public), int.from_bytes(ciphertexts[0][HEADER - 4 : HEADER], "big")
        columns = zip(*(self._integers(raw, dimension) for raw in ciphertexts), strict=True)
        return self._joined(dimension, (key.add(column) for column in columns))

    def decrypt(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Floats:
        return self.dequantise(self.decrypt_levels(keys, ciphertext, dimension, count))

    def decrypt_levels(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Integers:
        """The exact sum (d,) of the levels of `count` vectors. Raises RemoteError as `Scheme.decrypt`."""
        if not 0 < count <= self.peers:
            raise LocalError(f"a sum of {count} vectors where there is room for {self.peers}")
        key, levels, at = self._secret(keys.serialise_secret()), np.empty(dimension, np.int64), 0
        for integer in self._integers(ciphertext, dimension):
            size = min(self.capacity, dimension - at)
            levels[at : at + size] = self._unpack(key.decrypt(integer), size, count)
            at += size
        return levels

    def check_ciphertext(self, ciphertext: bytes, dimension: int) -> None:
        """As `Scheme.check_ciphertext`: its size and frame."""
        self._check_frame(ciphertext, CIPHERTEXT, dimension)

    def ciphertext_size(self, dimension: int) -> int:
        return self._size(CIPHERTEXT, dimension)

    def _pack(self, levels: Integers) -> int:
        """One number that holds `levels`, the first in its lowest bits. Raises LocalError if they overflow it."""
        if levels.size > self.capacity or np.abs(levels).max(initial=0) > self.largest:
            raise LocalError(f"levels that {self.capacity} lanes of {self.value_bits} bits do not hold")
        number = 0
        for level in reversed(levels.tolist()):
            number = number << self._width | level + self.largest
        return number

    def _unpack(self, number: int, size: int, count: int) -> Integers:
        """The levels of a sum of `count` numbers of `size` levels. Raises RemoteError(MISMATCH) if no honest ones have
        it: a lane that ran over, or that holds too much."""
        if number < 0 or number >> (size * self._width):
            raise RemoteError(Refusal.MISMATCH, "a sum that is larger than its lanes")
        lane = (1 << self._width) - 1
        stored = np.array([number >> at * self._width & lane for at in range(size)], np.int64)
        if stored.max(initial=0) > 2 * count * self.largest:
            raise RemoteError(Refusal.MISMATCH, f"a sum that {count} vectors cannot have")
        return stored - count * self.largest

    # --- frames ------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        return self.value_bits + guard_bits(self.peers)

    @property
    def _bytes(self) -> int:
        """Bytes of n; a ciphertext has twice as many."""
        return self.key_bits // 8

    def _figures(self) -> tuple[float, ...]:
        return self.value_bits, self.peers, self.limit, self.key_bits, self.packed

    def _size(self, kind: int, dimension: int) -> int:
        return HEADER + self._bytes * (2 * -(-dimension // self.capacity) if kind == CIPHERTEXT else 1)

    def _integers(self, raw: bytes, dimension: int) -> Iterator[int]:
        self._check_frame(raw, CIPHERTEXT, dimension)
        size = 2 * self._bytes
        return (int.from_bytes(raw[at : at + size], "big") for at in range(HEADER, len(raw), size))

    def _joined(self, dimension: int, integers: Iterable[int]) -> bytes:
        bodies = (integer.to_bytes(2 * self._bytes, "big") for integer in integers)
        return b"".join([self._frame(CIPHERTEXT, dimension), *bodies])
