"""Nodes behind cover traffic, over memory: frames look alike, what was said arrives, and dummies go no further."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.abc import TaskGroup
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.crypto.frame import HELLO_BYTES, frame_size, read
from veilmesh.peer.cover import Cover
from veilmesh.peer.machine import Effect, Event, PeerId, Received, Send, SetTimer, Started, Stop, TimerFired
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.transports.base import Arrival, Frame
from veilmesh.peer.transports.memory import Memory, MemoryTransport
from veilmesh.peer.worker import InlineWorker

RUN = bytes(16)
COVER = Cover(pace=0.02, octets=512)
CALM = Limits(start=30.0, heartbeat=0.05, patience=30.0, grace=30.0, flush=30.0, linger=1000.0, settle=0.0)


@dataclass
class Talker:
    """Says its bodies to everybody at once, and stops when it has heard as many from each, and some time has passed."""

    bodies: list[bytes]
    expected: int
    heard: list[tuple[PeerId, bytes]] = field(default_factory=list)
    late: bool = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(neighbours):
                said: list[Effect] = [Send(to, body) for body in self.bodies for to in sorted(neighbours)]
                return [*said, SetTimer("over", now + 0.3)]
            case Received(sender, body):
                self.heard.append((sender, body))
            case TimerFired():
                self.late = True
        return [Stop(None)] if self.late and len(self.heard) >= self.expected else []


class Peer:
    """One peer, everything around its node, and every frame that left it."""

    def __init__(self, number: int, kind: Memory) -> None:
        self.identity = Identity.from_seed(bytes([number + 1]) * 32)
        self.name = self.identity.peer
        key = X25519PrivateKey.generate()
        self.mailroom = Mailroom(self.identity, key, RUN, kinds=frozenset(Kind))
        self.transport: MemoryTransport = kind.make(self.identity)
        self.card = Card.issue(self.identity, key.public_key().public_bytes_raw(), RUN, self.transport.address)
        self.left: list[tuple[PeerId, bytes]] = []
        self.node: Node | None = None

    def know(self, *others: "Peer") -> None:
        for other in others:
            self.mailroom.admit(other.card)
        self.transport.introduce({o.name: o.transport.address for o in others})

    async def run(self, machine: Talker, near: list["Peer"], far: list["Peer"], cover: Cover | None = COVER) -> None:
        async with self.transport.open() as inbox:
            send = self.transport.send

            async def watched(to: PeerId, frame: bytes) -> None:
                self.left.append((to, frame))
                await send(to, frame)

            self.transport.send = watched  # type: ignore[method-assign]  # what passes, as a tap at the way out sees it
            self.node = Node(
                machine=machine, mailroom=self.mailroom, transport=self.transport, worker=InlineWorker(list),
                neighbours=frozenset(p.name for p in near), note=lambda note, now: None, limits=CALM,
                cover=cover, decoys=frozenset(p.name for p in far),
            )  # fmt: skip
            await self.node.run(inbox)


def three() -> list[Peer]:
    kind = Memory()
    found = [Peer(n, kind) for n in range(3)]
    for one in found:
        one.know(*(other for other in found if other is not one))
    return found


def play(scene: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                await scene(tasks)

    anyio.run(patiently, backend="trio")


BODIES = [b"short", bytes(2000), b"", b"last"]


def test_everything_said_behind_cover_arrives_in_order_and_all_frames_look_alike() -> None:
    """A line a - b - c; a and c are no neighbours, and are said as much to as if they were."""
    a, b, c = three()
    ends, middle = [Talker(BODIES, len(BODIES)) for _ in "ac"], Talker(BODIES, 2 * len(BODIES))

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, ends[0], [b], [c])
        tasks.start_soon(b.run, middle, [a, c], [])
        tasks.start_soon(c.run, ends[1], [b], [a])

    play(scene)
    assert [body for _, body in ends[0].heard] == [body for _, body in ends[1].heard] == BODIES
    assert {sender for sender, _ in ends[0].heard} == {b.name}
    for sender in (a.name, c.name):
        assert [body for who, body in middle.heard if who == sender] == BODIES
    frames = [frame for peer in (a, b, c) for _, frame in peer.left]
    assert {read(frame).kind for frame in frames} == {Kind.COVER}
    usual = frame_size(COVER.octets, with_hello=False)
    assert {len(frame) for frame in frames} <= {usual, usual + HELLO_BYTES}
    assert Counter(to for to, _ in a.left).keys() == {b.name, c.name}
    for peer in (a, b, c):
        assert peer.node is not None
        tally = peer.node.tally
        assert not tally.refusals
        assert 0 < tally.idle_slots < tally.slots
        assert tally.slots == len(peer.left)


def test_a_decoy_that_speaks_is_heard_by_nobody() -> None:
    a, b, c = three()
    machine, other = Talker([b"x"], 1), Talker([b"x"], 1)

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, machine, [b], [c])
        tasks.start_soon(b.run, other, [a], [c])
        # c takes a for a neighbour, says what it likes, and is let down
        async with c.transport.open():
            for kind in (Kind.DATA, Kind.PRESENCE, Kind.ASKING):
                await c.transport.send(a.name, c.mailroom.seal(a.name, kind, b"\x00"))
            for to in (a, b):
                await c.transport.send(to.name, c.mailroom.seal(to.name, Kind.GOODBYE, b""))
            await anyio.sleep(1.0)

    play(scene)
    assert machine.heard == [(b.name, b"x")]
    assert a.node is not None
    assert not a.node.tally.refusals


@pytest.mark.parametrize("slot", [b"\x01\x00", b"\x06" + bytes(16), b"\x01" + b"\xff" * 40])
def test_a_neighbour_whose_slots_are_no_slots_is_refused_and_counted(slot: bytes) -> None:
    a, b, _ = three()
    machine = Talker([], 1)

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, machine, [b], [])
        async with b.transport.open() as inbox:
            tasks.start_soon(_drain, b, inbox)
            while not machine.heard:
                await b.transport.send(a.name, b.mailroom.seal(a.name, Kind.PRESENCE, b"\x01"))
                await b.transport.send(a.name, b.mailroom.seal(a.name, Kind.COVER, slot))
                if any(read(frame).ack != bytes(8) for _, frame in a.left):
                    await b.transport.send(a.name, b.mailroom.seal(a.name, Kind.DATA, b"y"))
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()

    play(scene)
    assert machine.heard[0] == (b.name, b"y")
    assert a.node is not None
    assert bool(a.node.tally.refusals) == (slot[0] != Kind.COVER)


async def _drain(peer: Peer, inbox: AsyncIterator[Arrival]) -> None:
    async for arrival in inbox:
        if isinstance(arrival, Frame):
            peer.mailroom.open(arrival.data)


def test_without_cover_a_slot_is_nothing_to_a_node() -> None:
    a, b, _ = three()
    machine, other = Talker([b"x"], 1), Talker([b"x"], 1)

    async def scene(tasks: TaskGroup) -> None:
        tasks.start_soon(a.run, machine, [b], [], None)
        tasks.start_soon(b.run, other, [a], [], COVER)

        with anyio.move_on_after(1.0):
            await anyio.sleep_forever()
        tasks.cancel_scope.cancel()

    play(scene)
    assert machine.heard == []
