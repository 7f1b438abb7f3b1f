"""What is public about one sum by masks, and the arithmetic of its masks: pure, without state.

Member i holds a pair of keys (s_i, K_i) and a seed b_i, made for this sum and no other. M are those that mask against
each other, in roster order; PRG(k) is the keystream of `crypto.masking` under a key of its own for every pair, part and
sum. Of its vector v_i, modulo 2^bits, a member shows (Bonawitz et al. 2017, section 4.3)

    y_i = v_i + PRG(b_i) + sum over j in M after i: PRG(s_ij) - sum over j in M before i: PRG(s_ij)

and over the survivors S of M the sum of v is the sum of y, less PRG(b_i) for i in S, less what S masked against those
of M that are gone: their s_j gives s_ij. Whoever had both b_i and s_i of one member could read its vector.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np

from veilmesh.core import LocalError
from veilmesh.crypto.fixed import Words, word_type
from veilmesh.crypto.masking import add_mask, derive, key_pair, keystream, pair_secret, subtract_mask
from veilmesh.crypto.shares import split
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.secure_messages import LARGEST_GROUP, SECRET, Enrol
from veilmesh.swarm.strategies.butterfly import Butterfly

__all__ = ["Maskers", "Secrets", "SumPlan", "lowest_threshold"]


def lowest_threshold(members: int) -> int:
    """floor(2n/3) + 1: with less than a third of liars, no two different statements are both said by so many."""
    return 2 * members // 3 + 1


@dataclass(frozen=True)
class SumPlan:
    """One sum, before it begins; the same for all its members.

    `members`: the group, in roster order; `round` and `number`: which of the run's sums it is; `threshold`: how many
    must take part to the end, and how many shares give a secret; `length`: words in a vector, of `bits` (16 or 32);
    `copies`: how many members hold every masked part: with n - threshold + 1 the sum outlives every loss that the
    threshold allows, with 1 the part of a member that ends in the last two phases is lost; `context`: names the run;
    `cohorts`: members by place who are summed together or not at all, each in one (none: everybody is its own).
    """

    members: tuple[PeerId, ...]
    round: int
    number: int
    threshold: int
    length: int
    bits: int
    copies: int
    context: bytes
    cohorts: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.members)
        if not 2 <= count <= LARGEST_GROUP or not lowest_threshold(count) <= self.threshold <= count:
            raise LocalError(f"no sum of {count} members has threshold {self.threshold}")
        if self.length < 1 or self.copies < 1:
            raise LocalError(f"no sum of {self.length} words in {self.copies} copies")
        if self.cohorts and sorted(place for cohort in self.cohorts for place in cohort) != list(self.places):
            raise LocalError(f"{self.cohorts} are no cohorts of {count} members")
        word_type(self.bits)

    @property
    def places(self) -> range:
        """Members by place."""
        return range(len(self.members))

    def whole(self, places: Collection[int]) -> tuple[int, ...]:
        """Those of `places` whose whole cohort is among them, in roster order."""
        cohorts = self.cohorts or [(place,) for place in self.places]
        there = frozenset(places)
        return tuple(sorted(place for cohort in cohorts if there.issuperset(cohort) for place in cohort))

    @property
    def most_bytes(self) -> int:
        """The bytes of the longest part, whoever masks."""
        parts = min(self.threshold, self.length)
        return -(-self.length // parts) * word_type(self.bits).itemsize

    @cached_property
    def salt(self) -> bytes:
        """Names this sum: nothing that is derived for it fits another."""
        names = b"".join(bytes([len(name)]) + name for name in (str(p).encode()[:255] for p in self.members))
        numbers = b"".join(n.to_bytes(8, "big") for n in (self.round, self.number, self.threshold, self.length))
        cohorts = b"".join(bytes([0, len(cohort), *cohort]) for cohort in self.cohorts)  # no name is empty
        return sha256(b"veilmesh sum v1\x00" + sha256(self.context).digest() + numbers + names + cohorts).digest()


@dataclass(frozen=True)
class Secrets:
    """What one member draws for one sum: the seed of its own mask and its key. `card` is what all are told of it."""

    seed: bytes
    private: bytes
    card: bytes

    @classmethod
    def draw(cls, plan: SumPlan, secret: bytes) -> "Secrets":
        """From `secret`, 32 bytes or more that are this member's only and that no other start of it has used."""
        seed = derive(secret, plan.salt, b"seed")
        private, public = key_pair(derive(secret, plan.salt, b"key"))
        return cls(seed, private, public + digest(seed))

    def enrolments(self, plan: SumPlan, secret: bytes) -> list[Enrol]:
        """What each place is told at the beginning: share number place + 1 of both."""
        entropy = keystream(derive(secret, plan.salt, b"shares"))
        count, threshold = len(plan.members), plan.threshold
        seeds = split(self.seed, threshold, count, entropy)
        keys = split(self.private, threshold, count, entropy)
        return [Enrol(plan.round, plan.number, self.card, *both) for both in zip(seeds, keys, strict=True)]


def digest(seed: bytes) -> bytes:
    """What a card says of a seed: it cannot be found from it, and no other seed has it."""
    return sha256(b"veilmesh sum seed\x00" + seed).digest()


@dataclass(frozen=True)
class Maskers:
    """M: those that mask against each other, by place, with their cards."""

    plan: SumPlan
    cards: Mapping[int, bytes]

    @cached_property
    def label(self) -> bytes:
        """The hash of all this: whoever has the same sees the same members with the same keys."""
        cards = b"".join(place.to_bytes(2, "big") + card for place, card in sorted(self.cards.items()))
        return sha256(b"veilmesh sum label\x00" + self.plan.salt + cards).digest()

    @cached_property
    def places(self) -> tuple[int, ...]:
        """M in roster order."""
        return tuple(sorted(self.cards))

    @cached_property
    def butterfly(self) -> Butterfly:
        """Who sums which part."""
        return Butterfly(tuple(self.plan.members[p] for p in self.places), self.plan.length, 0, 1)

    def holders(self, part: int) -> tuple[int, ...]:
        """Who gets a masked part: the one that sums it, then those that would in its stead."""
        turns = (*self.places[part:], *self.places[:part])
        return turns[: self.plan.copies]

    def held(self, place: int) -> tuple[int, ...]:
        """The parts that a member gets."""
        return self._held.get(place, ())

    @cached_property
    def _held(self) -> dict[int, tuple[int, ...]]:
        parts = self.butterfly.parts
        return {place: tuple(part for part in parts if place in self.holders(part)) for place in self.places}

    def read(self, part: int, words: bytes) -> Words | None:
        """A part as it came; None if it has another length."""
        if part not in self.butterfly.parts:
            return None
        read: Words = np.frombuffer(words, word_type(self.plan.bits))
        return read if read.size == self.butterfly.length(part) else None

    def is_seed(self, place: int, seed: bytes) -> bool:
        """Whether it is the one that a member's card speaks of."""
        return digest(seed) == self.cards[place][SECRET:]

    def is_key(self, place: int, private: bytes) -> bool:
        """Whether it is the private half of the key on a member's card."""
        return key_pair(private)[1] == self.cards[place][:SECRET]

    def masked(self, words: Words, me: int, secrets: Secrets) -> dict[int, Words]:
        """y_i by part, of a vector (d,) of words."""
        pairs = {j: self._pair(secrets.private, me, j) for j in self.places if j != me}
        parts = {}
        for part in self.butterfly.parts:
            piece = words[self.butterfly.span(part)].copy()
            add_mask(piece, self._key(secrets.seed, b"own", part))
            for j, pair in pairs.items():
                (add_mask if me < j else subtract_mask)(piece, self._key(pair, b"pair", part))
            parts[part] = piece
        return parts

    def total(
        self, part: int, pieces: Mapping[int, Words], seeds: Mapping[int, bytes], privates: Mapping[int, bytes]
    ) -> Words:
        """A part of the sum of v over the survivors, whose masked `pieces` and `seeds` these are; `privates` are those
        of the rest of M."""
        total: Words = np.zeros(self.butterfly.length(part), word_type(self.plan.bits))
        for place in sorted(pieces):
            np.add(total, pieces[place], out=total)
            subtract_mask(total, self._key(seeds[place], b"own", part))
            for gone, private in sorted(privates.items()):
                pair = self._key(self._pair(private, gone, place), b"pair", part)
                (subtract_mask if place < gone else add_mask)(total, pair)
        return total

    def _pair(self, private: bytes, one: int, other: int) -> bytes:
        """s_ij, from the private key of `one`."""
        names = sorted(str(self.plan.members[place]) for place in (one, other))
        info = b"pair\x00" + self.label + "\x00".join(names).encode()
        return pair_secret(private, self.cards[other][:SECRET], self.plan.salt, info)

    def _key(self, secret: bytes, purpose: bytes, part: int) -> bytes:
        """The key of one keystream."""
        return derive(secret, self.plan.salt, purpose + b" stream\x00" + self.label + part.to_bytes(2, "big"))
