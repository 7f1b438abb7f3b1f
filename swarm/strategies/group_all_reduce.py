"""All-reduce in random groups: everybody's models averaged exactly, a group at a time, and the groups drawn anew.

Theory of operation (Ryabinin et al. 2021, "Moshpit SGD: communication-efficient decentralized training on heterogeneous
unreliable devices", algorithm 1; inside a group the butterfly of Patarasuk and Yuan 2009): in round t

    h_i = x_i + u_i                                      local training, after the guards
    a public seed divides the roster into groups; in a group of m, h_i is cut in m parts (see `butterfly`)
    member k is told everybody's part k, averages with equal weights, and tells everybody: x_i = mean of the group's h

which costs a peer 2 (m - 1) / m vectors a round, however many peers there are. One group of all: the exact average.
Groups are drawn from the whole roster, and not from who seems to be there: two peers that disagree about a third then
agree about the groups nevertheless, and only its part has to find another reducer. (A group is smaller by its dead.)

With a lossy codec, changes are averaged instead, and rounded models beside them: see `parts`.

Faults, by how much of the round's patience is over: after a quarter, a part that has not come back is said again, and
an average once more to who asks so (a lost frame holds up the next groups otherwise); after half, who is silent is left
out of the averages; after all of it, a part that has not come back stays as the peer has it (`partial`). A round's
group is the number of models behind every coordinate: the smallest over its parts.

What a peer sees: one part of every model in its group (its place in the roster keeps it near the same coordinates), and
averages of the rest: less than in gossip, but of other peers every round. A lying reducer decides its part for its
group; only shape and range are checked.

States: TRAINING (waits for WorkDone) -> EXCHANGING (waits for parts and averages, or its timers) -> TRAINING ... ->
CLOSING (waits for the last evaluation) -> stopped.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, ClassVar, cast

import networkx as nx
from pydantic import Field

from veilmesh.core import Refusal, RemoteError
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
from veilmesh.swarm.schedule import random_groups
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.butterfly import Butterfly, Piece
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.group_inbox import Answers, GroupInbox
from veilmesh.swarm.strategies.parts import Parts, Said
from veilmesh.swarm.topology import complete_rows

__all__ = ["GroupAllReduce", "GroupAllReduceMachine"]


class Phase(Enum):
    TRAINING = auto()
    EXCHANGING = auto()
    CLOSING = auto()


@STRATEGIES.register("group-all-reduce")
@dataclass(frozen=True)
class GroupAllReduce:
    """All-reduce in random groups (Moshpit SGD): exact averages of `group` models, in groups drawn anew every round.

    `group`: how many models a group averages. `sweep`: with a lossy codec, in how many rounds every coordinate of the
    models is averaged once, at eight bits; more saves bytes, and where one group is all there is little to average.
    """

    group: Annotated[int, Field(ge=2, le=64)] = 8
    sweep: Annotated[int, Field(ge=1)] = 1

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        return GroupAllReduceMachine(kit, self.group, self.sweep)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return complete_rows(graph, "group-all-reduce")


class GroupAllReduceMachine:
    """One peer of an all-reduce in groups."""

    def __init__(self, kit: Kit, group: int, sweep: int) -> None:
        self._kit = kit
        self._size = group
        self._sweep = sweep
        self._me = kit.order.index(kit.me)
        self._codec = Parts(kit)
        self._x = kit.initial
        self._blobs: list[Said] = []  # what is said of this round, by part
        self._told: set[tuple[int, PeerId]] = set()
        self._averages: dict[int, tuple[int, Piece]] = {}  # by part: how many models, and what they come to
        self._inbox = GroupInbox(kit.rounds)
        self._answers = Answers()
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
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
                return self._give_up_waiting(name)

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        return [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        wanted = self._codec.wanted(self._x, update)
        if reason := astray(wanted) or astray(self._x + update):
            return [self._stop(reason)]
        self._blobs = self._codec.say(self._butterfly(self._round), self._round, wanted, self._x)
        self._phase = Phase.EXCHANGING
        return [
            *self._kit.sealer.alarms(),
            Note("trained", {"round": self._round, "loss": trained.loss}),
            SetTimer("again", now + self._kit.patience / 4),
            SetTimer("reduce", now + self._kit.patience / 2),
            SetTimer("round", now + self._kit.patience),
            *self._exchange(),
        ]

    def _exchange(self) -> list[Effect]:
        """Say, average and take in whatever can be, and end the round if that was all."""
        if self._phase is not Phase.EXCHANGING:
            return []
        butterfly, effects = self._butterfly(self._round), list[Effect]()
        for part in butterfly.parts:
            if part not in self._averages:
                effects += self._pursue(butterfly, part)
        return effects + (self._close() if len(self._averages) == len(butterfly.parts) else [])

    def _pursue(self, butterfly: Butterfly, part: int) -> list[Effect]:
        reducer = butterfly.reducer(part, self._alive())
        for who in (butterfly.group[part], reducer):  # whose it is may be gone, after having said it
            if (average := self._inbox.average(part, who)) is not None:
                self._averages[part] = average
                return []
        if reducer == self._kit.me:
            return [] if self._missing(butterfly, part) else self._reduce(butterfly, part)
        if (part, reducer) in self._told:
            return []
        self._told.add((part, reducer))
        return [self._tell(part, reducer)]

    def _tell(self, part: int, reducer: PeerId) -> Send:
        return Send(reducer, messages.encode(messages.Part(self._round, part, *self._blobs[part])))

    def _missing(self, butterfly: Butterfly, part: int) -> list[PeerId]:
        heard = self._inbox.parts(part)
        return [p for p in butterfly.group if p in self._present and p not in heard]

    def _reduce(self, butterfly: Butterfly, part: int) -> list[Effect]:
        heard = {**self._inbox.parts(part), self._kit.me: self._codec.own(butterfly, part)}
        pieces = [heard[p] for p in butterfly.group if p in heard]
        average, said = self._codec.average(butterfly, self._round, part, pieces)
        self._averages[part] = (len(pieces), average)
        body = messages.encode(messages.Averaged(self._round, part, len(pieces), *said))
        self._answers.said(self._round, part, body)
        return [Send(p, body) for p in butterfly.group if p in self._present]

    def _give_up_waiting(self, name: str) -> list[Effect]:
        if self._phase is not Phase.EXCHANGING:
            return []
        if name == "round":
            return self._close()
        if name == "again":
            told = sorted((part, p) for part, p in self._told if part not in self._averages and p in self._present)
            return [self._tell(part, reducer) for part, reducer in told]
        return self._leave_out_the_silent()

    def _leave_out_the_silent(self) -> list[Effect]:
        butterfly, effects, late = self._butterfly(self._round), list[Effect](), set[PeerId]()
        for part in butterfly.parts:
            mine = butterfly.reducer(part, self._alive()) == self._kit.me
            if part not in self._averages and (mine or self._inbox.parts(part)):
                late.update(self._missing(butterfly, part))
                effects += self._reduce(butterfly, part)
        note = Note("late", {"round": self._round, "peers": [str(p) for p in butterfly.group if p in late]})
        return [note, *effects, *self._exchange()]

    def _close(self) -> list[Effect]:
        butterfly, done = self._butterfly(self._round), self._round
        missing = [part for part in butterfly.parts if part not in self._averages]
        notes = [Note("partial", {"round": done, "parts": missing, "of": len(butterfly.parts)})] if missing else []
        group = 1 if missing else min((count for count, _ in self._averages.values()), default=1)
        averages = {part: average for part, (_, average) in self._averages.items()}
        self._x = self._codec.mixed(butterfly, self._x, averages)
        if reason := astray(self._x):
            return [*notes, self._stop(reason)]
        self._round += 1
        self._told, self._averages, self._blobs = set(), {}, []
        self._inbox.forget(self._round)
        self._answers.forget(self._round)
        notes.append(Note("round", {"round": done, "group": group}))
        due = self._evaluation.due(self._round, lambda: self._x)
        return [*(CancelTimer(name) for name in ("again", "reduce", "round")), *notes, *due, *self._go_on()]

    def _go_on(self) -> list[Effect]:
        if self._round < self._kit.rounds:
            return self._train()
        self._phase = Phase.CLOSING
        return []

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        if not isinstance(message, messages.Part | messages.Averaged):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in an all-reduce")
        self._inbox.check_round(message.round)
        butterfly = self._butterfly(message.round)
        self._inbox.check(butterfly, self._kit.me, sender, message, self._alive())
        if isinstance(message, messages.Part) and self._answers.known(message.round, message.part):
            return self._answers.again(sender, message.round, message.part)
        if message.round < self._round or self._inbox.has(sender, message):
            return []  # too late, or said again, which is no offence
        self._inbox.take(sender, message, self._codec.read(butterfly, message))
        return self._exchange()

    # --- the round's division of labour ------------------------------------------------------------------------

    def _butterfly(self, round_: int) -> Butterfly:
        places = random_groups(self._kit.seed, round_, len(self._kit.order), self._size)[self._me]
        group = tuple(self._kit.order[place] for place in places)
        return Butterfly(group, self._kit.sealer.dimension, round_ % self._sweep, self._sweep)

    def _alive(self) -> frozenset[PeerId]:
        return self._present | {self._kit.me}
