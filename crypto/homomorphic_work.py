"""Homomorphic encryption as work: what a machine asks its worker for, as data.

TenSEAL holds the interpreter's lock, so these run in a worker process. A remote peer's fault is a result (`Refused`),
not an exception: an exception in a worker is this program's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from veilmesh.core import Refusal, RemoteError, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Floats, Keys, Scheme

__all__ = ["Add", "Decrypt", "Encrypt", "HomomorphicTask", "MakeKeys", "Refused"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Refused:
    """A remote peer's bytes could not be used: what `RemoteError` would have said."""

    refusal: Refusal
    detail: str


@dataclass(frozen=True, slots=True)
class MakeKeys:
    """Make a fresh key pair of `scheme`."""

    scheme: Scheme

    def run(self) -> Keys:
        return self.scheme.keys()


@dataclass(frozen=True, slots=True, eq=False)
class Encrypt:
    """Encrypt `x` (d,) under `public`; rounded at random by the stream of `seed`, or to the nearest."""

    scheme: Scheme
    public: bytes
    x: Vector
    seed: int | None = None

    def run(self) -> bytes | Refused:
        rng: np.random.Generator | None = None if self.seed is None else generator(self.seed, "quantise")
        return _settled(lambda: self.scheme.encrypt(self.public, self.x, rng))


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Add `ciphertexts`, at least one, made under `public`."""

    scheme: Scheme
    public: bytes
    ciphertexts: tuple[bytes, ...]

    def run(self) -> bytes | Refused:
        return _settled(lambda: self.scheme.add(self.public, self.ciphertexts))


@dataclass(frozen=True, slots=True, eq=False)
class Decrypt:
    """Decrypt the sum of `count` vectors (dimension,)."""

    scheme: Scheme
    keys: Keys
    ciphertext: bytes
    dimension: int
    count: int

    def run(self) -> Floats | Refused:
        return _settled(lambda: self.scheme.decrypt(self.keys, self.ciphertext, self.dimension, self.count))


HomomorphicTask: TypeAlias = MakeKeys | Encrypt | Add | Decrypt


def _settled(act: Callable[[], _T]) -> _T | Refused:
    try:
        return act()
    except RemoteError as error:
        return Refused(error.refusal, str(error))
