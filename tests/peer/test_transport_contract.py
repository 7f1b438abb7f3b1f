"""What every registered transport promises (peer/transports/base.py), run over all of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Literal

import anyio
import pytest
from brokers import broker, needs_embedded, needs_mosquitto

from veilmesh.core import LocalError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import (
    INBOX_FRAMES,
    INBOX_SHARE,
    MAX_FRAME,
    TRANSPORTS,
    Arrival,
    Frame,
    Transport,
    TransportKind,
)
from veilmesh.peer.transports.bridge import BridgeTransport
from veilmesh.peer.transports.bridge_thread import Elsewhere

Peer = tuple[PeerId, Transport, AsyncIterator[Arrival]]
PATIENCE = 30.0


KINDS = [
    *(name for name in TRANSPORTS.names() if name not in ("mqtt", "bridge")),
    pytest.param("mqtt 5, mosquitto", marks=needs_mosquitto),
    pytest.param("mqtt 3.1.1, mosquitto", marks=needs_mosquitto),
    pytest.param("mqtt 3.1.1, amqtt", marks=needs_embedded),
    pytest.param("bridge by libp2p", marks=needs_mosquitto),
    pytest.param("bridge by mqtt", marks=needs_mosquitto),
]


class ByMqtt:
    """Bridges that lack the foot they would prefer: what they say goes through a broker, from another thread."""

    backend: ClassVar[Literal["asyncio", "trio"]] = "trio"

    def __init__(self, kind: TransportKind) -> None:
        self._kind = kind

    def prepare(self) -> None:
        self._kind.prepare()

    def make(self, identity: Identity) -> Transport:
        return BridgeTransport(identity.peer, {"mqtt": Elsewhere(self._kind.make(identity))})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TransportKind]:
    name, _, rest = request.param.partition(" ")
    if name == "bridge":
        with broker(tmp_path) as relay:
            at = {"broker": relay.place}
            yield TRANSPORTS.build(name, {"mqtt": at}) if rest == "by libp2p" else ByMqtt(TRANSPORTS.build("mqtt", at))
        return
    if name != "mqtt":
        yield TRANSPORTS.build(name)
        return
    protocol, _, whose = rest.partition(", ")
    with broker(tmp_path, embedded=whose == "amqtt") as relay:
        yield TRANSPORTS.build(name, {"broker": relay.place, "protocol": protocol})


def run(kind: TransportKind, scene: Callable[[TransportKind], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            await scene(kind)

    anyio.run(patiently, backend=kind.backend)


@asynccontextmanager
async def two(kind: TransportKind) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two open peers that know of each other."""
    names = [Identity.from_seed(bytes([n]) * 32) for n in (1, 2)]
    a, b = (kind.make(name) for name in names)
    async with a.open() as at_a, b.open() as at_b:
        addresses = {names[0].peer: a.address, names[1].peer: b.address}
        a.introduce(addresses)
        b.introduce(addresses)
        yield (names[0].peer, a, at_a), (names[1].peer, b, at_b)


async def frames(inbox: AsyncIterator[Arrival], count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        arrival = await anext(inbox)
        if isinstance(arrival, Frame):
            found.append(arrival.data)
    return found


def test_frames_go_both_ways(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((a, at_a, to_a), (b, at_b, to_b)):
            await at_a.send(b, b"there")
            assert await frames(to_b, 1) == [b"there"]
            await at_b.send(a, b"and back")
            assert await frames(to_a, 1) == [b"and back"]

    run(kind, scene)


def test_all_of_many_frames_arrive(kind: TransportKind) -> None:
    sent = [bytes([n % 256]) * (n * 37 % 5000) for n in range(250)]

    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((_, at_a, _), (b, _, to_b)), anyio.create_task_group() as sending:
            for frame in sent:
                sending.start_soon(at_a.send, b, frame)
            assert sorted(await frames(to_b, len(sent))) == sorted(sent)

    run(kind, scene)


def test_both_may_begin_at_once(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((a, at_a, to_a), (b, at_b, to_b)), anyio.create_task_group() as sending:
            for n in range(4):
                sending.start_soon(at_a.send, b, b"%d" % n)
                sending.start_soon(at_b.send, a, b"%d" % n)
            assert sorted(await frames(to_b, 4)) == sorted(await frames(to_a, 4)) == [b"0", b"1", b"2", b"3"]

    run(kind, scene)


def test_a_large_frame_arrives_whole_and_is_counted(kind: TransportKind) -> None:
    large = bytes(range(256)) * (5 << 12)

    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((_, at_a, _), (b, at_b, to_b)), anyio.create_task_group() as sending:
            sending.start_soon(at_a.send, b, large)
            assert await frames(to_b, 1) == [large]
            assert at_a.traffic.sent >= len(large)
            assert at_b.traffic.received >= len(large)

    run(kind, scene)


def test_a_frame_to_an_absent_peer_is_lost_without_an_error(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        stranger = Identity.generate().peer
        async with two(kind) as ((_, at_a, _), (b, _, to_b)):
            await at_a.send(stranger, b"never introduced")
            await at_a.send(b, b"present")
            assert await frames(to_b, 1) == [b"present"]
            assert at_a.traffic.lost_frames == 1
        await at_a.send(b, b"both closed")
        assert at_a.traffic.lost_frames == 2

    run(kind, scene)


def test_a_peer_that_has_closed_is_absent_and_one_that_is_back_is_not(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        one, other = Identity.from_seed(bytes([1]) * 32), Identity.from_seed(bytes([2]) * 32)
        a = kind.make(one)
        async with a.open():
            async with (b := kind.make(other)).open() as to_b:
                a.introduce({other.peer: b.address})
                await a.send(other.peer, b"first")
                assert await frames(to_b, 1) == [b"first"]
            await a.send(other.peer, b"lost")
            async with (again := kind.make(other)).open() as to_again:
                a.introduce({other.peer: again.address})
                await a.send(other.peer, b"second")
                assert await frames(to_again, 1) == [b"second"]

    run(kind, scene)


def test_a_full_inbox_drops_and_counts(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((_, at_a, _), (b, at_b, to_b)):
            room = INBOX_FRAMES // INBOX_SHARE
            for n in range(room + 100):
                await at_a.send(b, b"%d" % n)
            while not at_b.traffic.dropped_frames >= 100:  # noqa: ASYNC110  # counters have no event
                await anyio.sleep(0.01)
            assert len(await frames(to_b, room)) == room
            await at_a.send(b, b"room again")
            assert await frames(to_b, 1) == [b"room again"]
            assert at_b.traffic.dropped_frames == 100

    run(kind, scene)


def test_a_frame_over_the_cap_is_the_senders_own_error(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with two(kind) as ((_, at_a, _), (b, _, _)):
            with pytest.raises(LocalError, match="at most"):
                await at_a.send(b, bytes(MAX_FRAME + 1))

    run(kind, scene)


def test_what_the_user_of_an_open_transport_raises_comes_out_as_it_is(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        with pytest.raises(LocalError, match="mine"):
            async with kind.make(Identity.generate()).open():
                raise LocalError("mine")

    run(kind, scene)


def test_the_iteration_ends_with_the_context(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with kind.make(Identity.generate()).open() as inbox:
            pass
        assert [arrival async for arrival in inbox] == []

    run(kind, scene)


def test_it_says_what_protects_it(kind: TransportKind) -> None:
    async def scene(kind: TransportKind) -> None:
        async with (transport := kind.make(Identity.generate())).open():
            assert transport.protections["channel"] in {"none", "noise"}

    run(kind, scene)
