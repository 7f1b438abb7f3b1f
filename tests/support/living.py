"""A mesh that lives, in virtual time: machines come, die, come back, and lose sight of each other.

One heap of what is going to happen. Training is a quadratic bowl per peer. What a membership would notice is told to
the machines as `PeersChanged`, a while after it happened.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from veilmesh.core import RemoteError, generator
from veilmesh.crypto.codecs.base import Codec, Vector
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
)
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import Aggregator
from veilmesh.swarm.aggregators.mean import Mean
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Outcome
from veilmesh.swarm.topology import TOPOLOGIES, lazy, metropolis_hastings

D, RATE, LATENCY, PATIENCE = 12, np.float32(0.25), 0.005, 2.0
AVERAGE = Mean()


def row_of(topology: str, step: float, me: PeerId, members: Sequence[PeerId]) -> Mapping[PeerId, float]:
    """My row of W on the graph of so many members."""
    rows = lazy(metropolis_hastings(TOPOLOGIES.build(topology).graph(len(members), 0)), step)
    return {members[j]: w for j, w in rows[members.index(me)].items()}


@dataclass(frozen=True)
class Task:
    kind: str
    parameters: Vector


@dataclass(frozen=True)
class Done:
    update: Vector
    loss: float = 1.0
    samples: int = 10
    accuracy: float = 0.5


class Bowl:
    def train(self, round_: int, parameters: Vector) -> object:
        return Task("train", parameters)

    def evaluate(self, parameters: Vector) -> object:
        return Task("evaluate", parameters)


@dataclass
class Life:
    """One machine, from its start to its end."""

    name: PeerId
    machine: Machine
    target: Vector
    pace: float  # seconds that a training takes
    seen: frozenset[PeerId] = frozenset()
    timers: dict[str, float] = field(default_factory=dict)
    notes: list[tuple[float, Note]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    tamper: Callable[[PeerId, messages.Message], messages.Message | None] = lambda to, message: message

    def noted(self, kind: str) -> list[Mapping[str, object]]:
        return [note.data for _, note in self.notes if note.kind == kind]

    @property
    def round(self) -> int:
        return vars(self.machine)["_round"]

    @property
    def x(self) -> Vector:
        return vars(self.machine)["_x"]


class Living:
    """The mesh. `notice`: seconds until a change of who is there is noticed."""

    def __init__(
        self,
        founders: Iterable[str],
        *,
        rounds: int = 1000,
        topology: str = "complete",
        elastic: bool = True,
        strategy: str = "gossip",
        step: float = 1.0,
        codec: Codec | None = None,
        aggregator: Aggregator = AVERAGE,
        notice: float = LATENCY / 2,
        pace: Mapping[str, float] | None = None,
        snapshot: Callable[[object], object] = lambda machine: None,  # what a refused word of "liar" must not change
    ) -> None:
        self.order = tuple(PeerId(p) for p in founders)
        self.lives: dict[PeerId, Life] = {}
        self.gone: list[Life] = []
        self.now = 0.0
        self.said: list[tuple[float, PeerId, PeerId, messages.Message]] = []
        self.lost: Callable[[PeerId, PeerId, messages.Message], bool] = lambda sender, to, message: False
        self._rounds, self._elastic, self._row = rounds, elastic, partial(row_of, topology, step)
        self._strategy = STRATEGIES.build(strategy, {"step": step})
        self._codec, self._aggregator = codec or Dense(), aggregator
        self._notice, self._pace, self._snapshot = notice, dict(pace or {}), snapshot
        self._sides: dict[PeerId, int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        for name in self.order:
            self._be_born(name, late=False)
        for life in self._alive():
            self._put(0.0, partial(self._start, life))

    def __getitem__(self, name: str) -> Life:
        return self.lives[PeerId(name)]

    # --- what happens to it ------------------------------------------------------------------------------------

    def join(self, name: str) -> Life:
        """`name` comes, or comes back with nothing but its name."""
        life = self._be_born(PeerId(name), late=True)
        self._put(self.now, partial(self._start, life))
        self._put(self.now + self._notice, self._look)
        return life

    def kill(self, name: str) -> None:
        """It ends without a word."""
        self.gone.append(self.lives.pop(PeerId(name)))
        self._put(self.now + self._notice, self._look)

    def cut(self, *sides: Iterable[str]) -> None:
        self._sides = {PeerId(p): number for number, side in enumerate(sides) for p in side}
        self._put(self.now + self._notice, self._look)

    def heal(self) -> None:
        self._sides = {}
        self._put(self.now + self._notice, self._look)

    def run(self, seconds: float) -> "Living":
        """Let `seconds` pass."""
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._heap)
            happen()
        self.now = until
        return self

    def finish(self, within: float = 1000.0) -> "Living":
        """Go on until all have stopped."""
        until = self.now + within
        while any(life.outcome is None for life in self._alive()):
            assert self._heap, "it stands still"
            assert self._heap[0][0] < until, "it does not end"
            self.now, _, happen = heapq.heappop(self._heap)
            happen()
        return self

    # --- what there is to see ----------------------------------------------------------------------------------

    def distance(self, names: Iterable[str] | None = None) -> float:
        """The largest distance of a model from the mean of all."""
        models = np.array([self[p].x for p in (names or self.lives)])
        return float(np.abs(models - models.mean(0)).max())

    def spread(self) -> int:
        """How many rounds the first is ahead of the last."""
        rounds = [life.round for life in self._alive()]
        return max(rounds) - min(rounds)

    # --- how it goes -------------------------------------------------------------------------------------------

    def _alive(self) -> list[Life]:
        return list(self.lives.values())

    def _be_born(self, name: PeerId, late: bool) -> Life:
        index = self.order.index(name) if name in self.order else len(self.order)
        target = generator(1, "target", name).standard_normal(D).astype(np.float32)
        kit = Kit(
            me=name,
            order=self.order,
            weights=self._row(name, self.order) if name in self.order else {},
            server=None,
            initial=np.zeros(D, np.float32),
            rounds=self._rounds,
            patience=PATIENCE,
            evaluate_every=100_000,
            sealer=Sealer((), self._codec, D, 1, index),
            work=Bowl(),
            aggregator=self._aggregator,
            links=partial(self._row, name) if self._elastic else None,
            late=late,
        )
        life = Life(name, self._strategy.machine(kit), target, self._pace.get(name, 0.02))
        self.lives[name] = life
        return life

    def _put(self, at: float, happen: Callable[[], None]) -> int:
        number = next(self._number)
        heapq.heappush(self._heap, (at, number, happen))
        return number

    def _sees(self, a: PeerId, b: PeerId) -> bool:
        there = a in self.lives and b in self.lives and self.lives[b].outcome is None
        return there and self._sides.get(a) == self._sides.get(b)

    def _view(self, life: Life) -> frozenset[PeerId]:
        return frozenset(p for p in self.lives if p != life.name and self._sees(life.name, p))

    def _start(self, life: Life) -> None:
        life.seen = self._view(life)
        self._feed(life, Started(life.seen))

    def _look(self) -> None:
        """Everybody notices who is there now; a new life under an old name was away in between."""
        for life in self._alive():
            if (view := self._view(life)) != life.seen:
                life.seen = view
                self._feed(life, PeersChanged(view))

    def _feed(self, life: Life, event: Event) -> list[Effect]:
        if life.outcome is not None or self.lives.get(life.name) is not life:
            return []
        suspect = isinstance(event, Received) and event.sender == "liar"
        before = self._snapshot(life.machine) if suspect else None
        try:
            effects = life.machine.handle(event, self.now)
        except RemoteError as error:
            life.refused.append(str(error))
            effects = []
            unchanged = not suspect or self._snapshot(life.machine) == before
        else:
            unchanged = True
        assert unchanged, f"{life.refused[-1]} changed the machine"
        for effect in effects:
            self._perform(life, effect)
        return effects

    def _perform(self, life: Life, effect: Effect) -> None:
        match effect:
            case Send(to, body):
                if (message := life.tamper(to, messages.decode(body))) is not None:
                    self.say(life.name, to, message)
            case Work(name, task):
                assert isinstance(task, Task)
                update = (life.target - task.parameters) * RATE
                pace = life.pace if task.kind == "train" else 0.0
                self._put(self.now + pace, partial(self._feed, life, WorkDone(name, Done(update))))
            case SetTimer(name, at):
                life.timers[name] = at
                self._put(at, partial(self._ring, life, name, at))
            case CancelTimer(name):
                life.timers.pop(name, None)
            case Note():
                life.notes.append((self.now, effect))
            case Stop(result):
                assert isinstance(result, Outcome)
                life.outcome = result
                self._put(self.now + self._notice, self._look)

    def say(self, sender: PeerId, to: PeerId, message: messages.Message) -> None:
        """Put a message on its way, if there is one."""
        self.said.append((self.now, sender, to, message))
        if self._sees(sender, to) and not self.lost(sender, to, message):
            event = Received(sender, messages.encode(message))
            self._put(self.now + LATENCY, partial(self._feed, self.lives[to], event))

    def _ring(self, life: Life, name: str, at: float) -> None:
        if life.timers.get(name) == at:
            del life.timers[name]
            self._feed(life, TimerFired(name))
