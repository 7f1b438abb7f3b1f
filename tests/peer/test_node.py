"""The node: how it begins, what it carries in and out, what it drops, and how it ends. Toy machines, over memory."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
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
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.transcript import Record
from veilmesh.peer.transports.memory import Memory, MemoryTransport
from veilmesh.peer.worker import InlineWorker

RUN = bytes(16)
PATIENCE = 60.0  # of a test with a scene that hangs
CALM = Limits(start=30.0, heartbeat=0.05, patience=30.0, grace=30.0, flush=30.0, linger=1000.0)

On = Callable[[Event, float], list[Effect]]


@dataclass
class Toy:
    """A machine that is one function, and remembers what it was given."""

    on: On
    events: list[Event] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append(event)
        return self.on(event, now)


class Peer:
    """One peer of a test: everything around its node."""

    def __init__(self, number: int, kind: Memory, run: bytes = RUN) -> None:
        self.identity = Identity.from_seed(bytes([number + 1]) * 32)
        self.name = self.identity.peer
        key = X25519PrivateKey.generate()
        self.mailroom = Mailroom(self.identity, key, run, kinds=frozenset(Kind))
        self.transport: MemoryTransport = kind.make(self.identity)
        self.card = Card.issue(self.identity, key.public_key().public_bytes_raw(), run, self.transport.address)
        self.notes: list[Note] = []
        self.records: list[Record] = []
        self.node: Node | None = None
        self.result: object = "not ended"

    def know(self, *others: "Peer") -> None:
        for other in others:
            self.mailroom.admit(other.card)
        self.transport.introduce({o.name: o.transport.address for o in others})

    def noted(self, kind: str) -> list[Note]:
        return [note for note in self.notes if note.kind == kind]

    async def run(
        self,
        machine: Toy,
        neighbours: list["Peer"],
        limits: Limits = CALM,
        execute: Callable[[object], object] = lambda task: task,
    ) -> None:
        async with self.transport.open() as inbox:
            self.node = Node(
                machine=machine,
                mailroom=self.mailroom,
                transport=self.transport,
                worker=InlineWorker(lambda tasks: [execute(task) for task in tasks]),
                neighbours=frozenset(n.name for n in neighbours),
                note=lambda note, now: self.notes.append(note),
                tap=self.records.append,
                limits=limits,
            )
            self.result = await self.node.run(inbox)


def peers(count: int) -> list[Peer]:
    kind = Memory()
    found = [Peer(n, kind) for n in range(count)]
    for one in found:
        one.know(*(other for other in found if other is not one))
    return found


def play(scene: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                await scene(tasks)

    anyio.run(patiently, backend="trio")


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110  # what is waited for sets no event
        await anyio.sleep(0.01)


def greeter(others: list[Peer], word: bytes = b"hello") -> Toy:
    """Greets everybody, and stops when everybody has greeted it."""
    heard: dict[PeerId, bytes] = {}

    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [Send(o.name, word) for o in others]
            case Received(sender, body):
                heard[sender] = body
        return [Stop(dict(heard))] if len(heard) == len(others) else []

    return Toy(on)


def greet(everybody: list[Peer], tasks: TaskGroup, limits: Limits = CALM) -> list[Toy]:
    toys = []
    for one in everybody:
        others = [o for o in everybody if o is not one]
        toys.append(greeter(others, one.name.encode()))
        tasks.start_soon(one.run, toys[-1], others, limits)
    return toys


# --- beginning -----------------------------------------------------------------------------------------------------


def test_everybody_starts_with_everybody_and_hears_everybody() -> None:
    everybody, toys = peers(3), []

    async def scene(tasks: TaskGroup) -> None:
        toys.extend(greet(everybody, tasks))

    play(scene)
    for one, toy in zip(everybody, toys, strict=True):
        others = {o.name for o in everybody if o is not one}
        assert toy.events[0] == Started(frozenset(others))
        assert one.result == {name: name.encode() for name in others}
        assert one.node.tally.refusals == {}
        assert (one.node.tally.messages_sent, one.node.tally.messages_received) == (2, 2)


def test_a_late_starter_is_waited_for_and_misses_nothing() -> None:
    early, prompt, late = everybody = peers(3)
    started: list[PeerId] = []

    async def scene(tasks: TaskGroup) -> None:
        for one in (early, prompt):
            others = [o for o in everybody if o is not one]
            toy = greeter(others)

            def on(event: Event, now: float, who: PeerId = one.name, inner: On = toy.on) -> list[Effect]:
                if isinstance(event, Started):
                    started.append(who)
                return inner(event, now)

            tasks.start_soon(one.run, Toy(on), others)
        await anyio.sleep(0.5)
        assert started == []
        tasks.start_soon(late.run, greeter([early, prompt]), [early, prompt])

    play(scene)
    assert all(set(one.result) == {o.name for o in everybody if o is not one} for one in everybody)


def test_the_deadline_names_who_is_missing_and_nobody_else() -> None:
    a, b, absent = peers(3)
    limits = Limits(start=0.6, heartbeat=0.05)

    async def scene(tasks: TaskGroup) -> None:
        for one, other in ((a, b), (b, a)):

            async def refused(one: Peer = one, other: Peer = other) -> None:
                with pytest.raises(BadInput, match=r"raise timing\.start") as caught:
                    await one.run(greeter([other, absent]), [other, absent], limits)
                assert absent.name in str(caught.value)
                assert other.name not in str(caught.value)

            tasks.start_soon(refused)

    play(scene)


def test_a_peer_without_neighbours_begins_at_once() -> None:
    [alone] = peers(1)

    async def scene(tasks: TaskGroup) -> None:
        await alone.run(Toy(lambda event, now: [Stop(event)]), [])

    play(scene)
    assert alone.result == Started(frozenset())


# --- what is carried -----------------------------------------------------------------------------------------------


def test_the_tap_records_what_is_said_and_what_is_received() -> None:
    a, b = everybody = peers(2)

    async def scene(tasks: TaskGroup) -> None:
        greet(everybody, tasks)

    play(scene)
    said, got = sorted(a.records, key=lambda r: r.sender != a.name)
    assert (said.at, said.sender, said.to, said.size, said.frame, said.body) == (
        a.name, a.name, b.name, 0, None, a.name.encode(),
    )  # fmt: skip
    assert (got.at, got.sender, got.to, got.body) == (a.name, b.name, a.name, b.name.encode())
    assert got.size == len(got.frame) > len(got.body)
    assert b.name.encode() not in got.frame


def test_work_is_done_elsewhere_and_comes_back_by_name() -> None:
    [alone] = peers(1)

    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [Work("one", 1), Work("two", "broken"), Work("three", "bad"), Work("four", 4)]
            case WorkDone("four"):
                return [Stop(toy.events[1:])]
        return []

    def execute(task: object) -> object:
        if task == "broken":
            raise LocalError("it broke")
        if task == "bad":
            raise BadInput("Lower it.")
        return task * 10

    toy = Toy(on)

    async def scene(tasks: TaskGroup) -> None:
        await alone.run(toy, [], execute=execute)

    play(scene)
    assert alone.result == [
        WorkDone("one", 10),
        WorkFailed("two", "it broke"),
        WorkFailed("three", "Lower it."),
        WorkDone("four", 40),
    ]


def test_timers_fire_in_their_time_can_be_moved_and_cancelled() -> None:
    [alone] = peers(1)

    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [
                    SetTimer("second", now + 0.1), SetTimer("moved", now + 0.01), SetTimer("first", now + 0.02),
                    SetTimer("never", now + 0.03), SetTimer("end", now + 0.4), SetTimer("past", now - 5),
                    SetTimer("moved", now + 0.2), CancelTimer("never"), CancelTimer("unknown"),
                ]  # fmt: skip
            case TimerFired("end"):
                return [Stop([e.name for e in toy.events[1:]])]
        return []

    toy = Toy(on)

    async def scene(tasks: TaskGroup) -> None:
        await alone.run(toy, [])

    play(scene)
    assert alone.result == ["past", "first", "second", "moved", "end"]


def test_a_timer_that_is_cancelled_while_it_waits_for_its_turn_never_fires() -> None:
    """A hub would otherwise close a round that has just begun, on the timer of the one that is over."""
    a, b = peers(2)
    flood = 60

    def on(event: Event, now: float) -> list[Effect]:
        received = sum(isinstance(e, Received) for e in toy.events)
        match event:
            case Started():
                return [SetTimer("cancelled", now), SetTimer("moved", now)]
            case Received() if received == flood:
                return [CancelTimer("cancelled"), SetTimer("moved", now + 0.2)]
            case TimerFired("moved"):
                return [Stop([e.name for e in toy.events if isinstance(e, TimerFired)])]
        return []

    toy = Toy(on)

    async def scene(tasks: TaskGroup) -> None:
        async with b.transport.open():
            tasks.start_soon(a.run, toy, [b], Limits(heartbeat=0.05, linger=0.0))
            await anyio.sleep(0.1)  # a is open, and waits for b
            for n in range(flood):
                await b.transport.send(a.name, b.mailroom.seal(a.name, Kind.DATA, b"%d" % n))
            await b.transport.send(a.name, b.mailroom.seal(a.name, Kind.PRESENCE, b"\x01"))
            await until(lambda: a.result != "not ended")

    play(scene)
    assert a.result == ["moved"]
    assert [e for e in toy.events if isinstance(e, TimerFired)] == [TimerFired("moved")]


def test_notes_reach_the_record() -> None:
    [alone] = peers(1)

    async def scene(tasks: TaskGroup) -> None:
        await alone.run(Toy(lambda event, now: [Note("round", {"round": 3}), Stop()]), [])

    play(scene)
    assert alone.notes == [Note("round", {"round": 3})]


# --- what is dropped -----------------------------------------------------------------------------------------------


def test_forged_frames_and_garbage_are_dropped_counted_and_noted() -> None:
    a, b = everybody = peers(2)
    kind = Memory()
    kind.__dict__["exchange"] = a.transport._exchange  # a third party that can reach them, and is in no roster
    mallory, elsewhere = Peer(8, kind), Peer(9, kind, run=b"another run.....")
    for outsider in (mallory, elsewhere):
        outsider.transport.introduce({a.name: a.transport.address})
    mallory.mailroom.admit(a.card)

    async def attack() -> None:
        honest = b.mailroom.seal(a.name, Kind.DATA, b"said once")
        bent = bytearray(b.mailroom.seal(a.name, Kind.DATA, b"bent"))
        bent[-1] ^= 1
        unsealed = bytearray(b.mailroom.seal(a.name, Kind.DATA, b"cut"))
        frames = [
            os.urandom(300), b"", b"VM", mallory.mailroom.seal(a.name, Kind.DATA, b"hi"), honest, honest, bytes(bent),
            bytes(unsealed[:-1]), bytes(unsealed) + b"more",
        ]  # fmt: skip
        for frame in frames:
            await mallory.transport.send(a.name, frame)

    async def scene(tasks: TaskGroup) -> None:
        async with mallory.transport.open():
            greet(everybody, tasks)
            await until(lambda: a.node is not None)
            await attack()
            await until(lambda: "not ended" not in (a.result, b.result))

    play(scene)
    assert b.result == {a.name: a.name.encode()}
    assert set(a.result) == {b.name}
    refusals = a.node.tally.refusals
    assert refusals[Refusal.REPLAY] == 1
    assert refusals[Refusal.STRANGER] == 1
    assert refusals[Refusal.BAD_SIGNATURE] >= 1
    assert refusals.total() == 8
    assert len(a.noted("refused")) == 8
    assert b.node.tally.refusals == {}


def test_a_flood_of_bad_frames_does_not_flood_the_record() -> None:
    a, b = everybody = peers(2)

    async def scene(tasks: TaskGroup) -> None:
        toy = greeter([b])
        tasks.start_soon(a.run, toy, [b])
        await until(lambda: a.node is not None)
        for _ in range(500):
            a.transport.take(b"nothing")
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(b.run, greeter([a]), [a])

    play(scene)
    assert a.node.tally.refusals.total() == 500
    assert 0 < len(a.noted("refused")) < 50
    assert everybody[0].result == {b.name: b"hello"}


def test_what_the_machine_refuses_is_counted_under_its_sender() -> None:
    a, b = peers(2)

    def picky(event: Event, now: float) -> list[Effect]:
        match event:
            case Received(_, b"bad"):
                raise RemoteError(Refusal.MISMATCH, "not in this round")
            case Received():
                return [Stop("unharmed")]
        return []

    def rude(event: Event, now: float) -> list[Effect]:
        return [Send(a.name, b"bad"), Send(a.name, b"good"), Stop()] if isinstance(event, Started) else []

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, Toy(picky), [b])
        tasks.start_soon(b.run, Toy(rude), [a])

    play(scene)
    assert a.result == "unharmed"
    assert a.node.tally.refusals == {Refusal.MISMATCH: 1}
    [note] = a.noted("refused")
    assert note.data["from"] == b.name
    assert "not in this round" in note.data["detail"]


def test_presence_with_a_strange_body_harms_nobody() -> None:
    a, b = everybody = peers(2)

    async def scene(tasks: TaskGroup) -> None:
        greet(everybody, tasks)
        await until(lambda: a.node is not None)
        for body in (b"", b"\x02", b"x" * 10_000):
            a.transport.take(b.mailroom.seal(a.name, Kind.PRESENCE, body))

    play(scene)
    assert a.result == {b.name: b.name.encode()}


def test_our_own_mistakes_are_not_swallowed() -> None:
    def broken(event: Event, now: float) -> list[Effect]:
        raise LocalError("our own mistake")

    def confused(event: Event, now: float) -> list[Effect]:
        return [Send(PeerId("nobody"), b"")]

    for on, words in ((broken, "our own mistake"), (confused, "not a neighbour")):
        [alone] = peers(1)

        async def scene(tasks: TaskGroup, alone: Peer = alone, on: On = on) -> None:
            await alone.run(Toy(on), [])

        with pytest.raises(BaseExceptionGroup) as caught:
            play(scene)
        assert caught.group_contains(LocalError, match=words)


def test_a_neighbour_that_takes_nothing_costs_its_own_messages_only() -> None:
    a, slow, quick = everybody = peers(3)

    class Stuck:
        """A transport that never gets anything to `slow`."""

        def __init__(self, inner: MemoryTransport) -> None:
            self._inner = inner
            self.traffic = inner.traffic
            self.jammed = False

        async def send(self, to: PeerId, frame: bytes) -> None:
            if to == slow.name and self.jammed:
                await anyio.sleep_forever()
            await self._inner.send(to, frame)

    way = Stuck(a.transport)

    def on(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [SetTimer("jam", now + 0.2)]  # `slow` has heard by then that it is heard
            case TimerFired("jam"):
                way.jammed = True
                floods = [Send(slow.name, b"%d" % n) for n in range(20)]
                return [*floods, Send(quick.name, b"hello"), SetTimer("end", now + 0.2)]
            case TimerFired():
                return [Stop("ended")]
        return []

    def waits(event: Event, now: float) -> list[Effect]:
        gone = isinstance(event, PeersChanged) and a.name not in event.present
        return [Stop([e.body for e in toys[1].events if isinstance(e, Received)])] if gone else []

    toys = [Toy(waits), Toy(waits)]

    async def scene(tasks: TaskGroup) -> None:
        async def jammed() -> None:
            async with a.transport.open() as inbox:
                a.node = Node(
                    machine=Toy(on), mailroom=a.mailroom, transport=way, worker=InlineWorker(list),
                    neighbours=frozenset({slow.name, quick.name}), note=lambda note, now: a.notes.append(note),
                    limits=Limits(heartbeat=0.05, patience=30.0, flush=0.5, linger=0.1, outbox=8),
                )  # fmt: skip
                a.result = await a.node.run(inbox)

        tasks.start_soon(jammed)
        brief = Limits(heartbeat=0.05, patience=2.0, grace=0.2, linger=0.2)
        tasks.start_soon(slow.run, toys[0], [a], brief)
        tasks.start_soon(quick.run, toys[1], [a], brief)

    play(scene)
    assert a.result == "ended"
    assert a.node.tally.congested >= 12
    assert {note.data["to"] for note in a.noted("congested")} == {slow.name}
    assert everybody[2].result == [b"hello"]


# --- silence and end -----------------------------------------------------------------------------------------------


def waiter(whom: Peer) -> Toy:
    """Stops when `whom` has gone, with those who are left."""

    def on(event: Event, now: float) -> list[Effect]:
        gone = isinstance(event, PeersChanged) and whom.name not in event.present
        return [Stop(event.present)] if gone else []

    return Toy(on)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(heartbeat=0.05, patience=1000.0, grace=0.2, linger=0.1),
        Limits(heartbeat=0.05, patience=1.0, grace=1.0, linger=0.1),
    ],
    ids=["its connection breaks", "it falls silent"],
)
def test_a_neighbour_that_dies_without_a_word_is_noticed(limits: Limits) -> None:
    a, b, dying = peers(3)
    for survivor in (a, b):
        if limits.grace == limits.patience:
            survivor.transport.lose = lambda peer: None  # no hint from the transport

    async def scene(tasks: TaskGroup) -> None:
        death = anyio.CancelScope()

        async def mortal() -> None:
            with death:
                await dying.run(Toy(lambda event, now: []), [a, b])

        toys = [waiter(dying), waiter(dying)]
        tasks.start_soon(mortal)
        tasks.start_soon(a.run, toys[0], [b, dying], limits)
        tasks.start_soon(b.run, toys[1], [a, dying], limits)
        await until(lambda: all(toy.events for toy in toys))
        death.cancel()

    play(scene)
    assert {a.result, b.result} <= {frozenset({a.name}), frozenset({b.name}), frozenset()}
    assert any(dying.name in note.data["peers"] for note in [*a.noted("silent"), *b.noted("silent")])


def test_goodbyes_end_the_run_without_waiting_for_any_limit() -> None:
    """flush and linger are far beyond what the scene may take."""
    everybody = peers(3)
    limits = Limits(heartbeat=500.0, patience=1000.0, flush=500.0, linger=500.0)

    async def scene(tasks: TaskGroup) -> None:
        greet(everybody, tasks, limits)

    play(scene)
    assert all(len(one.result) == 2 for one in everybody)
    assert not any(one.noted("silent") for one in everybody)


def test_one_that_said_goodbye_is_gone_for_the_others_machines() -> None:
    a, b = peers(2)
    toy = waiter(b)

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, toy, [b])
        tasks.start_soon(b.run, Toy(lambda event, now: [Send(a.name, b"last words"), Stop()]), [a])

    play(scene)
    assert toy.events[1:] == [Received(b.name, b"last words"), PeersChanged(frozenset())]
    assert a.result == frozenset()


def test_the_end_of_one_that_is_no_neighbour_means_nothing() -> None:
    """In a line of three the ends hear from the transport, not from each other."""
    left, middle, right = peers(3)

    def stays(event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [SetTimer("end", now + 0.5)]
            case TimerFired():
                return [Stop("stayed")]
        return []

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(left.run, Toy(lambda event, now: [Stop("left")]), [middle], Limits(heartbeat=0.05, linger=0.0))
        tasks.start_soon(middle.run, Toy(stays), [left, right])
        tasks.start_soon(right.run, Toy(stays), [middle])

    play(scene)
    assert [p.result for p in (left, middle, right)] == ["left", "stayed", "stayed"]
