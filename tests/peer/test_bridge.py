"""A bridge: a foot on libp2p and one at a broker. What it joins, what it carries for others, and what it refuses to."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from brokers import TestBroker, broker, needs_mosquitto
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.envelope import Card, Mailroom
from veilmesh.crypto.frame import TAG_BYTES, read
from veilmesh.crypto.identity import Identity, peer_id, public_key
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Frame, Gone, Traffic, Transport
from veilmesh.peer.transports.bridge import BridgeTransport
from veilmesh.peer.transports.bridge_address import joined, part, parts
from veilmesh.peer.transports.bridge_foot import Foot
from veilmesh.peer.transports.bridge_forward import WAITING_FRAMES, Forwards
from veilmesh.peer.transports.bridge_merge import Merged
from veilmesh.peer.transports.bridge_thread import Elsewhere
from veilmesh.peer.transports.memory import Exchange, MemoryTransport

PATIENCE = 60.0
RUN = bytes(16)
L, B, M = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))  # on libp2p, on both, at the broker


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            await scene()

    anyio.run(patiently, backend="trio")


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[TestBroker]:
    with broker(tmp_path) as made:
        yield made


def made(who: Identity, name: str, place: str) -> Transport:
    """A member's transport; that of the broker runs in a thread, where its event loop is another than the tests'."""
    if name == "libp2p":
        return Foot(TRANSPORTS.build("libp2p").make(who), "libp2p")
    at = {"broker": place, "chunk": 4096}
    if name == "mqtt":
        return Foot(Elsewhere(TRANSPORTS.build("mqtt", at).make(who)), "mqtt")
    return TRANSPORTS.build("bridge", {"mqtt": at}).make(who)


@dataclass
class Peer:
    """One open member."""

    who: Identity
    transport: Transport
    inbox: AsyncIterator[Arrival]
    mail: Mailroom

    async def frame(self) -> bytes:
        while True:
            arrival = await anext(self.inbox)
            if isinstance(arrival, Frame):
                return arrival.data

    async def gone(self) -> PeerId:
        while True:
            arrival = await anext(self.inbox)
            if isinstance(arrival, Gone):
                return arrival.peer


def mailrooms(*names: Identity) -> list[Mailroom]:
    """Of members that know each other."""
    keys = [X25519PrivateKey.generate() for _ in names]
    rooms = [Mailroom(who, key, RUN) for who, key in zip(names, keys, strict=True)]
    for who, key in zip(names, keys, strict=True):
        card = Card.issue(who, key.public_key().public_bytes_raw(), RUN, "")
        for room in rooms:
            if room.me != who.peer:
                room.admit(card)
    return rooms


@asynccontextmanager
async def three(place: str) -> AsyncIterator[tuple[Peer, BridgeTransport, Peer, Peer]]:
    """L, the bridge, itself as a peer, and M, all introduced to each other."""
    near, between, beyond = made(L, "libp2p", place), made(B, "bridge", place), made(M, "mqtt", place)
    assert isinstance(between, BridgeTransport)
    rooms = mailrooms(L, B, M)
    async with near.open() as at_l, between.open() as at_b, beyond.open() as at_m:
        addresses = {L.peer: near.address, B.peer: between.address, M.peer: beyond.address}
        for transport in (near, between, beyond):
            transport.introduce(addresses)
        yield Peer(L, near, at_l, rooms[0]), between, Peer(B, between, at_b, rooms[1]), Peer(M, beyond, at_m, rooms[2])


async def both_ways(one: Peer, other: Peer, frames: list[bytes]) -> None:
    """Every frame goes from each to the other, and arrives once."""
    found: dict[PeerId, list[bytes]] = {}

    async def receive(peer: Peer) -> None:
        found[peer.who.peer] = [await peer.frame() for _ in frames]

    async def say(peer: Peer, to: Peer) -> None:
        for frame in frames:
            await peer.transport.send(to.who.peer, frame)

    async with anyio.create_task_group() as tasks:
        for peer, to in ((one, other), (other, one)):
            tasks.start_soon(receive, peer)
            tasks.start_soon(say, peer, to)
    assert sorted(found[one.who.peer]) == sorted(found[other.who.peer]) == sorted(frames)


@needs_mosquitto
def test_each_side_speaks_with_the_bridge(relay: TestBroker) -> None:
    frames = [b"%d" % n + bytes(n * 997 % 30_000) for n in range(60)]

    async def scene() -> None:
        async with three(relay.place) as (near, _, bridge, beyond):
            await both_ways(near, bridge, frames)
            await both_ways(beyond, bridge, frames)
            heard = near.transport.traffic.sent + beyond.transport.traffic.sent
            assert bridge.transport.traffic.received >= 2 * sum(map(len, frames))
            assert bridge.transport.traffic.received == pytest.approx(heard, rel=0.2)
            for peer in (near, bridge, beyond):
                assert peer.transport.traffic.lost_frames == peer.transport.traffic.dropped_frames == 0

    run(scene)


@needs_mosquitto
def test_its_address_has_a_part_for_each_and_its_protections_say_whose_they_are(relay: TestBroker) -> None:
    async def scene() -> None:
        async with three(relay.place) as (_, _, bridge, _):
            known = parts(B.peer, bridge.transport.address)
            assert known["libp2p"].startswith("/ip4/")
            assert known["mqtt"].startswith(f"mqtt://{relay.place}/")
            said = bridge.transport.protections
            assert (said["channel"], said["mqtt channel"]) == ("noise", "none")

    run(scene)


@needs_mosquitto
def test_those_without_a_transport_in_common_speak_through_it_and_it_reads_nothing(relay: TestBroker) -> None:
    said = [b"from one side", b"to the other", bytes(100_000)]

    async def scene() -> None:
        async with three(relay.place) as (near, between, bridge, beyond):
            async with anyio.create_task_group() as tasks:
                kept: list[bytes] = []
                tasks.start_soon(read_all, bridge.inbox, kept)
                for body in said:
                    await near.transport.send(M.peer, near.mail.seal(M.peer, 1, body))
                    assert (opened := beyond.mail.open(await beyond.frame())).body == body
                    assert opened.sender == L.peer
                    await beyond.transport.send(L.peer, beyond.mail.seal(L.peer, 1, body))
                    assert near.mail.open(await near.frame()).body == body
                tasks.cancel_scope.cancel()
            assert kept == []
            assert between.forwarded == 2 * len(said)

    run(scene)


async def read_all(inbox: AsyncIterator[Arrival], into: list[bytes]) -> None:
    async for arrival in inbox:
        if isinstance(arrival, Frame):
            into.append(arrival.data)


@needs_mosquitto
def test_both_sides_notice_that_it_has_closed(relay: TestBroker) -> None:
    async def scene() -> None:
        near, beyond = made(L, "libp2p", relay.place), made(M, "mqtt", relay.place)
        async with near.open() as at_l, beyond.open() as at_m:
            async with (between := made(B, "bridge", relay.place)).open() as at_b:
                for transport in (near, beyond):
                    transport.introduce({B.peer: between.address})
                between.introduce({L.peer: near.address, M.peer: beyond.address})
                room = mailrooms(L, B, M)
                for transport in (near, beyond):
                    await transport.send(B.peer, b"here")
                    assert await Peer(B, between, at_b, room[1]).frame() == b"here"
            assert await Peer(L, near, at_l, room[0]).gone() == B.peer
            assert await Peer(M, beyond, at_m, room[2]).gone() == B.peer

    run(scene)


@needs_mosquitto
def test_it_notices_on_both_sides_who_has_closed(relay: TestBroker) -> None:
    async def scene() -> None:
        async with (between := made(B, "bridge", relay.place)).open() as at_b:
            bridge = Peer(B, between, at_b, mailrooms(B)[0])
            for who, name in ((L, "libp2p"), (M, "mqtt")):
                async with (other := made(who, name, relay.place)).open():
                    other.introduce({B.peer: between.address})
                    between.introduce({who.peer: other.address})
                    await other.send(B.peer, b"here")
                    assert await bridge.frame() == b"here"
                assert await bridge.gone() == who.peer

    run(scene)


@needs_mosquitto
def test_a_broker_killed_under_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    frames = [b"%d" % n + bytes(n * 997 % 50_000) for n in range(80)]

    async def scene() -> None:
        async with three(relay.place) as (near, _, bridge, beyond):
            for other in (beyond, near):  # the other side goes on, and what comes after is whole again
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(both_ways, bridge, other, frames)
                    await anyio.sleep(0.05)
                    await anyio.to_thread.run_sync(lambda: relay.stop(at_once=True))
                    await anyio.sleep(0.1)
                    await anyio.to_thread.run_sync(relay.start)
            with anyio.move_on_after(0.5) as quiet:
                raise AssertionError(f"{len(await bridge.frame())} bytes arrived twice")
            assert quiet.cancelled_caught

    with broker(tmp_path, keeps=False) as relay:
        run(scene)


def test_without_a_broker_it_does_not_open_and_leaves_no_thread() -> None:
    async def scene() -> None:
        kind = TRANSPORTS.build("bridge", {"mqtt": {"broker": "127.0.0.1:1"}})
        with pytest.raises(BadInput, match="127.0.0.1:1"):
            async with kind.make(B).open():
                pass

    run(scene)


def test_opening_it_may_be_cancelled() -> None:
    """Whatever answers at that port is no broker, and says nothing."""

    async def scene() -> None:
        silent = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = silent.extra_attributes[anyio.abc.SocketAttribute.local_port]()
        kind = TRANSPORTS.build("bridge", {"mqtt": {"broker": f"127.0.0.1:{port}"}})
        async with silent:
            with anyio.move_on_after(0.3) as late:
                async with kind.make(B).open():
                    raise AssertionError("it opened")
            assert late.cancelled_caught

    run(scene)


@needs_mosquitto
def test_a_send_may_be_cancelled_and_others_go_on(relay: TestBroker) -> None:
    """One that waits for a peer that has never been there."""
    absent = Identity.from_seed(bytes([8]) * 32).peer

    async def scene() -> None:
        async with three(relay.place) as (near, _, bridge, beyond):
            known = {L.peer: near.transport.address, M.peer: beyond.transport.address}
            bridge.transport.introduce({**known, absent: f"mqtt://{relay.place}/veilmesh/{absent}"})
            with anyio.move_on_after(0.2) as late:
                await bridge.transport.send(absent, b"nobody")
            assert late.cancelled_caught
            await both_ways(beyond, bridge, [b"others"])

    run(scene)


def test_a_transport_that_ends_by_itself_in_its_thread_ends_its_user() -> None:
    class Ending(MemoryTransport):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
            async with super().open() as inbox:
                self._inbox.close()
                yield inbox

    async def waiting() -> None:
        async with Elsewhere(Ending(B.peer, Exchange())).open() as inbox:
            await anext(inbox)

    async def scene() -> None:
        with pytest.raises(LocalError, match="ended by itself"):
            await waiting()

    run(scene)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"mqtt": {"brokre": "127.0.0.1:1"}}, "brokre"),
        ({"libp2p": {"port": 70_000}}, "port"),
        ({"libp2p": 3}, "libp2p"),
        ({"broker": "127.0.0.1:1"}, "broker"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        TRANSPORTS.build("bridge", options)


# --- addresses -------------------------------------------------------------------------------------------------------


def test_everybody_takes_its_part_of_an_address() -> None:
    there, here = "/ip4/127.0.0.1/tcp/4001", "mqtts://127.0.0.1:8883/veilmesh/x"
    assert part(B.peer, joined(there, here), "mqtt") == here
    assert part(B.peer, joined(here, there), "libp2p") == there
    assert part(B.peer, there, "mqtt") is None


@pytest.mark.parametrize("address", ["", "memory:x", "/ip4/127.0.0.1/tcp/1 /ip4/127.0.0.1/tcp/2", "/a  mqtt://b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(BadInput, match="no address"):
        parts(B.peer, address)


# --- what is merged, and what is carried -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_what_arrives_by_several_ways_arrives_whoever_is_slow(seed: int) -> None:
    """In whatever order the ways and their reader come to their turns."""
    rng, ways, each = random.Random(seed), 3, 40

    async def pause() -> None:
        for _ in range(rng.choice((0, 0, 1, 2, 5))):
            await anyio.lowlevel.checkpoint()

    async def arriving(way: int) -> AsyncIterator[Arrival]:
        for n in range(each):
            await pause()
            yield Frame(b"%d %d" % (way, n))

    async def ours(arrival: Arrival) -> bool:
        await pause()
        return not isinstance(arrival, Frame) or not arrival.data.endswith(b"7")

    async def scene() -> None:
        merged, found = Merged(), []
        wanted = [b"%d %d" % (way, n) for way in range(ways) for n in range(each) if n % 10 != 7]
        async with anyio.create_task_group() as tasks:
            for way in range(ways):
                tasks.start_soon(merged.pump, arriving(way), ours)
            while len(found) < len(wanted):
                arrival = await anext(merged)
                assert isinstance(arrival, Frame)
                found.append(arrival.data)
                await pause()
            merged.close()
        assert sorted(found) == sorted(wanted)
        assert [arrival async for arrival in merged] == []

    run(scene)


def test_it_asks_for_no_more_than_is_read() -> None:
    taken = 0

    async def endless() -> AsyncIterator[Arrival]:
        nonlocal taken
        while True:
            taken += 1
            await anyio.lowlevel.checkpoint()
            yield Frame(b"")

    async def ours(arrival: Arrival) -> bool:
        return True

    async def scene() -> None:
        merged = Merged()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(merged.pump, endless(), ours)
            tasks.start_soon(merged.pump, endless(), ours)
            await anyio.wait_all_tasks_blocked()
            assert taken == 0
            await anext(merged)
            await anyio.wait_all_tasks_blocked()
            assert taken <= 2
            tasks.cancel_scope.cancel()

    run(scene)


@asynccontextmanager
async def forwarding(
    send: Callable[[PeerId, bytes], Awaitable[None]], traffic: Traffic | None = None
) -> AsyncIterator[Forwards]:
    forwards = Forwards(B.peer, traffic or Traffic(), send)
    forwards.know({L.peer: "libp2p", M.peer: "mqtt"})
    async with anyio.create_task_group() as tasks:
        forwards.start(tasks)
        yield forwards
        tasks.cancel_scope.cancel()


def test_it_carries_only_what_a_known_member_has_signed_for_one_on_the_other_side() -> None:
    stranger = Identity.from_seed(bytes([9]) * 32)
    near, own, beyond, other = mailrooms(L, B, M, stranger)
    carried: list[tuple[PeerId, bytes]] = []

    async def send(to: PeerId, frame: bytes) -> None:
        carried.append((to, frame))

    async def scene() -> None:
        async with forwarding(send) as forwards:
            whole = near.seal(M.peer, 1, bytes(300_000))
            assert await forwards.takes(whole, "libp2p")
            refused = {
                "not on the side its sender is on": (near.seal(M.peer, 1, b"x"), "mqtt"),
                "for the bridge itself": (near.seal(B.peer, 1, b"x"), "libp2p"),
                "from a stranger": (other.seal(M.peer, 1, b"x"), "libp2p"),
                "for a stranger": (near.seal(stranger.peer, 1, b"x"), "libp2p"),
                "from the bridge itself, played back": (own.seal(M.peer, 1, b"x"), "libp2p"),
                "altered": (whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], "libp2p"),
                "no frame": (b"\x00" * 500, "libp2p"),
                "nothing": (b"", "libp2p"),
            }
            for why, (frame, side) in refused.items():
                assert not await forwards.takes(frame, side), why
            await forwards.drained()
        assert carried == [(M.peer, whole)]

    run(scene)


def test_of_what_it_carries_it_reads_who_to_whom_and_how_long_and_no_more() -> None:
    """As any relay does. What it changes is refused, and it can say nothing in another's name."""
    near, own, beyond = mailrooms(L, B, M)
    frame = near.seal(M.peer, 1, secret := b"an update" * 100)
    header = read(frame)
    assert (peer_id(header.sender), peer_id(header.receiver)) == (L.peer, M.peer)
    assert header.ciphertext == len(secret) + TAG_BYTES
    assert secret[:8] not in frame
    with pytest.raises(RemoteError, match="misdirected"):
        own.open(frame)
    for place in range(0, len(frame), 31):
        with pytest.raises(RemoteError):
            beyond.open(frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :])
    forged = own.seal(M.peer, 1, b"in its name").replace(public_key(B.peer), public_key(L.peer))
    with pytest.raises(RemoteError, match="bad-signature"):
        beyond.open(forged)
    assert beyond.open(frame).body == secret


def test_one_that_floods_loses_its_own_frames_and_a_slow_receiver_holds_up_nobody() -> None:
    other = Identity.from_seed(bytes([7]) * 32)
    near, beyond, quiet = mailrooms(L, M, other)
    arrived: list[PeerId] = []

    async def scene() -> None:
        held, traffic = anyio.Event(), Traffic()

        async def send(to: PeerId, frame: bytes) -> None:
            if to == M.peer:
                await held.wait()
            arrived.append(to)

        async with forwarding(send, traffic) as forwards:
            forwards.know({L.peer: "libp2p", other.peer: "libp2p", M.peer: "mqtt"})
            for _ in range(WAITING_FRAMES):
                assert await forwards.takes(near.seal(M.peer, 1, b"flood"), "libp2p")
            dropped = traffic.dropped_frames
            assert dropped > WAITING_FRAMES // 2
            assert await forwards.takes(quiet.seal(M.peer, 1, b"mine"), "libp2p")
            assert traffic.dropped_frames == dropped
            assert await forwards.takes(beyond.seal(L.peer, 1, b"the other way"), "mqtt")
            await anyio.wait_all_tasks_blocked()
            assert arrived == [L.peer]
            held.set()
            await forwards.drained()
            assert len(arrived) == 1 + WAITING_FRAMES - dropped + 1

    run(scene)
