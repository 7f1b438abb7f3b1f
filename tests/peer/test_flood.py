"""A neighbour that is in the roster and means ill: floods, large bodies, strangers without end."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup, TaskStatus
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.peer.allowance import Allowance
from veilmesh.peer.machine import Effect, Event, Note, PeerId, Received, Send, SetTimer, Started, Stop, TimerFired
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.transports import libp2p_host
from veilmesh.peer.transports.base import Traffic
from veilmesh.peer.transports.inbox import Inbox
from veilmesh.peer.transports.libp2p import FRAMES, Libp2pTransport
from veilmesh.peer.transports.memory import Exchange, MemoryTransport
from veilmesh.peer.worker import InlineWorker

PATIENCE = 60.0


class Hand:
    """A peer without a node: its frames are made and sent by the test."""

    def __init__(self, exchange: Exchange) -> None:
        self.identity = Identity.generate()
        key = X25519PrivateKey.generate()
        self.mailroom = Mailroom(self.identity, key, bytes(16), kinds=frozenset(Kind))
        self.transport = MemoryTransport(self.identity.peer, exchange)
        public = key.public_key().public_bytes_raw()
        self.card = Card.issue(self.identity, public, bytes(16), self.transport.address)

    @property
    def name(self) -> PeerId:
        return self.identity.peer

    def know(self, *others: "Hand") -> None:
        for other in others:
            self.mailroom.admit(other.card)
        self.transport.introduce({o.name: o.transport.address for o in others})

    async def say(self, to: "Hand", kind: Kind, body: bytes) -> None:
        await self.transport.send(to.name, self.mailroom.seal(to.name, kind, body))


def bodies() -> int:
    """How many bodies this process holds, whoever holds them."""
    gc.collect()
    return sum(type(o) is Received for o in gc.get_objects())


class Slow:
    """A machine that does nothing, and counts what waits for it while it works."""

    def __init__(self, until: Callable[["Slow"], bool]) -> None:
        self.taken: list[PeerId] = []
        self.most_waiting = 0
        self._before = bodies()
        self._until = until

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Received):
            self.taken.append(event.sender)
            if len(self.taken) % 200 == 0:
                self.most_waiting = max(self.most_waiting, bodies() - self._before)
        return [Stop(len(self.taken))] if self._until(self) else []


@asynccontextmanager
async def scene(machine: object, neighbours: int, limits: Limits) -> AsyncIterator[tuple[Hand, list[Hand], Node, list]]:
    """One node, and `neighbours` in the hand that have greeted it."""
    exchange = Exchange()
    me, *others = (Hand(exchange) for _ in range(1 + neighbours))
    notes: list[Note] = []
    me.know(*others)
    with anyio.fail_after(PATIENCE):
        async with me.transport.open() as inbox, anyio.create_task_group() as tasks:
            node = Node(
                machine=machine, mailroom=me.mailroom, transport=me.transport, worker=InlineWorker(list),
                neighbours=frozenset(o.name for o in others), note=lambda note, now: notes.append(note), limits=limits,
            )  # fmt: skip
            tasks.start_soon(node.run, inbox)
            for other in others:
                other.know(me)
                await other.say(me, Kind.PRESENCE, b"\x01")
            yield me, others, node, notes


def play(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio")


BRISK = Limits(start=5.0, heartbeat=0.05, patience=60.0, flush=0.1, linger=0.1, settle=0.01)


@pytest.mark.slow
def test_a_flood_of_valid_bodies_neither_fills_the_memory_nor_drowns_the_others() -> None:
    flood = 4000

    def until(slow: Slow) -> bool:
        return honest in slow.taken

    machine = Slow(until)
    honest = PeerId("")

    async def main() -> None:
        nonlocal honest
        async with scene(machine, 2, BRISK) as (me, [loud, quiet], node, notes):
            honest = quiet.name
            frames = [loud.mailroom.seal(me.name, Kind.DATA, b"x" * 100) for _ in range(flood)]
            for frame in frames:
                await loud.transport.send(me.name, frame)
            await quiet.say(me, Kind.DATA, b"here I am")
        assert node.tally.flooded + me.transport.traffic.dropped_frames > 0
        assert len([n for n in notes if n.kind == "flooded"]) <= 1

    play(main)
    assert machine.taken[-1] == honest
    assert machine.most_waiting <= BRISK.backlog + 10


def test_bodies_that_wait_are_bounded_in_bytes_too_in_both_directions() -> None:
    room = Allowance(things=10, octets=100)
    a, b = PeerId("a"), PeerId("b")
    assert room.take(a, 5000)  # alone, anything may wait
    assert not room.take(a, 1)
    assert room.take(b, 60)  # another's own allowance
    assert not room.take(b, 60)
    room.give_back(a, 5000)
    assert [room.take(a, 9) for _ in range(11)] == [True] * 10 + [False]


def test_a_neighbour_that_reads_nothing_cannot_make_us_keep_what_we_tell_it() -> None:
    body = b"x" * (1 << 20)

    class Talker:
        def handle(self, event: Event, now: float) -> list[Effect]:
            match event:
                case Started(present):
                    return [Send(p, body) for p in present for _ in range(100)] + [SetTimer("end", now + 0.1)]
                case TimerFired():
                    return [Stop()]
            return []

    async def main() -> None:
        limits = Limits(start=5.0, heartbeat=0.05, flush=0.1, linger=0.1, settle=0.01, waiting_bytes=8 << 20)
        async with scene(Talker(), 1, limits) as (_, _, node, _):
            pass
        assert node.tally.congested >= 92

    play(main)


def test_what_a_remote_peer_wrote_cannot_command_a_terminal() -> None:
    class Repeats:
        def handle(self, event: Event, now: float) -> list[Effect]:
            match event:
                case Received(_, b"end"):
                    return [Stop()]
                case Received(_, body):
                    raise RemoteError(Refusal.MISMATCH, body.decode())
            return []

    async def main() -> None:
        async with scene(Repeats(), 1, BRISK) as (me, [other], _, notes):
            await other.say(me, Kind.DATA, b"\x1b[2J\x07\n\rroot# ")
            await other.say(me, Kind.DATA, b"end")
        [note] = [n for n in notes if n.kind == "refused"]
        assert note.data["detail"].isprintable()
        assert "root#" in note.data["detail"]

    play(main)


def test_one_sender_has_a_fourth_of_an_inbox() -> None:
    async def main() -> None:
        traffic = Traffic()
        inbox = Inbox(traffic, frames=40, octets=4000)
        for _ in range(100):
            inbox.offer(b"flood", "loud")
        inbox.offer(b"honest", "quiet")
        assert traffic.dropped_frames == 90
        got = [(await anext(inbox)).data for _ in range(11)]
        assert got == [b"flood"] * 10 + [b"honest"]
        inbox.offer(b"x" * 3000, "loud")  # the first of a sender may be large
        inbox.offer(b"x", "loud")
        inbox.offer(b"x", "quiet")
        assert traffic.dropped_frames == 91
        for _ in range(2):
            await anext(inbox)
        for _ in range(10):
            inbox.offer(b"again", "loud")
        assert traffic.dropped_frames == 91

    play(main)


def test_strangers_together_may_begin_one_longest_frame() -> None:
    """Peer ids cost nothing: a hundred of them could otherwise each have a longest frame begun and never ended."""
    limit, part = 100_000, bytes(60_000)

    async def begin(tasks: TaskGroup, target: Libp2pTransport, identity: Identity) -> Libp2pTransport:
        """Announce a longest frame on a stream to `target`, and send a part of it."""
        one = Libp2pTransport(identity)

        async def stay(*, task_status: TaskStatus[None]) -> None:
            async with one.open():
                one.introduce({me.peer: target.address})
                stream = await libp2p_host.new_stream(one._host, me.peer, target.address, FRAMES)
                await stream.write(limit.to_bytes(4, "big") + part)
                task_status.started()
                await anyio.sleep_forever()

        await tasks.start(stay)
        return one

    me, friend, *strangers = (Identity.generate() for _ in range(4))

    async def main() -> None:
        target = Libp2pTransport(me, max_frame=limit)
        with anyio.fail_after(PATIENCE):
            async with target.open(), anyio.create_task_group() as tasks:
                target.introduce({friend.peer: "/ip4/127.0.0.1/tcp/1"})
                await begin(tasks, target, friend)
                await begin(tasks, target, strangers[0])
                await anyio.sleep(0.3)
                assert target.traffic.refused == 0
                await begin(tasks, target, strangers[1])
                while target.traffic.refused != 1:  # noqa: ASYNC110  # counters have no event
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

    play(main)
