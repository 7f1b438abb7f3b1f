"""What one member of a sum by masks knows of it, and what follows: whom it waits for, and what is complete.

Nothing is decided here; see `secure_session`.
"""

from collections.abc import Iterable
from enum import IntEnum, auto
from itertools import combinations, islice

from veilmesh.core import LocalError
from veilmesh.crypto.fixed import Words
from veilmesh.crypto.shares import combine
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.strategies.secure_inbox import Statement, SumInbox
from veilmesh.swarm.strategies.secure_plan import Maskers, SumPlan

__all__ = ["Phase", "SumState"]

_TRIES = 32
"""How many choices of shares are tried where some are wrong."""


class Phase(IntEnum):
    WAITING = auto()  # not begun
    ENROLLING = auto()
    CALLING = auto()
    MASKING = auto()
    COUNTING = auto()
    AGREEING = auto()
    UNMASKING = auto()
    SUMMING = auto()
    DONE = auto()
    ABANDONED = auto()


class SumState:
    """One member's view; members are known by place."""

    def __init__(self, plan: SumPlan, me: int) -> None:
        self._plan = plan
        self._me = me
        self._inbox = SumInbox(plan)
        self._present: frozenset[PeerId] = frozenset()
        self._silent: set[int] = set()  # left out when time was up
        self._complete: set[int] = set()  # whose masked parts are all here
        self._maskers: Maskers | None = None
        self._survivors: tuple[int, ...] = ()
        self._late = False  # whether totals are taken from whoever has them
        self.phase = Phase.WAITING

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.phase in (Phase.DONE, Phase.ABANDONED)

    # --- whom to wait for --------------------------------------------------------------------------------------

    def _missing(self) -> set[int]:
        """Those whose word is waited for: there, not silent, and able to change anything."""
        awaited = self._awaited()
        match self.phase:
            case Phase.ENROLLING:
                return awaited - self._outvoted() - self._inbox.cards.keys()
            case Phase.CALLING:
                return awaited - self._outvoted() - self._inbox.rolls.keys()
            case Phase.MASKING:
                return {p for p in awaited - self._uncounted() if not self._has_parts_of(p)}
            case Phase.COUNTING:
                return awaited - self._uncounted() - self._inbox.counted.keys()
            case Phase.AGREEING:
                return awaited - self._inbox.agreed.keys()
            case Phase.UNMASKING:
                return awaited - self._inbox.unmasked.keys()
            case Phase.SUMMING:
                parts = self._agreed_maskers().butterfly.parts
                return {self._turn(part) for part in parts if self._total(part) is None} & awaited
        return set()

    def _awaited(self) -> set[int]:
        gone = self._silent | self._inbox.withdrawn | {self._me}
        there = {p for p in self._plan.places if self._plan.members[p] in self._present and p not in gone}
        if self._maskers is None:
            return there
        label = self._maskers.label
        return {p for p in there if p in self._maskers.cards and self._inbox.labels.get(p, set()) <= {label}}

    def _outvoted(self) -> set[int]:
        """Those whose card somebody lacks, or has another of: they cannot mask, so nobody need wait for them."""
        rolls = self._inbox.rolls.values()
        cards = self._inbox.cards
        said = {place: {roll[place] for roll in rolls} | {cards[place]} for place in cards}
        apart = {place for place, seen in said.items() if len(seen) > 1}
        unseen = {place for place in self._plan.places if place not in cards and any(not roll[place] for roll in rolls)}
        enrolling = self.phase is Phase.ENROLLING
        return apart | unseen | (set() if enrolling else set(self._plan.places) - cards.keys())

    def _uncounted(self) -> set[int]:
        """Those whom somebody does not count: they cannot be survivors."""
        said = [set(members) for _, members in self._statements(self._inbox.counted)]
        return {place for place in self._plan.places if any(place not in members for members in said)}

    def _statements(self, kept: dict[int, Statement]) -> Iterable[tuple[int, tuple[int, ...]]]:
        """What was said under our label, by place."""
        label = self._agreed_maskers().label
        return [(place, members) for place, (said, members) in sorted(kept.items()) if said == label]

    # --- parts -------------------------------------------------------------------------------------------------

    def _agreed_maskers(self) -> Maskers:
        if self._maskers is None:
            raise LocalError("nobody has called the roll")
        return self._maskers

    def _masked_is_said(self) -> bool:
        return self._me in self._inbox.masked

    def _has_parts_of(self, place: int) -> bool:
        """Whether all its parts that we are to hold are there; what was said once never changes."""
        if place in self._complete:
            return True
        held = self._agreed_maskers().held(self._me)
        if len(self._inbox.masked.get(place, {})) < len(held) or (place == self._me and not self._masked_is_said()):
            return False
        if complete := all(self._piece(place, part) is not None for part in held):
            self._complete.add(place)
        return complete

    def _piece(self, place: int, part: int) -> Words | None:
        label, words = self._inbox.masked.get(place, {}).get(part, (b"", b""))
        return self._agreed_maskers().read(part, words) if label == self._agreed_maskers().label else None

    def _survivors_pieces(self, part: int) -> dict[int, Words]:
        """Their masked parts, for whoever holds this part."""
        pieces = {place: self._piece(place, part) for place in self._survivors}
        there = {place: piece for place, piece in pieces.items() if piece is not None}
        if len(there) < len(pieces):
            raise LocalError("a survivor's part is not here, though it was counted")
        return there

    def _turn(self, part: int) -> int:
        """Who is to sum a part: the first of its holders that is there; with none, the first."""
        there = self._awaited() | {self._me}
        holders = self._agreed_maskers().holders(part)
        return next((place for place in holders if place in there), holders[0])

    def _total(self, part: int) -> Words | None:
        """A part of the sum, from whose turn it is or was; when time is up, from any of its holders."""
        maskers = self._agreed_maskers()
        holders = maskers.holders(part)
        last = len(holders) if self._late else holders.index(self._turn(part)) + 1
        for place in holders[:last]:
            label, words = self._inbox.totals.get(place, {}).get(part, (b"", b""))
            if label == maskers.label and (read := maskers.read(part, words)) is not None:
                return read
        return None

    # --- secrets -----------------------------------------------------------------------------------------------

    def _secret_of(self, place: int) -> bytes | None:
        """The seed of a survivor, from itself or else from shares; of another its private key, from shares."""
        maskers, survives = self._agreed_maskers(), place in self._survivors
        unmasked = self._inbox.unmasked.items()
        said = {p: (seed, shares) for p, (label, seed, shares) in unmasked if label == maskers.label}
        if survives and place in said and maskers.is_seed(place, said[place][0]):
            return said[place][0]
        right = maskers.is_seed if survives else maskers.is_key
        shares = [(p + 1, all_[place]) for p, (_, all_) in sorted(said.items()) if all_[place]]
        choices = combinations(shares, self._plan.threshold)
        candidates = (combine(choice, self._plan.threshold) for choice in islice(choices, _TRIES))
        return next((secret for secret in candidates if right(place, secret)), None)
