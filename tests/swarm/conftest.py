"""A mesh in the hand: real machines, no clock, no wire. The test decides what is delivered, when, and what is lost.

Training is a quadratic bowl per peer, in numpy: what it comes to can be written down beside the test.
"""

import copyreg
import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Codec, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.feedback import ErrorFeedback
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Keep,
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
from veilmesh.peer.worker import Errand
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import Guard
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Outcome
from veilmesh.swarm.topology import TOPOLOGIES

D = 12
RATE = np.float32(0.25)


@dataclass(frozen=True)
class Train:
    round: int
    parameters: Vector
    proximal: float = 0.0
    correction: Vector | None = None


@dataclass(frozen=True)
class Evaluate:
    parameters: Vector


@dataclass(frozen=True)
class Trained:
    update: Vector
    loss: float
    samples: int


@dataclass(frozen=True)
class Evaluated:
    accuracy: float
    loss: float


class Tasks:
    """A source of the tasks that `Player` can do."""

    def train(self, round_: int, parameters: Vector, proximal: float = 0.0, correction: Vector | None = None) -> object:
        return Train(round_, parameters, proximal, correction)

    def evaluate(self, parameters: Vector) -> object:
        return Evaluate(parameters)


@dataclass
class Player:
    """One machine, its bowl, and all that it did."""

    machine: Machine
    target: Vector
    samples: int
    neighbours: tuple[PeerId, ...]
    steps: int = 1
    timers: dict[str, float] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    outcome: Outcome | None = None
    kept: list[Keep] = field(default_factory=list)

    def work(self, task: object) -> object:
        if isinstance(task, Train):
            return Trained(self.descend(task), 1.0, self.samples)
        if isinstance(task, Errand):
            return task.run()
        assert isinstance(task, Evaluate)
        return Evaluated(0.5, float(np.linalg.norm(task.parameters)))

    def descend(self, task: Train) -> Vector:
        """`steps` steps down the bowl, with the term and the correction that the task names."""
        update = np.zeros_like(task.parameters)
        for _ in range(self.steps):
            toward = self.target - (task.parameters + update)
            if task.proximal:
                toward = toward - np.float32(task.proximal) * update
            if task.correction is not None:
                toward = toward - task.correction
            update = update + toward * RATE
        return update

    def noted(self, kind: str) -> list[Mapping[str, object]]:
        return [note.data for note in self.notes if note.kind == kind]


Pending = tuple[PeerId, Received | Work]


class World:
    """Machines and what lies between them.

    `pending` holds bodies under way and work under way; nothing of it happens before the test says so.
    """

    def __init__(self, players: dict[PeerId, Player]) -> None:
        self.players = players
        self.ids = tuple(players)
        self.pending: list[Pending] = []
        self.said: list[tuple[PeerId, PeerId, messages.Message]] = []
        self.lost: Callable[[PeerId, PeerId, messages.Message], bool] = lambda sender, to, message: False
        self.now = 0.0

    def __getitem__(self, index: int) -> Player:
        return self.players[self.ids[index]]

    def start(self) -> "World":
        for peer, player in self.players.items():
            self.feed(peer, Started(frozenset(player.neighbours)))
        return self

    def feed(self, peer: PeerId, event: Event) -> list[Effect]:
        """Give a machine an event, and take its effects. A RemoteError must leave its state as it was."""
        player = self.players[peer]
        if player.outcome is not None:
            return []
        before = frozen(player.machine)
        try:
            effects = player.machine.handle(event, self.now)
        except RemoteError as error:
            player.refused.append(error.refusal)
            effects = []
            unchanged = snapshot(player.machine) == snapshot(pickle.loads(before))
        else:
            unchanged = True
        assert unchanged, f"{player.refused[-1]} changed the machine"
        for effect in effects:
            self._perform(peer, player, effect)
        return effects

    def _perform(self, peer: PeerId, player: Player, effect: Effect) -> None:
        assert player.outcome is None or not isinstance(effect, Send | Note), "something was said after the Stop"
        match effect:
            case Send(to, body):
                assert to in player.neighbours
                message = messages.decode(body)
                self.said.append((peer, to, message))
                if not self.lost(peer, to, message):
                    self.pending.append((to, Received(peer, body)))
            case Work():
                self.pending.append((peer, effect))
            case SetTimer(name, at):
                player.timers[name] = at
            case CancelTimer(name):
                player.timers.pop(name, None)
            case Note():
                player.notes.append(effect)
            case Keep():
                player.kept.append(effect)
            case Stop(result):
                assert isinstance(result, Outcome)
                player.outcome = result

    def step(self, index: int = 0) -> None:
        """Let one pending thing happen."""
        peer, what = self.pending.pop(index)
        self.now += 0.001  # so that of two timers the one that was set first fires first
        if isinstance(what, Work):
            self.feed(peer, WorkDone(what.name, self.players[peer].work(what.task)))
        else:
            self.feed(peer, what)

    def settle(self, choose: Callable[[int], int] = lambda count: 0) -> "World":
        """Let everything happen that needs no timer; `choose` says which of so many pending things is next."""
        while self.pending:
            self.step(choose(len(self.pending)))
        return self

    def ring(self) -> None:
        """Let the earliest timer fire."""
        at, peer, name = min((at, p, n) for p, player in self.players.items() for n, at in player.timers.items())
        del self.players[peer].timers[name]
        self.now = max(self.now, at)
        self.feed(peer, TimerFired(name))

    def finish(self) -> "World":
        """Go on until every machine has stopped, with timers firing when nothing else can happen."""
        for _ in range(10_000):
            self.settle()
            if all(player.outcome for player in self.players.values()):
                return self
            self.ring()
        raise AssertionError("it never ends")

    def die(self, index: int) -> None:
        """A peer ends without a word; its neighbours are told by their membership."""
        dead = self.ids[index]
        gone = self.players.pop(dead)
        self.pending = [(peer, what) for peer, what in self.pending if peer != dead]
        for peer in gone.neighbours:
            if peer in self.players:
                player = self.players[peer]
                player.neighbours = tuple(p for p in player.neighbours if p != dead)
                self.feed(peer, PeersChanged(frozenset(player.neighbours)))

    def models(self) -> list[Vector]:
        return [player.outcome.parameters for player in self.players.values() if player.outcome]


def frozen(machine: Machine) -> bytes:
    """A machine as it is now: cheap, since it is wanted at every step, and looked at only where one was refused."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, protocol=5)
    pickler.dispatch_table = {**copyreg.dispatch_table, Kit: lambda kit: (str, ("the kit",))}
    pickler.dump(machine)
    return out.getvalue()


def snapshot(value: object) -> object:
    """Everything in a machine but its kit, as plain values that compare."""
    match value:
        case np.ndarray():
            return (value.dtype.str, value.shape, value.tobytes())
        case Enum() | str() | bytes() | int() | float() | None:
            return value
        case Mapping():
            return [(key, snapshot(value[key])) for key in sorted(value)]
        case set() | frozenset():
            return sorted(value)
        case tuple() | list():
            return [snapshot(item) for item in value]
        case ErrorFeedback():
            return snapshot(value.memory)
        case msgspec.Struct():
            return messages.encode(cast(messages.Message, value))
    if is_dataclass(value):  # it may have slots
        return snapshot({part.name: getattr(value, part.name) for part in fields(value)})
    return snapshot({name: part for name, part in vars(value).items() if name != "_kit"})


def build(
    peers: int = 4,
    *,
    strategy: str = "gossip",
    options: Mapping[str, Any] | None = None,
    codec: Codec | None = None,
    guards: Iterable[Guard] = (),
    rounds: int = 3,
    rows: Mapping[int, Mapping[int, float]] | None = None,
    samples: Iterable[int] = (),
    seed: int = 5,
    evaluate_every: int = 1000,
    dimension: int = D,
    steps: int = 1,
    keep_every: int = 0,
) -> World:
    """A world of `peers` (and in a star the hub, last) that has not started yet."""
    made = STRATEGIES.build(strategy, options)
    size = peers + made.centralised
    ids = tuple(PeerId(f"p{i}") for i in range(peers)) + ((PeerId("hub"),) if made.centralised else ())
    rows = rows or made.weights(TOPOLOGIES.build("complete").graph(peers, 0))
    rng = np.random.Generator(np.random.PCG64(seed))
    targets = rng.standard_normal((size, dimension)).astype(np.float32)
    weights = [*samples, *[10] * size]
    players = {}
    for i, me in enumerate(ids):
        near = (
            [ids[j] for j in rows.get(i, {}) if j != i] if rows else [p for p in ids if (p == "hub") != (me == "hub")]
        )
        kit = Kit(
            me=me,
            order=ids,
            weights={ids[j]: w for j, w in rows.get(i, {}).items()},
            server=ids[-1] if made.centralised else None,
            initial=np.zeros(dimension, np.float32),
            rounds=rounds,
            patience=10.0,
            evaluate_every=evaluate_every,
            sealer=Sealer(tuple(guards), codec or Dense(), dimension, seed, i),
            work=Tasks(),
            stride=steps * float(RATE),
            seed=seed,
            rows=rows,
            keep_every=keep_every,
            private=1000 * seed + i + 1,
        )
        players[me] = Player(made.machine(kit), targets[i], weights[i], tuple(near), steps)
    return World(players)


@dataclass(frozen=True)
class Lab:
    """What the tests of this room are made with."""

    build: Callable[..., World]
    snapshot: Callable[[object], object]
    rate: Any = RATE
    dimension: int = D


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab(build, snapshot)


def refusal(machine: Machine, event: Event) -> Refusal:
    """Why a machine refuses an event; it must come out of it unchanged."""
    before = snapshot(machine)
    with pytest.raises(RemoteError) as caught:
        machine.handle(event, 0.0)
    assert snapshot(machine) == before
    assert not isinstance(caught.value, LocalError)
    return caught.value.refusal


@pytest.fixture(scope="session")
def refused() -> Callable[[Machine, Event], Refusal]:
    return refusal
