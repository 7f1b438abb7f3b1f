"""Sums of vectors that only a key's owner can read: BFV on packed integers (exact) and CKKS (approximate).

An additively homomorphic scheme protects contributions from whoever adds, and from nobody who holds the secret key and
sees one of them alone. So each receiver has a key pair of its own, its neighbours encrypt to it, and a third peer (the
blind proxy) adds and hands on nothing but the sum: that peer and the receiver must not collude. `shared_key` is the
usual set-up, in which one secret key is everybody's, and is there to be broken. The scheme that came first, and is much
slower, is in `paillier_vectors`.

Bytes: `check_public` and `check_ciphertext` say, without TenSEAL, whether remote bytes have the one form they can have
(see `seal`): call them where the sender is known. Callers pass only bodies of opened envelopes: an unauthenticated byte
must never get as far as this room. Adding needs neither a key nor TenSEAL. What a ciphertext holds cannot be checked by
anybody before it is decrypted; `decrypt` refuses a sum that so many honest vectors cannot have, and cannot tell who
spoilt it. Neither scheme withstands chosen ciphertexts: who may send many under one key, and learns which were refused,
solves for the key. Keys are made in 10 ms: take fresh ones every round.

Slow (a million coordinates: 0.1 s, by CKKS 0.7 s) and holding the GIL: run `Encrypt`, `Add` and `Decrypt`
(`homomorphic_work`) in a worker process. Keys and encryption draw from the system's generator, which TenSEAL gives no
seed to: ciphertexts differ between two runs of a seed, BFV's sums do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.ciphertexts import Framed, Keys
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.checks import local_vector
from veilmesh.crypto.lanes import Integers, Packing, guard_bits, quantised
from veilmesh.crypto.seal import Parameters, Template, template

__all__ = ["Approximate", "Exact", "Floats", "Keys", "Lanes", "Scheme"]

Floats: TypeAlias = NDArray[np.float64]

_BFV: Final = (
    Parameters(4096, (54, 55), plain_bits=36),
    Parameters(8192, (60, 60), plain_bits=40),
    Parameters(8192, (60, 50, 60), plain_bits=58),
)
"""What lanes are laid out in. A fresh ciphertext of each has 11 bits of noise budget or more, and adding 2^k of them
costs at most k bits: enough for 256 peers."""

_CKKS: Final = {4096: (54, 55), 8192: (60, 40, 40, 60)}
"""Bits of the primes by ring degree: for additions only, and as TenSEAL's tutorials have it."""


class Scheme(Protocol):
    """Additively homomorphic encryption of flat float32 vectors (d,)."""

    @property
    def tag(self) -> bytes:
        """8 bytes that name the scheme and all its parameters: other settings are refused as MISMATCH."""
        ...

    @property
    def capacity(self) -> int:
        """Coordinates in one chunk: one ciphertext."""
        ...

    def ready(self) -> None:
        """Raises BadInput, which says what to install, if what the scheme needs is missing."""
        ...

    def keys(self) -> Keys:
        """A fresh key pair, drawn from the system's generator."""
        ...

    def keys_of(self, public: bytes, secret: bytes) -> Keys:
        """A pair that somebody else made, from `public` and `serialise_secret`. Raises RemoteError."""
        ...

    def encrypt(self, public: bytes, x: Vector, rng: np.random.Generator | None = None) -> bytes:
        """`x` (d,) under `public`. Raises RemoteError if that is no public key of this scheme."""
        ...

    def add(self, public: bytes, ciphertexts: Sequence[bytes]) -> bytes:
        """The ciphertext of the sum. Raises RemoteError if one is malformed or of another dimension or scheme."""
        ...

    def decrypt(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Floats:
        """The sum (d,) of `count` vectors. Raises RemoteError(MISMATCH) for what cannot be one, as under a wrong
        key."""
        ...

    def check_public(self, public: bytes) -> None:
        """Raises RemoteError unless `public` has the form of a public key of this scheme. Loads nothing."""
        ...

    def check_ciphertext(self, ciphertext: bytes, dimension: int) -> None:
        """Raises RemoteError unless `ciphertext` has the form of one of a vector (dimension,). Loads nothing."""
        ...

    def public_size(self) -> int:
        """Bytes of a public key."""
        ...

    def ciphertext_size(self, dimension: int) -> int:
        """Bytes of the ciphertext of a vector (dimension,), or of any sum of them."""
        ...


class Exact(Scheme, Protocol):
    """A scheme whose sums are exact: of levels that coordinates are rounded to, between -`limit` and `limit`."""

    @property
    def limit(self) -> float:
        """The largest magnitude of a coordinate; what is beyond it is clipped."""
        ...

    def quantise(self, x: Vector, rng: np.random.Generator | None = None) -> Integers:
        """The levels (d,) that stand for `x` (d,): to the nearest, or at random with `rng`, which is unbiased."""
        ...

    def dequantise(self, levels: Integers) -> Floats:
        """What levels, or a sum of levels, are worth."""
        ...


@dataclass(frozen=True, slots=True)
class Lanes(Framed):
    """BFV on quantised coordinates, several to a slot: the sum of what `quantise` says is exact.

    Args:
        value_bits: of a coordinate, sign included: 2^value_bits - 1 levels.
        peers: the most vectors that may be summed; each doubling costs a coordinate one bit.
        limit: coordinates are clipped to +-limit. The step between levels is limit / (2^(value_bits-1) - 1).

    The ring is chosen so that a coordinate takes least bytes: with the defaults three lanes to a slot, 5.3 bytes.
    Raises BadInput for figures out of range.
    """

    value_bits: Annotated[int, Field(ge=2, le=24)] = 8
    peers: Annotated[int, Field(ge=2, le=256)] = 32
    limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def __post_init__(self) -> None:
        if not (2 <= self.value_bits <= 24 and 2 <= self.peers <= 256 and 0 < self.limit < float("inf")):
            raise BadInput(
                "Lanes take 2 to 24 bits a value, 2 to 256 peers and a limit above 0; change the one that is not."
            )

    @property
    def template(self) -> Template:
        return template(self._parameters)

    @property
    def packing(self) -> Packing:
        """How coordinates lie in slots."""
        parameters = self._parameters
        return Packing(parameters.degree, self._lanes(parameters), self._width, self.value_bits)

    @property
    def capacity(self) -> int:
        return self.packing.capacity

    @property
    def step(self) -> float:
        """What one level is worth."""
        return self.limit / self.packing.largest

    def quantise(self, x: Vector, rng: np.random.Generator | None = None) -> Integers:
        """The levels (d,) that stand for `x` (d,): to the nearest, or at random with `rng`, which is unbiased."""
        return quantised(local_vector(x), self.limit, self.packing.largest, rng)

    def dequantise(self, levels: Integers) -> Floats:
        """What levels, or a sum of levels, are worth."""
        return levels * np.float64(self.step)

    def encrypt(self, public: bytes, x: Vector, rng: np.random.Generator | None = None) -> bytes:
        packing = self.packing
        parts = (x[at : at + packing.capacity] for at in range(0, x.size, packing.capacity))
        return self._write(public, local_vector(x).size, (packing.pack(self.quantise(part, rng)) for part in parts))

    def decrypt(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Floats:
        return self.dequantise(self.decrypt_levels(keys, ciphertext, dimension, count))

    def decrypt_levels(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Integers:
        """The exact sum of the levels of `count` vectors (dimension,). Raises RemoteError as `decrypt` does."""
        packing, levels, at = self.packing, np.empty(dimension, np.int64), 0
        for values in self._read(keys, ciphertext, dimension):
            slots = np.array(values, np.int64) % self.template.plain_modulus  # TenSEAL's are centred at 0
            size = min(packing.capacity, dimension - at)
            levels[at : at + size] = packing.unpack(slots, size, count)
            at += size
        return levels

    def _figures(self) -> tuple[float, ...]:
        return self.value_bits, self.peers, self.limit

    @property
    def _width(self) -> int:
        return self.value_bits + guard_bits(self.peers)

    def _lanes(self, parameters: Parameters) -> int:
        """A number of plain_bits - 1 bits is always below the plain modulus."""
        return (parameters.plain_bits - 1) // self._width

    @property
    def _parameters(self) -> Parameters:
        return min((p for p in _BFV if self._lanes(p)), key=lambda p: _bytes_per_slot(p) / self._lanes(p))


@dataclass(frozen=True, slots=True)
class Approximate(Framed):
    """CKKS (Cheon et al. 2017). As it comes: for additions only, 28 bytes a coordinate.

    A sum of `peers` vectors is off by about 1e-8. Nothing is clipped: a coordinate may be as large as `largest`. What
    is decrypted holds the noise of the ciphertexts, from which whoever sees it beside them solves for the key (`cpad`):
    never publish a decryption, not even a rounded one.

    Args:
        peers: the most vectors that may be summed.
        degree: of the ring; 8192 takes the primes of TenSEAL's tutorials, 96 bytes a coordinate.
        primes: bits of the primes of the modulus, the last one SEAL's special prime; () are those of the degree.
        scale_bits: a coordinate is encoded as a multiple of 2^-scale_bits.
    """

    peers: Annotated[int, Field(ge=2, le=4096)] = 32
    degree: Literal[4096, 8192] = 4096
    scale_bits: Annotated[int, Field(ge=20, le=40)] = 40
    primes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not (2 <= self.peers <= 4096 and self.degree in _CKKS and 20 <= self.scale_bits <= 40):
            raise BadInput("CKKS takes 2 to 4096 peers, degree 4096 or 8192 and a scale of 20 to 40 bits; change one.")

    @property
    def template(self) -> Template:
        return template(Parameters(self.degree, self._primes, scale_bits=self.scale_bits))

    @property
    def capacity(self) -> int:
        return self.degree // 2

    @property
    def largest(self) -> float:
        """The largest magnitude of a coordinate whose sum still fits the modulus."""
        bits = self._primes[0] - 2 - self.scale_bits  # the first prime alone, so that it alone can be decrypted
        return float(2.0**bits) / self.peers

    def encrypt(self, public: bytes, x: Vector, rng: np.random.Generator | None = None) -> bytes:
        """As `Scheme.encrypt`; draws nothing from `rng`. Raises BadInput for a coordinate beyond `largest`."""
        if np.abs(local_vector(x)).max(initial=0) > self.largest:
            raise BadInput(
                f"An update has a coordinate beyond {self.largest}, too large for CKKS; use a lower learning rate."
            )
        return self._write(public, x.size, self._slots(x))

    def decrypt(self, keys: Keys, ciphertext: bytes, dimension: int, count: int) -> Floats:
        parts = [np.array(values, np.float64) for values in self._read(keys, ciphertext, dimension)]
        total: Floats = np.concatenate([np.empty(0), *parts])[:dimension]
        if not (np.abs(total) <= count * self.largest).all():
            raise RemoteError(Refusal.MISMATCH, f"a sum that {count} vectors cannot have")
        return total

    def _figures(self) -> tuple[float, ...]:
        return self.peers, self.degree, self.scale_bits, *self.primes

    @property
    def _primes(self) -> tuple[int, ...]:
        return self.primes or _CKKS[self.degree]

    def _slots(self, x: Vector) -> Iterator[Floats]:
        for start in range(0, x.size, self.capacity):
            part = x[start : start + self.capacity].astype(np.float64)
            yield np.pad(part, (0, self.capacity - part.size))


def _bytes_per_slot(parameters: Parameters) -> float:
    used = parameters.prime_bits[:-1]
    return 2 * len(used) * -(-max(used) // 8)
