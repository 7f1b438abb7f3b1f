"""Sums that only all peers of a group can decrypt together: n-of-n threshold BFV, and CKKS beside it (Asharov et al.,
Eurocrypt 2012).

Nobody holds the secret key: it is the sum of shares that never leave the peers who drew them. Each encrypts under the
sum of all public shares; the sum of ciphertexts is decrypted by adding a partial decryption of every single peer, each
drowned in noise, so that it says nothing of the share. One that is missing, and nothing can be read: there is no
dropout here. `ThresholdSum` (BFV): sums are exact, coordinates are packed as by `lanes`, and the noise is OpenFHE's
NOISE_FLOODING_MULTIPARTY. `ThresholdReals` (CKKS): sums are near, and the noise is a constant of the library (its
standard deviation is 2^20, whatever is asked of a key), which is no argument about how many decryptions a share
survives; so a share is for one round here, as in the other.

A round: the leader's `common`; everybody's `share`, first committed to, then revealed; `join`; `encrypt`; `add`;
`partial`; `fuse`. Without commitments the last to speak could cancel the others' shares and own the group's key (a
rogue key). Not defended: the leader draws the random half of all public keys, and one that draws it with a trapdoor can
read; whoever adds something else than the group agreed on has that decrypted, so let several add, and compare.

Remote bytes go to OpenFHE's deserialiser, which trusts them: pass bodies of opened envelopes only. It runs in a process
of its own (`peer.openfhe_process`), where a crash costs the round and no more.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.checks import local_vector
from veilmesh.crypto.lanes import Integers, Packing, guard_bits, quantised

__all__ = [
    "PLAIN_MODULUS",
    "Ask",
    "Party",
    "Scheme",
    "ThresholdReals",
    "ThresholdSum",
    "check_commitment",
    "commitment",
]

PLAIN_MODULUS: Final = 1099510054913  # a prime of 40 bits, 1 modulo 2^18: slots for every ring up to degree 2^17
_BITS: Final = 39
_LARGEST: Final = 4 << 20  # bytes of a share, a ciphertext or a partial decryption: several times what they take

Ask: TypeAlias = Callable[[str, Sequence[bytes]], list[bytes]]
"""Has OpenFHE do something: what, with which bytes. Raises RemoteError(MALFORMED) where it cannot digest them."""


def commitment(run: bytes, round: int, sender: str, share: bytes, nonce: bytes) -> bytes:
    """What a peer says before it reveals its `share` (SHA-256); `nonce`: 32 secret bytes, revealed with the share."""
    parts = [run, round.to_bytes(8, "big"), sender.encode(), nonce, share]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


def check_commitment(said: bytes, run: bytes, round: int, sender: str, share: bytes, nonce: bytes) -> None:
    """Raises RemoteError(MISMATCH) unless `said` is the commitment to `share`."""
    if not hmac.compare_digest(said, commitment(run, round, sender, share, nonce)):
        raise RemoteError(Refusal.MISMATCH, "a key share that was not the one committed to")


class Scheme(Protocol):
    """How vectors become plaintexts, and sums of them vectors again."""

    @property
    def named(self) -> tuple[str, int]:
        """What a side process is to be told: the scheme, and its size."""
        ...

    def chunks(self, x: Vector, slots: int, rng: np.random.Generator | None) -> list[bytes]:
        """`x` (d,) as plaintexts of `slots` numbers."""
        ...

    def read(self, raws: Sequence[bytes], slots: int, dimension: int, count: int) -> NDArray[Any]:
        """The sum (dimension,) of `count` vectors in plaintexts. Raises RemoteError(MISMATCH) where it is none."""
        ...


@dataclass(frozen=True, slots=True)
class ThresholdReals:
    """CKKS: real numbers within +-`limit`, of at most `peers` peers, to about 2^24 / 2^`scale_bits` each."""

    peers: int = 8
    limit: float = 1.0
    scale_bits: int = 52

    def __post_init__(self) -> None:
        room = 59 - self.scale_bits  # bits above the point, of a first prime of 60
        if not (
            40 <= self.scale_bits <= 55 and 2 <= self.peers <= 64 and 0 < self.limit * self.peers < 2.0 ** (room - 1)
        ):
            raise BadInput(
                "A threshold sum of reals takes a scale of 40 to 55 bits, 2 to 64 peers, and a limit at which "
                "peers x limit stays below 2^(58 - scale_bits); change one."
            )

    @property
    def named(self) -> tuple[str, int]:
        return "ckks", self.scale_bits

    def chunks(self, x: Vector, slots: int, rng: np.random.Generator | None) -> list[bytes]:
        """As `Scheme.chunks`; clipped, and nothing is drawn."""
        reals = np.clip(local_vector(x).astype("<f8"), -self.limit, self.limit)
        return [reals[start : start + slots].tobytes() for start in range(0, x.size, slots)]

    def read(self, raws: Sequence[bytes], slots: int, dimension: int, count: int) -> NDArray[Any]:
        """As `Scheme.read`: float64."""
        reals = np.concatenate([np.empty(0), *(np.frombuffer(raw, "<f8") for raw in raws)])[:dimension]
        if reals.size < dimension or not (np.abs(reals) <= count * self.limit + 1e-3).all():  # NaN is neither
            raise RemoteError(Refusal.MISMATCH, f"no sum of {count} vectors within {self.limit}")
        return reals


@dataclass(frozen=True, slots=True)
class ThresholdSum:
    """BFV: coordinates of `value_bits`, clipped to +-`limit`, of at most `peers` peers, as in `Lanes`."""

    value_bits: int = 8
    peers: int = 8
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not (2 <= self.value_bits <= 24 and 2 <= self.peers <= 64 and 0 < self.limit < float("inf")):
            raise BadInput("A threshold sum takes 2 to 24 bits a value, 2 to 64 peers and a limit above 0; change one.")

    @property
    def named(self) -> tuple[str, int]:
        return "bfv", PLAIN_MODULUS

    def chunks(self, x: Vector, slots: int, rng: np.random.Generator | None) -> list[bytes]:
        """As `Scheme.chunks`, of levels: to the nearest, or at random with `rng`."""
        levels, packing = self.quantise(x, rng), self.packing(slots)
        starts = range(0, x.size, packing.capacity)
        return [packing.pack(levels[at : at + packing.capacity]).astype("<i8").tobytes() for at in starts]

    def read(self, raws: Sequence[bytes], slots: int, dimension: int, count: int) -> NDArray[Any]:
        """As `Scheme.read`: the sum of levels, int64."""
        packing, levels = self.packing(slots), [np.empty(0, np.int64)]
        if len(raws) != -(-dimension // packing.capacity):
            raise RemoteError(Refusal.MISMATCH, f"{len(raws)} chunks of a vector of {dimension}")
        for at, raw in enumerate(raws):
            slot = np.frombuffer(raw, "<i8").astype(np.int64)
            levels.append(packing.unpack(slot, min(packing.capacity, dimension - at * packing.capacity), count))
        return np.concatenate(levels)

    def packing(self, slots: int) -> Packing:
        """How coordinates lie in a ciphertext of `slots` slots."""
        width = self.value_bits + guard_bits(self.peers)
        return Packing(slots, _BITS // width, width, self.value_bits)

    def quantise(self, x: Vector, rng: np.random.Generator | None = None) -> Integers:
        """The levels (d,) that stand for `x` (d,): to the nearest, or at random with `rng`."""
        return quantised(local_vector(x), self.limit, self._largest, rng)

    def dequantise(self, levels: Integers) -> NDArray[np.float64]:
        """What levels, or a sum of levels, are worth."""
        return levels * np.float64(self.limit / self._largest)

    @property
    def _largest(self) -> int:
        return int((1 << (self.value_bits - 1)) - 1)


class Party:
    """One peer of a group. Its key share is where `ask` leads to, and lasts one round.

    A ciphertext of a vector is a list of chunks. All methods raise RemoteError for what OpenFHE cannot digest.
    """

    def __init__(self, scheme: Scheme, ask: Ask) -> None:
        self._scheme, self._ask = scheme, ask
        self._slots = int.from_bytes(ask("common", [])[1], "big")

    def common(self) -> bytes:
        """The leader's part: the random half that all public shares have in common."""
        return self._ask("common", [])[0]

    def share(self, common: bytes) -> bytes:
        """Draw a key share; its public half."""
        return self._one("share", [_checked(common)])

    def join(self, shares: Sequence[bytes]) -> None:
        """Take the sum of everybody's public shares, one's own among them, as the group's key."""
        if len(shares) < 2:
            raise LocalError("a group of one has no threshold")
        self._ask("join", [_checked(share) for share in shares])

    def encrypt(self, x: Vector, rng: np.random.Generator | None = None) -> list[bytes]:
        """`x` (d,) under the group's key."""
        return [self._one("encrypt", [chunk]) for chunk in self._scheme.chunks(x, self._slots, rng)]

    def add(self, vectors: Sequence[Sequence[bytes]]) -> list[bytes]:
        """The sum of everybody's ciphertexts. Raises RemoteError(MISMATCH) if they are not equally long."""
        return [self._one("add", chunk) for chunk in _by_chunk(vectors)]

    def partial(self, total: Sequence[bytes], lead: bool) -> list[bytes]:
        """One's own partial decryption of `total`; exactly one peer of the group is `lead`."""
        role = b"lead" if lead else b"main"
        return [self._one("partial", [role, _checked(chunk)]) for chunk in total]

    def fuse(self, partials: Sequence[Sequence[bytes]], dimension: int, count: int) -> NDArray[Any]:
        """The sum (dimension,) of `count` vectors, as the scheme reads it, from everybody's partial decryptions, the
        lead first.

        Raises RemoteError(MISMATCH) where one is missing or wrong: what comes out is no such sum.
        """
        fused = [self._one("fuse", chunk) for chunk in _by_chunk(partials)]
        return self._scheme.read(fused, self._slots, dimension, count)

    def _one(self, what: str, parts: Sequence[bytes]) -> bytes:
        return self._ask(what, parts)[0]


def _by_chunk(vectors: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
    if len({len(chunks) for chunks in vectors}) != 1:
        raise RemoteError(Refusal.MISMATCH, "ciphertexts of vectors that are not equally long")
    return [[_checked(chunk) for chunk in chunks] for chunks in zip(*vectors, strict=True)]


def _checked(raw: bytes) -> bytes:
    if len(raw) > _LARGEST:
        raise RemoteError(Refusal.OVERSIZED, f"{len(raw)} bytes for OpenFHE")
    return raw
