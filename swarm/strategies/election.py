"""An election that no single peer can steer: by commitments, reveals and votes, in ballots.

Theory of operation. In a ballot every peer draws a nonce and (Blum 1983, "Coin flipping by telephone") says

    Commit   H(nonce) to all;                 waits for those of all that are present
    Reveal   nonce to all;                    waits for those of all that committed themselves in time
    Vote     for the candidate c with the least H(H(the revealed nonces), c);   waits for a strict majority

Nobody can choose a nonce that depends on another's. Whoever waits longest to reveal sees the outcome with its own nonce
before the others do, and may keep it to itself: that draws once more, without it. So one liar can take an outcome back
once, and is then no candidate itself; k together have 2^k outcomes to choose from. The remedy is a price: whoever
committed itself to a nonce that most votes do not know of (kept back, or told to some only) is left out of the next
`penalty` ballots, and so is a leader that went silent.

Lost and late messages: reveals may differ between peers, and then outcomes do. Votes decide: leader is whom a strict
majority of those that are present votes for. A ballot without one is followed by the next. Two peers that count
different peers as present may hold different ones for leader; a leader needs updates of a majority, so not for long.
One that missed a ballot's end is told the votes again when it calls the next.

Candidates are those that revealed and are not behind: whose round is not below the (lower) median of the rounds
committed. A false claim to be ahead gains nothing.

States: IDLE -> COMMITTING -> REVEALING -> VOTING -> IDLE, or COMMITTING for the next ballot.
"""

from enum import Enum, auto
from hashlib import blake2b

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import CancelTimer, Effect, Note, PeerId, Send, SetTimer
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.ballot import Ballot, Said, committed
from veilmesh.swarm.strategies.base import Kit

__all__ = ["AHEAD", "ATTEMPTS", "Election"]

ATTEMPTS = 8
"""After so many ballots in a row without a leader, there is no majority to be had."""

AHEAD = 16
"""How many ballots another may be ahead of ours; what is further is refused, so memory stays bounded."""


class Phase(Enum):
    IDLE = auto()
    COMMITTING = auto()
    REVEALING = auto()
    VOTING = auto()


class Election:
    """One peer's part in the elections of a run."""

    def __init__(self, kit: Kit, penalty: int) -> None:
        self._kit = kit
        self._penalty = penalty
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
        self.leader: PeerId | None = None
        self.settled = 0  # the ballot that made it leader
        self.reached = 0  # the median round of those that took part in it
        self.failed = 0  # ballots in a row
        self._ballot = 0  # that is being held, or was last
        self._phase = Phase.IDLE
        self._ballots: dict[int, Ballot] = {}
        self._left_out: dict[PeerId, int] = {}  # up to which ballot
        self._vote: tuple[int, bytes] = (0, b"")  # our last one: its ballot and body
        self._answered: dict[PeerId, int] = {}

    @property
    def on(self) -> bool:
        """Whether a ballot is being held."""
        return self._phase is not Phase.IDLE

    @property
    def ballot(self) -> int:
        """The ballot that is being held, or was last."""
        return self._ballot

    @property
    def wanted(self) -> bool:
        """Whether most want the ballot that is being held."""
        return self.on and self._begun(self._ballot, 2)

    @property
    def everybody(self) -> frozenset[PeerId]:
        """Those that are present, this peer too."""
        return self._present | {self._kit.me}

    def see(self, present: frozenset[PeerId]) -> None:
        """Those present are these now; `proceed` afterwards."""
        self._present = present

    def at(self, round_: int) -> None:
        """This peer's model is that of `round_` now."""
        self._round = round_

    def depose(self) -> None:
        """The leader is gone, or silent: it is not to be the next one either."""
        if self.leader is not None:
            self._left_out[self.leader] = self.settled + self._penalty

    def drop(self) -> list[Effect]:
        """The leader turned out to be there: no ballot is needed."""
        self._phase, self.failed = Phase.IDLE, 0
        return [CancelTimer("ballot")]

    # --- a ballot, as it goes ----------------------------------------------------------------------------------

    def call(self, now: float) -> list[Effect]:
        """Hold the next ballot: the one after our last, or one that a third of all is at already."""
        ahead = [number for number in self._ballots if number > self._ballot and self._begun(number, 3)]
        return self._open(max([self._ballot + 1, *ahead]), now)

    def proceed(self, now: float) -> list[Effect]:
        """Go as far as what was said so far allows."""
        for number in sorted(self._ballots, reverse=True):
            if (leader := self._ballots[number].winner(self.everybody)) is not None:
                return self._settle(number, leader)
        for number in sorted(self._ballots, reverse=True):  # a ballot that most have begun is ours too
            if number > self._ballot and self._begun(number, 3 if self._phase is Phase.COMMITTING else 2):
                return self._open(number, now)
        return self._next_phase(now) if self._complete() else []

    def expired(self, now: float) -> list[Effect]:
        """The timer of the present phase is due: go on with what there is."""
        return self._next_phase(now)

    def _complete(self) -> bool:
        if self._phase is Phase.IDLE:
            return False
        ballot, awaited = self._of(self._ballot), self.everybody - self._excluded()
        if self._phase is Phase.COMMITTING:
            return awaited <= ballot.commits.keys()
        if self._phase is Phase.REVEALING:
            return awaited & ballot.commits.keys() <= ballot.revealed(()).keys()
        return awaited <= ballot.votes.keys()

    def _next_phase(self, now: float) -> list[Effect]:
        match self._phase:
            case Phase.IDLE:
                return []
            case Phase.COMMITTING:
                self._phase = Phase.REVEALING
                return self._say(messages.Reveal(self._round, self._ballot, self._nonce(self._ballot)), now)
            case Phase.REVEALING:
                self._phase = Phase.VOTING
                return self._say(self._choice(), now)
            case Phase.VOTING:
                return self._fail(now)

    def _open(self, number: int, now: float) -> list[Effect]:
        self._ballot, self._phase = number, Phase.COMMITTING
        digest = committed(self._kit.seed, number, self._kit.order.index(self._kit.me), self._nonce(number))
        return self._say(messages.Commit(self._round, number, self.settled, digest), now)

    def _choice(self) -> messages.Vote:
        ballot = self._of(self._ballot)
        if self._kit.me in ballot.votes:  # from before we were told of a leader by an earlier ballot
            return messages.Vote(ballot.votes[self._kit.me][0], self._ballot, *ballot.votes[self._kit.me][1:])
        return messages.Vote(self._round, self._ballot, *ballot.vote(self._excluded(), self.everybody))

    def _say(self, message: Said, now: float) -> list[Effect]:
        body = messages.encode(message)
        self._of(self._ballot).take(self._kit.me, message)
        if isinstance(message, messages.Vote):
            self._vote = (self._ballot, body)
        sends: list[Effect] = [Send(p, body) for p in self._kit.order if p in self._present]
        return [*sends, SetTimer("ballot", now + self._kit.patience / 2), *self.proceed(now)]

    def _fail(self, now: float) -> list[Effect]:
        self._punish(self._ballot)
        self.failed += 1
        self._phase = Phase.IDLE
        note = Note("no-leader", {"round": self._round, "ballot": self._ballot})
        return [note, *([CancelTimer("ballot")] if self.failed >= ATTEMPTS else self.call(now))]

    def _settle(self, number: int, leader: PeerId) -> list[Effect]:
        self._punish(number)
        ours = self._join_in(number, leader)
        self.reached = self._of(number).reached()
        self.settled = self._ballot = number
        self.leader, self._phase, self.failed = leader, Phase.IDLE, 0
        self._ballots = {n: ballot for n, ballot in self._ballots.items() if n > number}
        self._left_out = {p: last for p, last in self._left_out.items() if last > number}
        note = Note("elected", {"round": self._round, "ballot": number, "leader": str(leader)})
        return [*ours, CancelTimer("ballot"), note]

    def _join_in(self, number: int, leader: PeerId) -> list[Effect]:
        """Our vote as well, if it was decided before we cast it: those who still count may miss somebody's."""
        ballot = self._of(number)
        if self._kit.me in ballot.votes or self._kit.me not in ballot.commits:
            return []
        message = messages.Vote(self._round, number, self._kit.order.index(leader), ballot.agreed(leader))
        self._vote = (number, messages.encode(message))
        return [Send(p, self._vote[1]) for p in self._kit.order if p in self._present]

    # --- what the others say -----------------------------------------------------------------------------------

    def hear(self, sender: PeerId, message: Said, now: float) -> list[Effect]:
        """Take in what a member says. Raises RemoteError."""
        if message.ballot > self._ballot + AHEAD:
            raise RemoteError(Refusal.MISMATCH, f"ballot {message.ballot} while we are at {self._ballot}")
        effects = list[Effect]()
        if message.ballot > self.settled:
            self._ballots.get(message.ballot, self._new(message.ballot)).check(sender, message)
            if not self._too_late(message):
                self._of(message.ballot).take(sender, message)
        if isinstance(message, messages.Commit):
            effects = self._remind(sender, message)
        return [*effects, *self.proceed(now)]

    def _too_late(self, message: Said) -> bool:
        """Whoever has seen another's nonce does not commit itself freely any more."""
        begun = message.ballot < self._ballot or (
            message.ballot == self._ballot and self._phase is not Phase.COMMITTING
        )
        return isinstance(message, messages.Commit) and begun

    def _remind(self, sender: PeerId, commit: messages.Commit) -> list[Effect]:
        """One that does not know how our last ballot ended is told our vote again: once in a ballot of its."""
        number, body = self._vote
        if commit.settled >= self.settled or number != self.settled or self._answered.get(sender, 0) >= commit.ballot:
            return []
        self._answered[sender] = commit.ballot
        return [Send(sender, body)] if sender in self._present else []

    # --- small things ------------------------------------------------------------------------------------------

    def _begun(self, number: int, share: int) -> bool:
        """Whether more than one in `share` of all have begun a ballot."""
        return share * len(self._of(number).commits.keys() & self.everybody) > len(self.everybody)

    def _excluded(self) -> frozenset[PeerId]:
        return frozenset(p for p, last in self._left_out.items() if last >= self._ballot and p != self._kit.me)

    def _punish(self, number: int) -> None:
        self._left_out |= dict.fromkeys(self._of(number).unknown(), number + self._penalty)

    def _of(self, number: int) -> Ballot:
        return self._ballots.setdefault(number, self._new(number))

    def _new(self, number: int) -> Ballot:
        return Ballot(self._kit.seed, number, self._kit.order)

    def _nonce(self, number: int) -> bytes:
        return blake2b(f"{self._kit.private}/nonce/{number}".encode(), digest_size=messages.NONCE).digest()
