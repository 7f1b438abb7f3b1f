"""Asynchronous gossip: nobody waits for anybody.

Theory of operation (after Lian et al. 2018, "Asynchronous decentralized parallel stochastic gradient descent", AD-PSGD,
with messages that go one way and that nobody answers). A peer has a line h_i, which only it moves; its model x_i is
the mix of everybody's lines as they were last heard:

    x_i = sum over j of W_ij hhat_ji,  hhat_ii = h_i                                  at any time
    forever:  u_i = what training at x_i comes to, after the guards, times min(1, tolerance / age)
              h_i += u_i + sum over j heard since the last step of  W_ij (1 + a_ij)^-discount (hhat_ji - h_i(then))
              k_i += 1;  q = C(h_i - hhat_ij) to one neighbour j drawn at random (or to each);  hhat_ij += q

Why two vectors. A step counts W_ij at each peer, at the one that made it too, so all of them follow one sum of steps,
late as its parts may come: on a complete graph that is asynchronous SGD (Recht et al. 2011; Lian et al. 2015) without a
server, and models differ by the steps that are under way and by nothing else. Were a step to count in full at home
until mixing spreads it, as in D-PSGD, a peer whose messages take ten steps would be ten steps deep in its own labels.
Where not everybody is a neighbour, lines have to mix as well, and there two things go wrong with what is old.
Averaging with an old line drags back (a mean that moves by v a step falls behind by the age of what it is averaged
with), so a line is compared with our own of the same age, h_i(then), and the mean of all stays where steps put it. And
what acts late overshoots, with a gain of more than pi/2 over the delay, so it is discounted by its age. The same bound
holds for steps: curvature times learning rate times age must stay below pi/2, so where `age`, the median of a_ij over
the neighbours, is more than `tolerance` steps, steps are made shorter in proportion (Zhang et al. 2016,
"Staleness-aware async-SGD"). With messages that take less than a step the age is 0, and this is D-PSGD with the
neighbours' models of one step ago.

The age a_ij of what j said, in steps of ours, follows from the last of our steps that j had heard of when it said it:
half of what lies between that and now. How many steps j itself has made says nothing about age: a slow peer is not an
old one. Lines older than `MEMORY` steps are not kept; what is older is compared with the oldest, and drags a little.

x_i is a convex combination of lines, so one that lies moves it by its weight and no more, however often it speaks: its
latest word counts, once. hhat_ij is what j was told on this link, kept at both of its ends: a message names the
one it builds on, and where that is not the last one the receiver has, it asks for the whole (`Ask`, `Copy`) and leaves
this one out. Somebody who is gone leaves its last line behind, and with it what it taught the others.

The end. All are to end together: those who went on after the rest would learn their own labels only. So a peer ends
once half of itself and its neighbours have made `rounds` steps, or have ended: faster ones have made more by then (but
never more than twice as many) and slower ones less, and no minority can end a training. Its last word says so; it
stays, without training, until all neighbours that are present have said theirs, which takes as long as words take, or
for `patience`: then its model is the mix of everybody's last lines.

States: TRAINING (waits for WorkDone, its own only, which therefore needs no timer) -> LINGERING (waits for last words,
and a timer) -> CLOSING (waits for the last evaluation) -> stopped. What comes out depends on the order of delivery, and
on nothing else.
"""

from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar, Literal, cast

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import Refusal, RemoteError, seed_number
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
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
from veilmesh.swarm.sealer import RANGE, astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.topology import metropolis_hastings

__all__ = ["MEMORY", "AsyncGossip", "AsyncGossipMachine"]


MEMORY = 16
"""How many of its own past lines a peer keeps, to compare what is old with."""


@STRATEGIES.register("async-gossip")
@dataclass(frozen=True)
class AsyncGossip:
    """Asynchronous gossip (after AD-PSGD, one-sided): nobody waits, and a step counts alike wherever it is heard.

    `to`: whom a peer tells of a local step, one random neighbour or all of them. `discount`: how fast what is old loses
    its hold on a peer's own line, (1 + age)^-discount. `tolerance`: from which age of what is heard on steps are made
    shorter, by tolerance / age. Ages are in steps.
    """

    to: Literal["one", "all"] = "all"
    discount: Annotated[float, Field(ge=0, le=8)] = 1.0
    tolerance: Annotated[float, Field(gt=0)] = 4.0

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        return AsyncGossipMachine(kit, self)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return metropolis_hastings(graph)


class AsyncGossipMachine:
    """One peer of an asynchronous gossip."""

    def __init__(self, kit: Kit, options: AsyncGossip) -> None:
        self._kit = kit
        self._options = options
        self._neighbours = tuple(p for p in kit.order if p in kit.weights and p != kit.me)
        self._lines = [kit.initial]  # ours, after each of our last steps
        self._fresh: dict[PeerId, tuple[float, Vector]] = {}  # heard since: its age, and our line of that age
        self._steps = 0
        self._begun = kit.initial  # where the step under way was begun
        self._samples = 1  # behind our last step
        self._told: dict[PeerId, tuple[int, Vector]] = dict.fromkeys(self._neighbours, (0, kit.initial))
        self._heard: dict[PeerId, tuple[int, Vector]] = dict.fromkeys(self._neighbours, (0, kit.initial))
        self._known = dict.fromkeys(self._neighbours, 0)  # the last of our steps that it had heard of when it spoke
        self._answered: dict[PeerId, int] = {}
        self._asked: dict[PeerId, int] = {}  # at which of our steps, so that one gap is asked about once a step
        self._present: frozenset[PeerId] = frozenset()
        self._ended: set[PeerId] = set()  # who said its last word
        self._lingers = False
        self._last: Vector | None = None  # the model that is left behind
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._present = present
                return [self._train()]
            case WorkDone(name, result) if name.startswith("train"):
                return self._stepped(cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluated(name, cast(Evaluated, result))
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body)) + self._end_if_over(now)
            case PeersChanged(present):
                self._present = present
                return self._end_if_over(now)
            case TimerFired():
                return self._close()
        return []

    # --- one step ----------------------------------------------------------------------------------------------

    def _train(self) -> Work:
        self._begun = self._model()
        return Work(f"train-{self._steps}", self._kit.work.train(self._steps, self._begun))

    def _stepped(self, trained: Trained, now: float) -> list[Effect]:
        if self._lingers:
            return []  # all was over while we trained
        info = RoundInfo(self._steps, trained.samples, start=self._begun)
        update = self._shortened(self._kit.sealer.guard(trained.update, info))
        notes = self._notes(trained)
        line, receivers = self._mixed_line() + update, self._receivers()
        if reason := next(filter(None, map(astray, [line, *(line - self._told[p][1] for p in receivers)])), None):
            return [self._stop(reason)]
        self._lines = [*self._lines[-MEMORY:], line]
        self._fresh, self._samples = {}, trained.samples
        self._steps += 1
        if ends := self._end_if_over(now):
            return [*notes, *ends]
        sends = [self._tell(p) for p in receivers]
        return [*sends, *notes, *self._evaluation.due(self._steps, self._model), self._train()]

    def _shortened(self, update: Vector) -> Vector:
        """An update (d,), the shorter the older what we know of the others is."""
        ages = [self._age(p) for p in self._neighbours if p in self._present and p not in self._ended]
        age, tolerance = median(ages or [0.0]), self._options.tolerance
        return update if age <= tolerance else update * np.float32(tolerance / age)

    def _age(self, peer: PeerId) -> float:
        """How many steps ago, on the way between then and now, `peer` said what it said last."""
        return max(0.0, (self._steps - self._known[peer] - 1) / 2)

    def _model(self) -> Vector:
        """(d,) the mix of all lines as they were last heard, in roster order."""
        mixed = self._lines[-1].copy()
        for peer in self._neighbours:
            mixed += np.float32(self._kit.weights[peer]) * (self._heard[peer][1] - self._lines[-1])
        return mixed

    def _mixed_line(self) -> Vector:
        """(d,) our line, mixed with those that were heard since our last step, in roster order."""
        line = self._lines[-1].copy()
        for peer in self._neighbours:
            if peer in self._fresh:
                age, then = self._fresh[peer]
                weight = self._kit.weights[peer] * (1 + age) ** -self._options.discount
                line += np.float32(weight) * (self._heard[peer][1] - then)
        return line

    def _receivers(self) -> list[PeerId]:
        present = [p for p in self._neighbours if p in self._present]
        if self._options.to == "all" or not present:
            return present
        me = self._kit.order.index(self._kit.me)
        return [present[seed_number(self._kit.seed, "to", me, self._steps) % len(present)]]

    def _tell(self, to: PeerId, last: bool = False) -> Send:
        """Say our line; a last word counts as a step after the last, since that may be told already."""
        since, told = self._told[to]
        step = self._steps + last
        blob, said = self._kit.sealer.encode(self._lines[-1] - told, step)
        self._told[to] = (step, told + said)
        return Send(to, messages.encode(messages.Delta(step, since, self._samples, blob, self._heard[to][0], last)))

    def _notes(self, trained: Trained) -> list[Effect]:
        heard = len(self._fresh)
        staleness = sum(age for age, _ in self._fresh.values()) / heard if heard else 0.0
        return [
            *self._kit.sealer.alarms(),
            Note("trained", {"round": self._steps, "loss": trained.loss}),
            Note("round", {"round": self._steps, "group": 1 + heard, "staleness": staleness}),
        ]

    # --- the end -----------------------------------------------------------------------------------------------

    def _end_if_over(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not self._lingers and self._is_over():
            self._lingers = True
            present = [p for p in self._neighbours if p in self._present]
            effects = [*(self._tell(p, last=True) for p in present), SetTimer("linger", now + self._kit.patience)]
        if self._lingers and all(p in self._ended for p in self._neighbours if p in self._present):
            effects += self._close()
        return effects

    def _is_over(self) -> bool:
        """Whether half of those who count have made all steps, or have ended; or we made twice as many."""
        there = [p for p in self._neighbours if p in self._present or p in self._ended]
        done = sum(p in self._ended or self._heard[p][0] >= self._kit.rounds for p in there)
        whole = self._steps >= self._kit.rounds
        return 2 * (done + whole) >= 1 + len(there) or self._steps >= 2 * self._kit.rounds

    def _close(self) -> list[Effect]:
        if self._last is not None:
            return []
        self._last = self._model()
        task = self._kit.work.evaluate(self._last)
        return [CancelTimer("linger"), Work(f"evaluate-last-{self._steps}", task)]

    def _evaluated(self, name: str, result: Evaluated) -> list[Effect]:
        note, _ = self._evaluation.take(name, result)
        return [note, self._stop("finished")] if name.startswith("evaluate-last") else [note]

    def _stop(self, reason: str) -> Stop:
        model = self._model() if self._last is None else self._last
        return Stop(Outcome(model, self._steps, self._evaluation.accuracy, reason))

    # --- what neighbours say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        if sender not in self._heard:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        match message:
            case messages.Delta():
                return self._take_delta(sender, message)
            case messages.Copy(round=round_, blob=blob):
                copy = self._kit.sealer.decode_lossless(blob)
                asked = self._asked.get(sender, self._steps)  # it was made after that
                if self._is_news(sender, round_):
                    self._hear(sender, round_, copy, asked)
                return []
            case messages.Ask(round=round_):
                return self._answer(sender, round_)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in an asynchronous gossip")

    def _is_news(self, sender: PeerId, round_: int) -> bool:
        """Whether it is later than what we have; a copy may have overtaken it, which is no offence."""
        if not round_:
            raise RemoteError(Refusal.MISMATCH, "the beginning, which is common to all")
        return round_ > self._heard[sender][0]

    def _take_delta(self, sender: PeerId, message: messages.Delta) -> list[Effect]:
        known = self._heard[sender][0]
        difference = self._kit.sealer.decode(message.blob).values
        if message.heard > self._told[sender][0]:
            raise RemoteError(Refusal.MISMATCH, f"it heard of step {message.heard}, which it was never told of")
        effects: list[Effect] = []
        if self._is_news(sender, message.round):
            if message.since < known:
                raise RemoteError(Refusal.MISMATCH, f"a difference to step {message.since} after step {known}")
            if message.since > known:  # one before it is lost, or still on its way
                effects = self._ask(sender, message.since)
            else:
                self._hear(sender, message.round, self._moved(sender, difference), message.heard)
        if message.last:
            self._ended.add(sender)
        return effects

    def _moved(self, sender: PeerId, difference: Vector) -> Vector:
        copy = self._heard[sender][1] + difference
        if (np.abs(copy) > RANGE).any():
            raise RemoteError(Refusal.MISMATCH, f"coordinates beyond {RANGE:g}")
        return copy

    def _ask(self, sender: PeerId, since: int) -> list[Effect]:
        if self._asked.get(sender) == self._steps:
            return []
        self._asked[sender] = self._steps
        return [Send(sender, messages.encode(messages.Ask(since)))]

    def _hear(self, sender: PeerId, step: int, copy: Vector, heard: int) -> None:
        """Take note of the line of `sender` after its `step`, said when it had heard of our step `heard`."""
        self._heard[sender] = (step, copy)
        self._known[sender] = max(heard, self._known[sender])
        age = self._age(sender)
        then = self._lines[max(-1 - int(age), -len(self._lines))]
        self._fresh[sender] = (age, then)

    def _answer(self, sender: PeerId, round_: int) -> list[Effect]:
        step, told = self._told[sender]
        if step < max(round_, 1) or self._answered.get(sender) == step:
            return []  # not said yet, so not lost; and once a step is enough: an Ask is small and its answer is not
        self._answered[sender] = step
        blob = table.encode(Dense(), told, np.random.default_rng(0))
        return [Send(sender, messages.encode(messages.Copy(step, blob)))]
