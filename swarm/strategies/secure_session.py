"""One group's sum of one round, by masks: everybody learns the sum over those that stayed, and nobody a summand.

Theory of operation (Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning",
protocol 1 with its consistency check; without a server: the members are each other's, part by part, as in an
all-reduce). Pure: messages in, messages out, no clock. Everything here goes through envelopes that are sealed between
two peers and signed by their sender, so the paper's second key pair, for sealing shares, is not needed, nor are
signatures on statements; and shares can go out with the keys. Notation: `secure_plan`.

    ENROLLING  everybody tells everybody its card (K_i, hash of b_i) and shares of b_i and s_i, t of n
    CALLING    everybody says which cards it has. M: the members whose card all say, and say alike
    MASKING    part r of y_i goes to those that hold part r; all later statements carry the label of M and its cards
    COUNTING   everybody says whose parts it has. S: those that all count, less those of whose cohort one is missing
    AGREEING   everybody says S, once and for good
    UNMASKING  whoever has heard the same S from t members, itself included, says its own b_i if it is in S, and a share
               of b_j of every j in S, of s_j of every other j in M: of one kind for one peer, once, in no order of
               events of both
    SUMMING    the first holder of a part that is there sums it up and tells everybody

Two sets cannot both gather t >= floor(2n/3) + 1 statements unless n/3 or more members lie, and fewer than that hold too
few shares for both secrets of anybody: then each lone vector stays hidden, and what shows is one sum over at least t
members (with cohorts: one cohort). A member that is counted gone and shows up late has its s_j told, and its late parts
hide under b_j, which nobody tells. A part is masked once: what is said again, or held by a deputy, is the same bytes.
Whoever says two things under two labels, keys that differ or sets that do not match, is left out, or the sum is given
up; a lie can spoil a sum or hold it up, not open it. With fewer than t at any step the sum is given up, and
nothing more is told.

Cohorts (So et al., arXiv 2106.03328) come whole into S or not at all. Whoever is left out for its cohort's sake is
treated as if it were gone, though it is there: its s_j is told, its b_j never, not by itself either. It goes on with
the others to the end: t counts those that mask, are counted, agree and help to unmask, be they in S or not; S is then
one cohort at least. A set with a part of a cohort in it is said by no honest member, so it gathers no t.

What a sum of t members says of one of them, once the others' vectors are known, is that one: this hides peers from
each other, and not what they all do together. A liar can add any words at all: nobody sees its vector either.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.fixed import Words, word_type
from veilmesh.crypto.masking import check_public
from veilmesh.peer.machine import PeerId, Send
from veilmesh.swarm.secure_messages import (
    SECRET,
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
from veilmesh.swarm.strategies.secure_plan import Maskers, Secrets, SumPlan
from veilmesh.swarm.strategies.secure_state import Phase
from veilmesh.swarm.strategies.secure_voice import SumVoice

__all__ = ["GroupSum", "SecureSession"]


@dataclass(frozen=True)
class GroupSum:
    """`words` (d,): the sum modulo 2^bits over the `survivors`; `missing`: (start, stop) of where there is none."""

    words: Words
    survivors: tuple[PeerId, ...]
    missing: tuple[tuple[int, int], ...]


class SecureSession(SumVoice):
    """One member's side of one sum.

    Args:
        plan: what everybody knows of it.
        me: this member.
        secret: 32 bytes or more, this member's only and never used for this sum before: what is drawn follows from
            them, for runs that can be repeated; where it matters they come from the operating system.

    `begin`, `contribute`, `see`, `receive`, `expire` and `give_up` return what is to be sent, and may be called at any
    time. Afterwards `phase` is DONE, and `result` says the sum and whose it is; or ABANDONED, and `reason` says why.
    """

    def __init__(self, plan: SumPlan, me: PeerId, secret: bytes) -> None:
        super().__init__(plan, plan.members.index(me))
        self._secret = secret
        self._secrets: Secrets | None = None
        self._words: Words | None = None
        self._revealed: dict[int, str] = {}  # by place: which kind of secret, for good
        self._seeds: dict[int, bytes] = {}
        self._privates: dict[int, bytes] = {}
        self.reason = ""
        self.result: GroupSum | None = None

    # --- what may happen ---------------------------------------------------------------------------------------

    def begin(self, present: Collection[PeerId]) -> list[Send]:
        """Enrol; `present` are those believed to be there. What others said before is not lost."""
        if self.phase is not Phase.WAITING:
            return []
        self._present = frozenset(present)
        self._secrets = Secrets.draw(self._plan, self._secret)
        self.phase, sends = Phase.ENROLLING, list[Send]()
        for place, enrol in enumerate(self._secrets.enrolments(self._plan, self._secret)):
            sends += self._say(enrol, [place])
        self._secret = b""
        return sends + self._proceed()

    def contribute(self, words: Words) -> list[Send]:
        """This member's vector (d,), once: from now on it can be masked and said."""
        if words.dtype != word_type(self._plan.bits) or words.shape != (self._plan.length,):
            raise LocalError(f"a vector of {words.shape} {words.dtype} in a sum of {self._plan.length}")
        if self._words is None:
            self._words = words
        return self._proceed()

    def see(self, present: Collection[PeerId]) -> list[Send]:
        """Those believed to be there are now these."""
        self._present = frozenset(present)
        return self._proceed()

    def receive(self, sender: PeerId, message: SumMessage) -> list[Send]:
        """What a member says. Raises RemoteError, with nothing changed, for what no member says."""
        if sender not in self._plan.members or sender == self._plan.members[self._me]:
            raise RemoteError(Refusal.MISMATCH, "not a member of this sum")
        place = self._plan.members.index(sender)
        self._inbox.check(place, message)
        if isinstance(message, Enrol):
            check_public(message.card[:SECRET])
        if self._inbox.has(place, message):
            return self._again_once(place)
        if self.over:
            return []
        self._inbox.take(place, message)
        return self._proceed()

    def expire(self) -> list[Send]:
        """Time is up: go on without those that are waited for."""
        if self.over or self.phase is Phase.WAITING:
            return []
        if self.phase is Phase.SUMMING:
            self._late = True
        self._silent |= self._missing()
        return self._proceed()

    def again(self) -> list[Send]:
        """Say all once more to those that are waited for: a frame may be lost."""
        return [send for place in sorted(self._missing()) for send in self._repeat(place)]

    def give_up(self) -> list[Send]:
        """Time is up for good: what is summed so far is the result, or there is none."""
        if self.phase is Phase.SUMMING:
            return self._finish()
        return [] if self.over else self._abandon("time was up")

    # --- what there is to know ---------------------------------------------------------------------------------

    @property
    def missing(self) -> tuple[PeerId, ...]:
        """Whom this member waits for."""
        return tuple(self._plan.members[place] for place in sorted(self._missing()))

    @property
    def revealed(self) -> dict[PeerId, str]:
        """Of whom this member has told a share, and of what: "seed" or "key"."""
        return {self._plan.members[place]: kind for place, kind in self._revealed.items()}

    # --- steps -------------------------------------------------------------------------------------------------

    def _proceed(self) -> list[Send]:
        """Go as far as what was said allows."""
        sends: list[Send] = []
        while True:
            before = self.phase
            sends += self._step()
            if self.phase is before:
                return sends

    def _step(self) -> list[Send]:
        match self.phase:
            case Phase.ENROLLING if not self._missing():
                return self._call()
            case Phase.CALLING if not self._missing():
                return self._close_roll()
            case Phase.MASKING:
                return self._mask() + ([] if self._missing() or not self._masked_is_said() else self._count())
            case Phase.COUNTING if not self._missing():
                return self._agree()
            case Phase.AGREEING:
                return self._unmask()
            case Phase.UNMASKING:
                return self._open()
            case Phase.SUMMING:
                return self._sum()
        return []

    def _call(self) -> list[Send]:
        cards = tuple(self._inbox.cards.get(place, b"") for place in self._plan.places)
        if len(self._inbox.cards) < self._plan.threshold:
            return self._abandon("too few enrolled")
        self.phase = Phase.CALLING
        return self._tell(Roll(self._plan.round, self._plan.number, cards), self._plan.places)

    def _close_roll(self) -> list[Send]:
        places = [place for place in self._plan.places if place not in self._outvoted()]
        rolls = [roll for sender, roll in self._inbox.rolls.items() if sender in places]
        if self._me not in places:
            return self._abandon("left out")
        if min(len(places), len(rolls)) < self._plan.threshold:
            return self._abandon("too few have the same cards")
        maskers = Maskers(self._plan, {place: self._inbox.cards[place] for place in places})
        self._maskers, self.phase = maskers, Phase.MASKING
        return []

    def _mask(self) -> list[Send]:
        if self._words is None or self._masked_is_said() or self._secrets is None:
            return []
        maskers, sends = self._agreed_maskers(), list[Send]()
        for part, piece in maskers.masked(self._words, self._me, self._secrets).items():
            message = Masked(self._plan.round, self._plan.number, maskers.label, part, piece.tobytes())
            sends += self._say(message, maskers.holders(part))
        self._inbox.masked.setdefault(self._me, {})
        self._words = np.zeros(0, word_type(self._plan.bits))  # never to be masked again
        return sends

    def _count(self) -> list[Send]:
        maskers = self._agreed_maskers()
        complete = tuple(place for place in maskers.places if self._has_parts_of(place))
        self.phase = Phase.COUNTING
        return self._tell(Counted(self._plan.round, self._plan.number, maskers.label, complete), maskers.places)

    def _agree(self) -> list[Send]:
        maskers = self._agreed_maskers()
        said = [members for place, members in self._statements(self._inbox.counted) if place in maskers.places]
        counted = [place for place in maskers.places if all(place in members for members in said)]
        if min(len(said), len(counted)) < self._plan.threshold:
            return self._abandon("too few survivors")
        if not (survivors := self._plan.whole(counted)):
            return self._abandon("no cohort is whole")
        self._survivors, self.phase = survivors, Phase.AGREEING
        return self._tell(Agreed(self._plan.round, self._plan.number, maskers.label, survivors), maskers.places)

    def _unmask(self) -> list[Send]:
        maskers = self._agreed_maskers()
        alike = sum(
            members == self._survivors and place in maskers.places
            for place, members in self._statements(self._inbox.agreed)
        )
        if alike < self._plan.threshold:
            return [] if self._missing() else self._abandon("no agreement on the survivors")
        self.phase = Phase.UNMASKING
        seed = self._secrets.seed if self._secrets and self._me in self._survivors else b""
        shares = tuple(self._share_of(place) if place in maskers.cards else b"" for place in self._plan.places)
        self._inbox.forget_shares()
        self._secrets = None
        message = Unmasked(self._plan.round, self._plan.number, maskers.label, seed, shares)
        return self._tell(message, maskers.places)

    def _share_of(self, place: int) -> bytes:
        """Our share of one of a peer's two secrets; once one kind was told, never of the other."""
        kind = "seed" if place in self._survivors else "key"
        if self._revealed.setdefault(place, kind) != kind:
            raise LocalError("both secrets of one peer were about to be told")
        seed, key = self._inbox.shares.get(place, (b"", b""))
        return seed if kind == "seed" else key

    def _open(self) -> list[Send]:
        maskers = self._agreed_maskers()
        waiting = self._missing()
        for place in maskers.places:
            opened = self._seeds if place in self._survivors else self._privates
            if place not in opened and (place not in waiting) and (secret := self._secret_of(place)):
                opened[place] = secret
        if len(self._seeds) + len(self._privates) == len(maskers.places):
            self.phase = Phase.SUMMING
            return []
        return [] if waiting else self._abandon("the masks cannot be taken off")

    def _sum(self) -> list[Send]:
        maskers, sends = self._agreed_maskers(), list[Send]()
        for part in maskers.butterfly.parts:
            mine = self._me in maskers.holders(part) and part not in self._inbox.totals.get(self._me, {})
            if mine and self._total(part) is None and (self._late or self._turn(part) == self._me):
                total = maskers.total(part, self._survivors_pieces(part), self._seeds, self._privates).tobytes()
                said = Total(self._plan.round, self._plan.number, maskers.label, part, total)
                sends += self._tell(said, maskers.places)
        done = all(self._total(part) is not None for part in maskers.butterfly.parts)
        return sends + (self._finish() if done else [])

    def _finish(self) -> list[Send]:
        maskers = self._agreed_maskers()
        words, missing = np.zeros(self._plan.length, word_type(self._plan.bits)), list[tuple[int, int]]()
        for part in maskers.butterfly.parts:
            span, total = maskers.butterfly.span(part), self._total(part)
            if total is None:
                missing.append((span.start, span.stop))
            else:
                words[span] = total
        survivors = tuple(self._plan.members[place] for place in self._survivors)
        self.phase, self.result = Phase.DONE, GroupSum(words, survivors, tuple(missing))
        self._end()
        return []

    def _abandon(self, reason: str) -> list[Send]:
        self.phase, self.reason = Phase.ABANDONED, reason
        sends = self._tell(Withdrawn(self._plan.round, self._plan.number), self._plan.places)
        self._end()
        return sends

    def _end(self) -> None:
        self._inbox.forget()
        self._secret, self._secrets, self._words = b"", None, None
        self._seeds, self._privates = {}, {}
