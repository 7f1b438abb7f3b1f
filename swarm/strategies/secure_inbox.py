"""What the members of one sum have said to this one: each thing once, of bounded size, and the first one counts."""

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.fixed import word_type
from veilmesh.swarm.secure_messages import (
    Agreed,
    Counted,
    Enrol,
    Masked,
    Roll,
    SumMessage,
    Total,
    Unmasked,
    Withdrawn,
)
from veilmesh.swarm.strategies.secure_plan import SumPlan

__all__ = ["Statement", "SumInbox"]

Statement = tuple[bytes, tuple[int, ...]]
"""A label, and members by place."""


class SumInbox:
    """By the sender's place; this member's own words stand among them."""

    def __init__(self, plan: SumPlan) -> None:
        self._plan = plan
        self.cards: dict[int, bytes] = {}
        self.shares: dict[int, tuple[bytes, bytes]] = {}  # of the seed, of the key
        self.rolls: dict[int, tuple[bytes, ...]] = {}
        self.masked: dict[int, dict[int, tuple[bytes, bytes]]] = {}  # by part: label and words
        self.counted: dict[int, Statement] = {}
        self.agreed: dict[int, Statement] = {}
        self.unmasked: dict[int, tuple[bytes, bytes, tuple[bytes, ...]]] = {}  # label, seed, shares
        self.totals: dict[int, dict[int, tuple[bytes, bytes]]] = {}
        self.withdrawn: set[int] = set()
        self.labels: dict[int, set[bytes]] = {}  # under which each has spoken

    def check(self, sender: int, message: SumMessage) -> None:
        """Raises RemoteError for what no honest member says. What it says may still be false."""
        if (message.round, message.number) != (self._plan.round, self._plan.number):
            raise RemoteError(Refusal.MISMATCH, f"of sum {message.number} of round {message.round}")
        count = len(self._plan.members)
        match message:
            case Roll(cards=pieces) | Unmasked(shares=pieces):
                wrong = len(pieces) != count
            case Counted(members=members):
                wrong = any(member >= count for member in members)
            case Agreed(members=members):
                wrong = self._plan.whole(members) != members  # others than these, or a part of a cohort
            case Masked(part=part, words=words):
                wrong = part >= count or not self._fits(self.masked.get(sender, {}), part, words)
            case Total(part=part, words=words):
                wrong = part >= count or not self._fits(self.totals.get(sender, {}), part, words)
            case _:
                wrong = False
        if wrong:
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} that fits no group of {count}")

    def _fits(self, kept: dict[int, tuple[bytes, bytes]], part: int, words: bytes) -> bool:
        """Whether there is room for a part: so many, and so long, as a member may have to hold."""
        whole = len(words) % word_type(self._plan.bits).itemsize == 0
        return whole and len(words) <= self._plan.most_bytes and (part in kept or len(kept) < self._plan.copies)

    def has(self, sender: int, message: SumMessage) -> bool:
        """Whether the sender has said something of this kind already."""
        match message:
            case Enrol():
                return sender in self.cards
            case Roll():
                return sender in self.rolls
            case Masked(part=part):
                return part in self.masked.get(sender, {})
            case Counted():
                return sender in self.counted
            case Agreed():
                return sender in self.agreed
            case Unmasked():
                return sender in self.unmasked
            case Total(part=part):
                return part in self.totals.get(sender, {})
            case Withdrawn():
                return sender in self.withdrawn

    def take(self, sender: int, message: SumMessage) -> None:
        """Keep what was checked."""
        if not isinstance(message, Enrol | Roll | Withdrawn):
            self.labels.setdefault(sender, set()).add(message.label)
        match message:
            case Enrol():
                self.cards[sender] = message.card
                self.shares[sender] = (message.seed_share, message.key_share)
            case Roll():
                self.rolls[sender] = message.cards
            case Masked():
                self.masked.setdefault(sender, {})[message.part] = (message.label, message.words)
            case Counted():
                self.counted[sender] = (message.label, message.members)
            case Agreed():
                self.agreed[sender] = (message.label, message.members)
            case Unmasked():
                self.unmasked[sender] = (message.label, message.seed, message.shares)
            case Total():
                self.totals.setdefault(sender, {})[message.part] = (message.label, message.words)
            case Withdrawn():
                self.withdrawn.add(sender)

    def forget_shares(self) -> None:
        """Those that were not said are never needed again."""
        self.shares = {}

    def forget(self) -> None:
        """The sum is over."""
        self.shares, self.masked, self.unmasked, self.totals = {}, {}, {}, {}
