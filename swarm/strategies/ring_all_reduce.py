"""All-reduce on a ring: the exact average of everybody's models, with one neighbour to speak to and one to hear.

Theory of operation (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
section 3; Horovod's, Sergeev and Del Balso 2018). In round t

    h_i = x_i + u_i                                      local training, after the guards
    h_i is cut in as many parts as there are peers; part k starts at member k of the ring, and everybody adds its own
    and passes it on (reduce-scatter); the last one has the average, and hands it round (all-gather): x_i = mean of h

which costs a peer 2 (n - 1) / n vectors a round, as the butterfly does (`group_all_reduce`), and twice n - 1 steps one
after the other in place of two. What is passed is the mean of those it has passed, and how many they are: the same as
their sum, within the range of a model. Parts do not wait for each other. Only a lossless codec will do: a lossy one
would round n - 1 times over.

The order of the ring is the roster's, or drawn anew every round by everybody alike. Sums follow it, so the order in
which messages arrive cannot change a bit.

Faults (`ring_lap`). Who is gone is stepped over, in the same round. From a quarter of the round's patience on, who
misses something asks the one before it to say it again. From half of it on, who has heard nothing from the one before
it in this round leaves that one out, and asks the next one back, who then passes parts on to it. After all of it, a
part that has not come back stays as the peer has it (`partial`). A round's group is the number of models behind every
coordinate: the smallest over its parts. Models that differ for it are equal again after the next whole round.

What a peer sees, of a whole ring of n: of the model of the one before it, which stands in place k, part k, in clear; of
the model of the one after it, in place k, part k + 1, which ends there, by taking what it passed on off the average;
sums of the rest. Its neighbours on both sides together see its whole model. A lying member decides what its own model
is taken for, and every average it hands on; who asks after half of the patience can have those between left out of a
round. Only shape and range are checked.

States: TRAINING (waits for WorkDone) -> EXCHANGING (waits for parts and averages, or its timers) -> TRAINING ... ->
CLOSING (waits for the last evaluation) -> stopped.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import ClassVar, Literal, cast

import networkx as nx

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Machine,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.schedule import random_ring
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.group_inbox import Answers
from veilmesh.swarm.strategies.ring import Ring
from veilmesh.swarm.strategies.ring_inbox import RingInbox, RingMessage
from veilmesh.swarm.strategies.ring_lap import Lap
from veilmesh.swarm.topology import complete_rows

__all__ = ["RingAllReduce", "RingAllReduceMachine"]

TICKS = 8
"""Into how many steps the patience of a round is divided; the second is the first in which anybody asks."""


class Phase(Enum):
    TRAINING = auto()
    EXCHANGING = auto()
    CLOSING = auto()


@STRATEGIES.register("ring-all-reduce")
@dataclass(frozen=True)
class RingAllReduce:
    """All-reduce on a ring (Patarasuk and Yuan 2009): exact averages of all models, part by part, once round and back.

    `order`: how the ring goes, as the roster does ("roster": everybody has the same two neighbours for the whole run),
    or as it is drawn anew for every round ("drawn").
    """

    order: Literal["roster", "drawn"] = "roster"

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        if not kit.sealer.lossless:
            raise BadInput("ring-all-reduce sums at every step, where a codec would round anew; leave codec out.")
        return RingAllReduceMachine(kit, drawn=self.order == "drawn")

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return complete_rows(graph, "ring-all-reduce")


class RingAllReduceMachine:
    """One member of the ring."""

    def __init__(self, kit: Kit, *, drawn: bool) -> None:
        self._kit = kit
        self._drawn = drawn
        self._x = kit.initial
        self._inbox = RingInbox(kit.rounds)
        self._answers = Answers()
        self._present: frozenset[PeerId] = frozenset()
        self._silent: frozenset[PeerId] = frozenset()  # left out of this round
        self._lap: Lap | None = None  # this round's exchange, once there is something to say
        self._round = 0
        self._tick = 0
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
                return self._received(sender, messages.decode(body))
            case PeersChanged(present):
                self._present = present
                return self._exchange()
            case TimerFired(name):
                return self._give_up_waiting(name, now)

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        return [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        model = self._x + update
        if reason := astray(model):
            return [self._stop(reason)]
        ring = self._ring(self._round)
        self._lap = Lap(self._kit.me, ring, self._round, model, self._kit.sealer, self._inbox, self._answers)
        self._phase = Phase.EXCHANGING
        self._tick = 1
        return [
            *self._kit.sealer.alarms(),
            Note("trained", {"round": self._round, "loss": trained.loss}),
            SetTimer("again", now + 2 * self._kit.patience / TICKS),
            SetTimer("round", now + self._kit.patience),
            *self._exchange(),
        ]

    def _exchange(self, part: int | None = None) -> list[Effect]:
        """Pass on and hand on whatever can be (of one part, where only that has changed), and end a round that is
        over."""
        if self._phase is not Phase.EXCHANGING or self._lap is None:
            return []
        there, slow = self._there(), self._silent & self._present
        effects = self._lap.proceed(there, slow) if part is None else self._lap.pursue(part, there, slow)
        return effects + ([] if self._lap.missing else self._close(self._lap))

    def _give_up_waiting(self, name: str, now: float) -> list[Effect]:
        if self._phase is not Phase.EXCHANGING or self._lap is None:
            return []
        if name == "round":
            return self._close(self._lap)
        self._tick += 1
        effects: list[Effect] = []
        if self._tick >= TICKS // 2 and self._tick % 2 == 0:  # who was asked has the time of two steps to answer
            effects = self._leave_out([p for p in self._behind() if self._inbox.silent(p)])
        return effects if self._lap is None else [*effects, *self._ask(now)]

    def _ask(self, now: float) -> list[Effect]:
        body = messages.encode(messages.Ask(self._round))
        asked = [Send(p, body) for p in self._behind()[-1:] if p in self._there()]
        return [*asked, SetTimer("again", now + self._kit.patience / TICKS)]

    def _leave_out(self, peers: list[PeerId]) -> list[Effect]:
        late = [p for p in peers if p in self._there()]
        if not late:
            return []
        self._silent |= set(late)
        note = Note("late", {"round": self._round, "peers": [str(p) for p in late]})
        return [note, *self._exchange()]

    def _close(self, lap: Lap) -> list[Effect]:
        done, missing = self._round, lap.missing
        notes = [Note("partial", {"round": done, "parts": missing, "of": lap.parts})] if missing else []
        self._x = lap.mixed()
        if reason := astray(self._x):
            return [*notes, self._stop(reason)]
        self._round += 1
        self._lap, self._silent = None, frozenset()
        self._inbox.forget(self._round)
        self._answers.forget(self._round)
        notes.append(Note("round", {"round": done, "group": lap.group}))
        due = self._evaluation.due(self._round, lambda: self._x)
        return [*(CancelTimer(name) for name in ("again", "round")), *notes, *due, *self._go_on()]

    def _go_on(self) -> list[Effect]:
        if self._round < self._kit.rounds:
            return self._train()
        self._phase = Phase.CLOSING
        return []

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        if not isinstance(message, messages.Passed | messages.Averaged | messages.Ask):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in a ring")
        if sender == self._kit.me or sender not in self._kit.order:
            raise RemoteError(Refusal.MISMATCH, "not of our ring")
        self._inbox.check_round(message.round)
        if isinstance(message, messages.Ask):
            return self._asked(sender, message.round)
        return self._heard(sender, message)

    def _heard(self, sender: PeerId, message: RingMessage) -> list[Effect]:
        ring = self._ring(message.round)
        self._inbox.check(ring, self._kit.me, sender, message, self._there())
        if isinstance(message, messages.Passed) and self._answers.known(message.round, message.part):
            return self._answers.again(sender, message.round, message.part)
        if message.round < self._round or self._inbox.has(sender, message):
            return []  # too late, or said again, which is no offence
        self._inbox.take(sender, message, self._inbox.read(ring, self._kit.sealer, message))
        if message.round > self._round or self._lap is None:
            return []
        return self._exchange(message.part)

    def _asked(self, sender: PeerId, round_: int) -> list[Effect]:
        """Averages of a round that is over, to who still needs them; or of this one, whatever it should have."""
        if round_ < self._round:
            known = [part for part in self._ring(round_).parts if self._answers.known(round_, part)]
            return [effect for part in known for effect in self._answers.again(sender, round_, part)]
        if round_ > self._round or self._lap is None:
            return []
        lap, effects = self._lap, list[Effect]()
        if self._tick >= TICKS // 2:  # those in between say nothing to it, nor to us: we wait for one of them
            effects = self._leave_out(list(self._ring(round_).between(self._kit.me, sender)))
        return effects + lap.repeat(sender)

    # --- the round's ring --------------------------------------------------------------------------------------

    def _ring(self, round_: int) -> Ring:
        return _ring(self._kit.order, self._kit.sealer.dimension, (self._kit.seed, round_) if self._drawn else None)

    def _there(self) -> frozenset[PeerId]:
        return (self._present | {self._kit.me}) - self._silent

    def _behind(self) -> tuple[PeerId, ...]:
        return self._ring(self._round).behind(self._kit.me, self._there())


@lru_cache(maxsize=64)
def _ring(roster: tuple[PeerId, ...], dimension: int, drawn: tuple[int, int] | None) -> Ring:
    """The ring in roster order, or as it is drawn by seed and round."""
    places = range(len(roster)) if drawn is None else random_ring(*drawn, len(roster))
    return Ring(tuple(roster[place] for place in places), dimension)
