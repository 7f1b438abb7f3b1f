"""What a round's groups say of their means, and which of it is believed: pure, without a clock.

Every member of a group says the digest of the group's sum to everybody, and one of them says the sum itself; a sum is
a group's if more than half of its members say its digest. A group that says of itself that it has none has none.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgspec
import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.fixed import Words, word_type

__all__ = ["NOTHING", "ClusterMeans", "Stated", "Whole", "read_stated", "read_whole", "said"]

NOTHING = b""
"""What is said instead of a digest where a group has no sum."""

_DIGEST = 32


class Stated(NamedTuple):
    """The digest of the sum of the sender's group, or NOTHING; and the digest of the model that updates start from."""

    digest: bytes
    base: bytes


class Whole(NamedTuple):
    """A group's sum: little-endian words, of so many updates."""

    updates: int
    words: bytes

    @property
    def digest(self) -> bytes:
        return sha256(self.updates.to_bytes(4, "big") + self.words).digest()


_STATED, _WHOLE = msgspec.msgpack.Decoder(Stated), msgspec.msgpack.Decoder(Whole)
_ENCODER = msgspec.msgpack.Encoder()


def said(body: Stated | Whole) -> bytes:
    """The bytes of a body."""
    return _ENCODER.encode(body)


def read_stated(raw: bytes) -> Stated:
    """Raises RemoteError(MALFORMED)."""
    try:
        body = _STATED.decode(raw)
    except msgspec.DecodeError:
        raise RemoteError(Refusal.MALFORMED, "no statement about a sum") from None
    if len(body.digest) not in (0, _DIGEST) or len(body.base) != _DIGEST:
        raise RemoteError(Refusal.MALFORMED, "a digest of another length")
    return body


def read_whole(raw: bytes, length: int, members: int) -> Whole:
    """Raises RemoteError(MALFORMED) for what is no sum of so many words, or of more updates than peers."""
    try:
        body = _WHOLE.decode(raw)
    except msgspec.DecodeError:
        raise RemoteError(Refusal.MALFORMED, "no sum") from None
    if len(body.words) != 4 * length or not 0 < body.updates <= members:
        raise RemoteError(Refusal.MALFORMED, f"{len(body.words)} bytes for a sum of {body.updates} updates")
    return body


class ClusterMeans:
    """One round's groups, each its members by place in the roster, as far as this peer has heard of them."""

    def __init__(self, groups: Sequence[tuple[int, ...]]) -> None:
        self._groups = tuple(groups)
        self._stated: dict[int, Stated] = {}
        self._wholes: dict[int, Whole] = {}  # by sender
        self._asked: set[tuple[int, int]] = set()

    def state(self, sender: int, stated: Stated) -> None:
        """What a member says; the first counts."""
        self._stated.setdefault(sender, stated)

    def take(self, sender: int, whole: Whole) -> None:
        """A sum that a member says its group has; a better one of the same sender counts."""
        self._wholes[sender] = whole

    def group_of(self, place: int) -> int:
        """By number."""
        return next(number for number, group in enumerate(self._groups) if place in group)

    def bases(self) -> Counter[bytes]:
        """From which models how many say that they start."""
        return Counter(stated.base for stated in self._stated.values())

    def believed(self, number: int) -> bytes | None:
        """The digest that more than half of a group say; NOTHING if they have none; None if there is no telling yet."""
        group = self._groups[number]
        votes = Counter(self._stated[place].digest for place in group if place in self._stated)
        digest, count = votes.most_common(1)[0] if votes else (NOTHING, 0)
        return digest if 2 * count > len(group) else None

    def whole(self, number: int) -> Whole | None:
        """A group's sum, if it is believed and here."""
        digest = self.believed(number)
        wholes = (self._wholes[place] for place in self._groups[number] if place in self._wholes)
        return next((whole for whole in wholes if whole.digest == digest), None) if digest else None

    def settled(self, alive: Collection[int]) -> bool:
        """Whether nothing more is to be waited for, where only `alive` can still speak."""
        return all(self._is_settled(number, alive) for number in range(len(self._groups)))

    def _is_settled(self, number: int, alive: Collection[int]) -> bool:
        digest = self.believed(number)
        if digest is None:
            return not any(place in alive and place not in self._stated for place in self._groups[number])
        return digest == NOTHING or self.whole(number) is not None

    def complete(self) -> bool:
        """Whether every group has said what its sum is, or that there is none, and all sums are here."""
        return all(self.believed(n) == NOTHING or self.whole(n) is not None for n in range(len(self._groups)))

    def to_ask(self, alive: Collection[int]) -> list[int]:
        """Whom to ask for sums that are believed and not here: of each group one that says so and was not asked."""
        asked = list[int]()
        for number, group in enumerate(self._groups):
            digest = self.believed(number)
            if digest and self.whole(number) is None:
                could = [p for p in group if p in alive and p in self._stated and self._stated[p].digest == digest]
                asked += [p for p in could if (number, p) not in self._asked][:1]
        self._asked |= {(self.group_of(place), place) for place in asked}
        return asked

    def sums(self) -> Mapping[int, tuple[int, Words]]:
        """By group: how many updates, and their sum."""
        found = {number: self.whole(number) for number in range(len(self._groups))}
        return {
            number: (whole.updates, np.frombuffer(whole.words, word_type(32)))
            for number, whole in found.items()
            if whole is not None
        }
