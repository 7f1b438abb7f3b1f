"""Averages in random groups in which nobody sees a model: `group-all-reduce`, with sums by masks in place of parts.

In round t, with groups drawn from a public seed as there (Ryabinin et al. 2021), and m members in a group:

    h_i = x_i + u_i                                 local training, after the guards
    z_i = h_i - x_0 + e_i                           relative to the common beginning; e_i: what is still to be said
    q_i = round(z_i)                                fixed point, for sums of m (see `crypto.fixed`)
    x_i = x_0 + sum over the survivors of q_j / how many they are;  e_i = z_i - q_i

The sum is that of `secure_session`: exact, over t >= floor(2m/3) + 1 members at least, or there is none; then the round
was a lone step, x_i = h_i (`abandoned`). With 32 bits and 8 members within 16 of the beginning q is as fine as float32,
and e_i is left away. With 16 bits a step is a thousandth, so rounding is random and remembered. With `keep` < 1 a
common seed draws the coordinates of a round; of the others x_i stays and u_i goes to e_i, for their turn. What was
learnt is thus in the models or still to be said. (On digits with three classes a peer, a quarter a round then learns
as fast as all; where each went its own way meanwhile, it learnt half as much.)

With `rank` an update is said as two thin matrices, and a round is two sums (`secure_factors`): far fewer words. Models
are then not averaged, only steps, so this is for one group of all: who misses a sum stays apart by that step, and a
round without sums is no step at all. Each of the two sums has a patience of its own.

Keys and shares go out while everybody trains. Then, by how much of the round's patience is over: from an eighth on,
what has not been answered is said again; after half, and every eighth from there, who is silent is left out; after all
of it the sum is given up, or stays without the parts that nobody summed (`partial`).

What a peer sees: a group's average, once a round; of one model nothing but masked words. Two peers have no secrets from
each other in a group of two, and a group tells what its average tells. With floor(2m/3) + 1 of a group colluding, all
is seen. Groups change every round, so averages of overlapping groups can be put together: of members who say nearly
the same again and again, a few colluders then learn what each one says (`attacks/seen/overlap.py`).

Cohorts prevent that (So et al., arXiv 2106.03328, "Securing secure aggregation", batches of users). The roster is
divided once into cohorts, groups are of whole cohorts, and a sum's survivors too: where one is missing the others of
its cohort are left out, so that a sum may be over fewer than t, but never over less than a cohort. All sums of a run
together then say nothing of less than a cohort, whoever drops out. A
coalition with all but one of a cohort sees that one, so a cohort is to be larger than that; and where one of a cohort
has gone for good, nothing that the others learn gets to anybody, while they take the average of those that are whole.

States: TRAINING (waits for WorkDone) -> SUMMING (waits for its session, or its timers) -> TRAINING ... -> CLOSING
(waits for the last evaluation) -> stopped.
"""

from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Annotated, ClassVar, Literal, cast

import networkx as nx
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.fixed import FixedPoint, Words
from veilmesh.peer.machine import (
    Effect,
    Event,
    Machine,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.secure_messages import Masked, SumMessage, Total
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.group_inbox import AHEAD
from veilmesh.swarm.strategies.secure_factors import HiddenFactors
from veilmesh.swarm.strategies.secure_model import HiddenModel
from veilmesh.swarm.strategies.secure_patience import expired, no_longer, waiting
from veilmesh.swarm.strategies.secure_plan import lowest_threshold
from veilmesh.swarm.strategies.secure_schedule import SumSchedule
from veilmesh.swarm.strategies.secure_session import SecureSession
from veilmesh.swarm.topology import complete_rows

__all__ = ["SecureGroups", "SecureGroupsMachine"]


class Phase(Enum):
    TRAINING = auto()
    SUMMING = auto()
    CLOSING = auto()


@STRATEGIES.register("secure-groups")
@dataclass(frozen=True)
class SecureGroups:
    """Exact averages in random groups, of models that nobody sees: sums by masks (Bonawitz et al. 2017).

    `group`: how many models a group averages. `threshold`: how many must stay to the end (None: more than two thirds,
    the fewest that keeps liars below a third from opening anything). `bits`: of a masked word. `limit`: the largest
    distance of a coordinate from the common beginning (None: 16 with 32 bits, 4 with 16). `keep`: the share of
    coordinates that a round averages. `copies`: how many members hold a masked part (None: so many that no loss within
    the threshold costs a coordinate; 1 sends least). `cohort`: how many peers, or more, come and go together.
    `rank`: how many columns the factors of an update have (0: whole models are averaged); for one group of all.
    """

    group: Annotated[int, Field(ge=2, le=64)] = 8
    threshold: Annotated[int, Field(ge=2, le=64)] | None = None
    bits: Literal[16, 32] = 32
    limit: Annotated[float, Field(gt=0, le=1e6)] | None = None
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    copies: Annotated[int, Field(ge=1, le=64)] | None = None
    cohort: Annotated[int, Field(ge=1, le=64)] = 1
    rank: Annotated[int, Field(ge=0, le=64)] = 0

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        lowest = lowest_threshold(self.group)
        if self.threshold is not None and not lowest <= self.threshold <= self.group:
            raise BadInput(f"The threshold in a group of {self.group} is {lowest} to {self.group}; leave it out.")
        if self.cohort > self.group:
            raise BadInput(f"A cohort of {self.cohort} does not fit into a group of {self.group}; lower cohort.")
        if self.rank and (self.bits != 32 or self.keep < 1):
            raise BadInput("Factors of updates are summed whole and in 32 bits; leave bits and keep out, or rank.")

    def machine(self, kit: Kit) -> Machine:
        if not kit.sealer.lossless:
            raise BadInput("secure-groups counts and masks by itself, so a codec has nothing to say; leave codec out.")
        if self.rank and len(kit.order) > self.group:
            raise BadInput(
                f"With rank only one group of all keeps models alike: set group to {len(kit.order)}, or leave rank out."
            )
        return SecureGroupsMachine(kit, self)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return complete_rows(graph, "secure-groups")

    def fixed(self, members: int) -> FixedPoint:
        """How a group of so many counts."""
        return FixedPoint(self.bits, self.limit or (16.0 if self.bits == 32 else 4.0), members)

    def schedule(self, kit: Kit) -> SumSchedule:
        """Who sums with whom. Raises BadInput where cohorts do not fit."""
        return SumSchedule(kit.seed, kit.order, self.group, self.cohort, self.threshold or 0)


class SecureGroupsMachine:
    """One peer of an averaging in groups by masks."""

    def __init__(self, kit: Kit, options: SecureGroups) -> None:
        self._kit = kit
        self._options = options
        self._me = kit.order.index(kit.me)
        self._x = kit.initial
        self._wanted = kit.initial  # after training: what is to be averaged
        self._hidden = HiddenFactors(kit, options.rank) if options.rank else HiddenModel(kit, options.keep)
        self._schedule = options.schedule(kit)
        self._secret = kit.secret or sha256(f"{kit.private}/sums".encode()).digest()
        self._sessions: dict[tuple[int, int], SecureSession] = {}  # by round and number
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
        self._number = 0  # which of the round's sums is being made
        self._phase = Phase.TRAINING
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._present = present
                return self._train()
            case WorkDone(name, result) if name.startswith("train"):
                return self._say(cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case PeersChanged(present):
                self._present = present
                sends = [send for session in list(self._sessions.values()) for send in session.see(present)]
                return [*sends, *self._close_if_over(now)]
            case TimerFired(name):
                return self._timer(name, now)

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        """Train, while keys and shares go out."""
        self._phase = Phase.TRAINING
        effects: list[Effect] = [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]
        self._number = 0
        for number in range(len(self._hidden.lengths)):
            session = self._session(self._round, number)
            if session is not None:
                self._sessions[self._round, number] = session
                effects += session.begin(self._present)
        return effects

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        self._wanted = self._x + update
        if reason := astray(self._wanted):
            return [self._stop(reason)]
        self._phase = Phase.SUMMING
        effects: list[Effect] = list(self._kit.sealer.alarms())
        effects.append(Note("trained", {"round": self._round, "loss": trained.loss}))
        if self._current is not None:
            effects += self._contribute(*self._hidden.words(self._x, self._wanted, self._fixed(), self._round))
        return [*effects, *waiting(now, self._kit.patience), *self._close_if_over(now)]

    def _contribute(self, words: Words, clipped: int) -> list[Effect]:
        notes = [Note("clipped", {"round": self._round, "coordinates": clipped})] if clipped else []
        return [*notes, *(self._current.contribute(words) if self._current else ())]

    @property
    def _current(self) -> SecureSession | None:
        return self._sessions.get((self._round, self._number))

    def _timer(self, name: str, now: float) -> list[Effect]:
        session = self._current
        if self._phase is not Phase.SUMMING or session is None:
            return []
        return [*expired(name, session, self._round, now, self._kit.patience), *self._close_if_over(now)]

    def _close_if_over(self, now: float) -> list[Effect]:
        session = self._current
        if self._phase is not Phase.SUMMING or (session is not None and not session.over):
            return []
        if session is not None and self._number + 1 < len(self._hidden.lengths):
            return self._next_sum(session, now)
        notes, group = self._take(session)
        if reason := astray(self._x):
            return [*notes, self._stop(reason)]
        self._round += 1
        self._sessions = {key: session for key, session in self._sessions.items() if key[0] >= self._round - 1}
        notes.append(Note("round", {"round": self._round - 1, "group": group}))
        due = self._evaluation.due(self._round, lambda: self._x)
        return [*no_longer(), *notes, *due, *self._go_on()]

    def _next_sum(self, session: SecureSession, now: float) -> list[Effect]:
        """Go on to the round's next sum: with nothing to say in it, where this one is not whole."""
        self._number += 1
        if session.result is not None and not session.result.missing:
            said = self._contribute(*self._hidden.answer(self._fixed(), session.result))
            return [*waiting(now, self._kit.patience), *said, *self._close_if_over(now)]
        gone = self._current.give_up() if self._current else []
        return [*gone, *self._close_if_over(now)]

    def _take(self, session: SecureSession | None) -> tuple[list[Effect], int]:
        """The next model, what there is to note of it, and how many models it comes from."""
        if session is None or session.result is None:
            self._x = self._hidden.alone(self._x, self._wanted) if session else self._wanted
            reasons = (s.reason for (r, _), s in sorted(self._sessions.items()) if r == self._round and s.reason)
            why = next(reasons, "nobody else")
            return [Note("abandoned", {"round": self._round, "why": why})], 1
        summed = session.result
        self._x = self._hidden.mixed(self._x, self._wanted, self._fixed(), self._round, summed)
        missing = sum(stop - start for start, stop in summed.missing)
        notes: list[Effect] = [Note("partial", {"round": self._round, "coordinates": missing})] if missing else []
        return notes, 1 if missing else len(summed.survivors)

    def _go_on(self) -> list[Effect]:
        if self._round < self._kit.rounds:
            return self._train()
        self._phase = Phase.CLOSING
        return []

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if not isinstance(message, SumMessage):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in a sum by masks")
        round_ = message.round
        # Far ahead only what is small: nobody can get further without our word, unless it takes us for gone.
        ahead = 2 if isinstance(message, Masked | Total) else AHEAD
        if round_ >= min(self._round + ahead, self._kit.rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")
        session = self._session(round_, message.number)
        if session is None or round_ < self._round - 1:
            raise RemoteError(Refusal.MISMATCH, f"nothing to be said to us in round {round_}")
        sends = session.receive(sender, message)
        if round_ >= self._round:
            self._sessions[round_, message.number] = session
        return [*sends, *self._close_if_over(now)]

    # --- groups ------------------------------------------------------------------------------------------------

    def _session(self, round_: int, number: int) -> SecureSession | None:
        """This peer's side of one of a round's sums; None where there is none, or nobody to add to. Others may have
        spoken in it already."""
        options, lengths = self._options, self._hidden.lengths
        if (round_, number) in self._sessions or number >= len(lengths):
            return self._sessions.get((round_, number))
        plan = self._schedule.plan(round_, self._me, lengths[number], options.bits, options.copies, number)
        return None if plan is None else SecureSession(plan, self._kit.me, self._secret)

    def _fixed(self) -> FixedPoint:
        return self._options.fixed(len(self._schedule.members(self._round, self._me)))
