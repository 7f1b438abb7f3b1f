"""What other members of a ring have said, in this round and in rounds ahead: parts on their way, and averages."""

from collections.abc import Collection, Iterable
from typing import TypeAlias

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.group_inbox import AHEAD
from veilmesh.swarm.strategies.ring import Ring

__all__ = ["RingInbox", "RingMessage", "Token", "joined"]

RingMessage: TypeAlias = messages.Passed | messages.Averaged

Token = tuple[int, Vector]
"""Of how many models it is the mean, and the mean."""

WAYS = 4
"""From how many members the same part of a round is kept: more only where three in a row are lost within it."""


def joined(token: Token, own: Vector) -> Token:
    """The mean of one model more, computed in double precision."""
    count, mean = token
    total = count * mean.astype(np.float64) + own
    return count + 1, (total / (count + 1)).astype(np.float32)


class RingInbox:
    """Each part once from each sender, and only from those whose turn it can be."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._round = 0
        self._kept: dict[tuple[int, int, bool], dict[PeerId, Token]] = {}  # by round, part, and whether averaged
        self._voices: dict[int, set[PeerId]] = {}  # who said anything, by round

    def forget(self, round_: int) -> None:
        """`round_` is ours now; what was said of earlier ones is of no use any more."""
        self._round = round_
        self._kept = {key: tokens for key, tokens in self._kept.items() if key[0] >= round_}
        self._voices = {r: said for r, said in self._voices.items() if r >= round_}

    def passed(self, part: int, senders: Iterable[PeerId]) -> dict[PeerId, Token]:
        """What these say that a part of our round comes to so far."""
        return self._said(part, senders, averaged=False)

    def averaged(self, part: int, senders: Iterable[PeerId]) -> Token | None:
        """What the first of these to have said so says that a part of our round has come to."""
        return next(iter(self._said(part, senders, averaged=True).values()), None)

    def silent(self, peer: PeerId) -> bool:
        """Whether a member has said nothing in our round, nor in one ahead of it."""
        return not any(peer in said for said in self._voices.values())

    def check_round(self, round_: int) -> None:
        """Raises RemoteError for a round too far ahead of ours."""
        if round_ >= min(self._round + AHEAD, self._rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")

    def check(self, ring: Ring, me: PeerId, sender: PeerId, message: RingMessage, there: Collection[PeerId]) -> None:
        """Raises RemoteError for what cannot have been said in turn.

        In our round and the next anybody may be the one before us, or may answer: two peers need not agree about who is
        gone. Further ahead only who is just before us, as far as we know; so what is kept stays small.
        """
        if message.part not in ring.parts:
            raise RemoteError(Refusal.MISMATCH, f"part {message.part} of {len(ring.parts)}")
        averaged = isinstance(message, messages.Averaged)
        most = len(ring.order) if averaged else ring.steps(message.part, sender) + 1
        if message.count > most:
            raise RemoteError(Refusal.MISMATCH, f"{message.count} models where there are {most}")
        if message.round > self._round + 1 and sender not in ring.behind(me, there):
            raise RemoteError(Refusal.MISMATCH, f"part {message.part} of round {message.round}, out of turn")
        kept = self._kept.get((message.round, message.part, averaged), {})
        if sender not in kept and len(kept) >= WAYS:
            raise RemoteError(Refusal.MISMATCH, f"part {message.part} from {WAYS + 1} members")

    def has(self, sender: PeerId, message: RingMessage) -> bool:
        """Whether it was said already; the first one counts."""
        return sender in self._kept.get(_key(message), {})

    def read(self, ring: Ring, sealer: Sealer, message: RingMessage) -> Token:
        """What a message says of its part. Raises RemoteError."""
        if isinstance(message, messages.Averaged) and message.levels:
            raise RemoteError(Refusal.MISMATCH, "levels beside what is lossless")
        return message.count, sealer.part(ring.length(message.part)).decode_lossless(message.blob)

    def take(self, sender: PeerId, message: RingMessage, token: Token) -> None:
        """Keep what was checked and read."""
        self._kept.setdefault(_key(message), {})[sender] = token
        self._voices.setdefault(message.round, set()).add(sender)

    def _said(self, part: int, senders: Iterable[PeerId], *, averaged: bool) -> dict[PeerId, Token]:
        kept = self._kept.get((self._round, part, averaged), {})
        return {sender: kept[sender] for sender in senders if sender in kept}


def _key(message: RingMessage) -> tuple[int, int, bool]:
    return message.round, message.part, isinstance(message, messages.Averaged)
