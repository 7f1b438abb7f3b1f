"""What members of a BREA round say to each other, step by step. Numbers and lengths are checked; meaning is not.

`Deal` goes to one member, everything else to all alike. Members and dealers are places in the roster.
"""

from enum import IntEnum
from hashlib import blake2b, sha256
from typing import Any, NamedTuple, TypeAlias

import msgspec

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.field import PRIME, unpack
from veilmesh.swarm.strategies.brea_terms import Terms

__all__ = [
    "CHECKS", "Body", "Choice", "Deal", "Distances", "Echo", "LowDegree", "Opening", "Step", "Sum", "View",
    "commitment", "derived", "pairs", "read", "round_label", "said", "unchecked",
]  # fmt: skip

CHECKS = 2
"""Random combinations in which a sharing is tested: a bad one passes each with a chance of 2^-31."""

_DIGEST, _NONCE = 32, 16


class Step(IntEnum):
    """The steps of a round, in order."""

    DEAL = 0
    ECHO = 1
    VIEW = 2
    TEST = 3
    DISTANCES = 4
    CHOICE = 5
    SUM = 6


class Deal(NamedTuple):
    """The receiver's share of the sender's update, and of its blinds; commitments to everybody's; one to a nonce; and
    the digest of the model that the update starts from."""

    share: bytes
    salt: bytes
    commitments: tuple[bytes, ...]
    coin: bytes
    base: bytes

    @property
    def digest(self) -> bytes:
        """Of what is the same in all deals of a dealer."""
        return sha256(b"".join(self.commitments) + self.coin + self.base).digest()


class Echo(NamedTuple):
    """The digests of the deals that the sender holds, by dealer (empty: it holds none that fits), and its nonce."""

    digests: tuple[bytes, ...]
    nonce: bytes


class View(NamedTuple):
    """What the sender heard that most hold, by dealer; and the nonces it knows."""

    digests: tuple[bytes, ...]
    nonces: tuple[bytes, ...]


class LowDegree(NamedTuple):
    """By the view and the coin of that digest: combinations of the sender's shares, by dealer (empty: it has none)."""

    view: bytes
    values: tuple[tuple[int, ...], ...]


class Opening(NamedTuple):
    """The share that the sender was dealt by one whose sharing does not fit with it."""

    dealer: int
    share: bytes
    salt: bytes


class Distances(NamedTuple):
    """The sender's shares of the squared distances, by `pairs` (-1: it lacks one); openings where it is in dispute."""

    view: bytes
    values: tuple[int, ...]
    openings: tuple[Opening, ...]


class Choice(NamedTuple):
    """The dealers whose updates the sender would have added up."""

    chosen: tuple[int, ...]


class Sum(NamedTuple):
    """The sender's share of the sum of those that most chose; empty if it lacks one."""

    chosen: tuple[int, ...]
    share: bytes


Body: TypeAlias = Deal | Echo | View | LowDegree | Distances | Choice | Sum
_KINDS: dict[Step, type[Any]] = dict(zip(Step, (Deal, Echo, View, LowDegree, Distances, Choice, Sum), strict=True))
_DECODERS: dict[Step, msgspec.msgpack.Decoder[Any]] = {s: msgspec.msgpack.Decoder(kind) for s, kind in _KINDS.items()}
_ENCODER = msgspec.msgpack.Encoder()


def pairs(members: int) -> list[tuple[int, int]]:
    """All pairs of places, in the order in which distances are said."""
    return [(i, j) for i in range(members) for j in range(i + 1, members)]


def commitment(label: bytes, dealer: int, holder: int, salt: bytes, share: bytes) -> bytes:
    """A hash that binds the dealer to a share. Salted: t colluding members could check a guess of the update by it."""
    return sha256(label + bytes([dealer, holder]) + salt + share).digest()


def round_label(seed: int, round_: int) -> bytes:
    """What names a round of a run: nothing that is said in one fits into another."""
    return f"brea/{seed}/{round_}/".encode()


def derived(key: bytes, *name: str | int, size: int = 32) -> bytes:
    """A secret of `size` bytes for one purpose, from a secret key."""
    return blake2b("/".join(map(str, name)).encode(), key=key, digest_size=size).digest()


def said(body: Body) -> bytes:
    """The bytes of a body."""
    return _ENCODER.encode(body)


def read(step: Step, raw: bytes, terms: Terms) -> Body:
    """The body of a step. Raises RemoteError(MALFORMED)."""
    try:
        body: Body = _DECODERS[step].decode(raw)
    except msgspec.DecodeError:
        raise RemoteError(Refusal.MALFORMED, f"no {_KINDS[step].__name__}") from None
    if not _fits(body, terms):
        raise RemoteError(Refusal.MALFORMED, f"a {_KINDS[step].__name__} with numbers or lengths out of range")
    return body


def unchecked(raw: bytes) -> Deal:
    """One's own deal, as it goes out."""
    deal: Deal = _DECODERS[Step.DEAL].decode(raw)
    return deal


def _fits(body: Body, terms: Terms) -> bool:
    n = terms.members
    match body:
        case Deal(share, salt, commitments, coin, base):
            unpack(share, terms.length + CHECKS)
            return len(commitments) == n and len(salt) == _NONCE and _sized((*commitments, coin, base), _DIGEST)
        case Echo(digests, nonce):
            return len(digests) == n and _sized(digests, 0, _DIGEST) and len(nonce) == _NONCE
        case View(digests, nonces):
            return len(digests) == len(nonces) == n and _sized(digests, 0, _DIGEST) and _sized(nonces, 0, _NONCE)
        case LowDegree(view, values):
            numbers = [number for row in values for number in row]
            return len(view) == _DIGEST and len(values) == n and _sized(values, 0, CHECKS) and _within(numbers, 0)
        case Distances(view, values, openings):
            sizes = all(len(o.share) == 4 * (terms.length + CHECKS) and len(o.salt) == _NONCE for o in openings)
            places = [o.dealer for o in openings]
            counted = len(view) == _DIGEST and len(values) == n * (n - 1) // 2 and _within(values, -1)
            return counted and sizes and _ascending(places, n)
        case Choice(chosen):
            return _ascending(chosen, n)
        case Sum(chosen, share):
            if share:
                unpack(share, terms.length)
            return _ascending(chosen, n)


def _sized(parts: tuple[bytes, ...] | tuple[tuple[int, ...], ...], *sizes: int) -> bool:
    return all(len(part) in sizes for part in parts)


def _within(numbers: tuple[int, ...] | list[int], least: int) -> bool:
    return all(least <= number < PRIME for number in numbers)


def _ascending(places: tuple[int, ...] | list[int], members: int) -> bool:
    return list(places) == sorted(set(places)) and all(0 <= place < members for place in places)
