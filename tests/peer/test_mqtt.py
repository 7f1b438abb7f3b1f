"""The MQTT transport through a real broker: restarted, meddling, strict or absent."""

import random
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from brokers import TestBroker, broker, needs_embedded, needs_mosquitto, tls_files
from meddler import copied, meddler

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Found, Frame, Gone
from veilmesh.peer.transports.mqtt import Mqtt
from veilmesh.peer.transports.mqtt_chunks import Chunk
from veilmesh.peer.transports.mqtt_transport import MqttTransport

Peer = tuple[PeerId, MqttTransport, AsyncIterator[Arrival]]
PATIENCE = 60.0
A, B, C = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            await scene()

    anyio.run(patiently, backend="asyncio")


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[TestBroker]:
    with broker(tmp_path) as made:
        yield made


@asynccontextmanager
async def two(place: str, **options: Any) -> AsyncIterator[tuple[Peer, Peer]]:
    a, b = (TRANSPORTS.build("mqtt", {"broker": place, **options}).make(who) for who in (A, B))
    assert isinstance(a, MqttTransport)
    assert isinstance(b, MqttTransport)
    async with a.open() as at_a, b.open() as at_b:
        for one in (a, b):
            one.introduce({A.peer: a.address, B.peer: b.address})
        yield (A.peer, a, at_a), (B.peer, b, at_b)


async def next_frame(inbox: AsyncIterator[Arrival]) -> bytes:
    while True:
        arrival = await anext(inbox)
        if isinstance(arrival, Frame):
            return arrival.data


async def both_ways(pair: tuple[Peer, Peer], frames: list[bytes]) -> None:
    """Every frame goes from each to the other, and arrives once."""
    found: dict[PeerId, list[bytes]] = {}

    async def receive(peer: Peer) -> None:
        found[peer[0]] = [await next_frame(peer[2]) for _ in frames]

    async def say(peer: Peer, to: PeerId) -> None:
        for frame in frames:
            await peer[1].send(to, frame)

    one, other = pair
    async with anyio.create_task_group() as tasks:
        for peer, to in ((one, other), (other, one)):
            tasks.start_soon(receive, peer)
            tasks.start_soon(say, peer, to[0])
    assert sorted(found[one[0]]) == sorted(found[other[0]]) == sorted(frames)
    for _, transport, _ in pair:
        assert transport.traffic.lost_frames == transport.traffic.dropped_frames == 0


async def nothing_more(inbox: AsyncIterator[Arrival]) -> None:
    with anyio.move_on_after(0.5) as quiet:
        frame = await next_frame(inbox)
        raise AssertionError(f"{len(frame)} bytes arrived twice")
    assert quiet.cancelled_caught


@needs_mosquitto
@pytest.mark.parametrize(("keeps", "at_once"), [(True, False), (False, False), (False, True)])
def test_a_broker_that_is_restarted_again_and_again_loses_and_repeats_nothing(
    tmp_path: Path, keeps: bool, at_once: bool
) -> None:
    """Ended as a service is, its disk remembers; without a disk, or killed, it comes back with an empty memory."""
    frames = [b"%d" % n + bytes(n * 997 % 50_000) for n in range(120)]

    async def scene() -> None:
        async with two(relay.place, chunk=16 << 10) as pair:
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(both_ways, pair, frames)
                    await anyio.sleep(0.05)
                    await anyio.to_thread.run_sync(lambda: relay.stop(at_once=at_once))
                    await anyio.sleep(0.1)
                    await anyio.to_thread.run_sync(relay.start)
            assert pair[0][1].connections >= 4
            for _, _, inbox in pair:
                await nothing_more(inbox)

    with broker(tmp_path, keeps=keeps) as relay:
        run(scene)


@pytest.mark.slow
@needs_mosquitto
def test_a_broker_that_drops_repeats_reorders_and_damages_is_counted_and_survived(relay: TestBroker) -> None:
    rng = random.Random(0)
    held: list[bytes] = []

    def fate(packet: bytes) -> list[bytes]:
        what = rng.random()
        if what < 0.1:
            return []
        if what < 0.2:
            return [packet, packet]
        if what < 0.3:
            held.append(packet)
            return []
        if what < 0.4:
            return [packet[:-1] + bytes([packet[-1] ^ 1])]
        late = held[:]
        held.clear()
        return [packet, *late]

    frames = [b"%d" % n + bytes(n * 997 % 20_000) for n in range(60)]

    async def scene() -> None:
        async with meddler(relay.port, fate) as place, two(place, chunk=4 << 10) as pair:
            await both_ways(pair, frames)
            assert sum(peer[1].repeated for peer in pair) > 0
            assert sum(peer[1].traffic.refused for peer in pair) > 0

    run(scene)


@needs_mosquitto
def test_a_broker_that_now_and_then_talks_nonsense_is_left_and_met_again(relay: TestBroker) -> None:
    rng = random.Random(0)
    left = 3

    def fate(packet: bytes) -> list[bytes]:
        nonlocal left
        if left and rng.random() < 0.05:
            left -= 1
            return [bytes([packet[0]]) + b"\x20" + rng.randbytes(32), rng.randbytes(50)]
        return [packet]

    frames = [b"%d" % n + bytes(n * 997 % 20_000) for n in range(60)]

    async def scene() -> None:
        async with meddler(relay.port, fate) as place, two(place, chunk=4 << 10, keepalive=2) as pair:
            await both_ways(pair, frames)
            assert sum(peer[1].connections for peer in pair) > 2

    run(scene)


@needs_mosquitto
def test_what_strangers_and_liars_publish_is_counted_and_harms_nobody(relay: TestBroker) -> None:
    async def scene() -> None:
        import aiomqtt

        async with (
            two(relay.place) as ((a, at_a, _), (b, at_b, to_b)),
            aiomqtt.Client("127.0.0.1", relay.port) as liar,
        ):
            session = bytes.fromhex(at_b.address.partition("session=")[2])
            forged = Chunk(bytes(16), session, 0, 0, 0, 5, 0, 1, b"never").to_bytes()  # an old session of A's
            for topic in (f"veilmesh/to/{b}/nobody", f"veilmesh/to/{b}/{C.peer}", f"veilmesh/presence/{a}"):
                await liar.publish(topic, b"x" * 2000, qos=1)
            await liar.publish(f"veilmesh/to/{b}/{C.peer}", b"", qos=1)
            await at_a.send(b, b"first")
            assert await next_frame(to_b) == b"first"
            await liar.publish(f"veilmesh/to/{b}/{a}", forged, qos=1)
            await at_a.send(b, b"second")
            assert await next_frame(to_b) == b"second"
            while at_b.traffic.refused < 5:  # noqa: ASYNC110  # counters have no event
                await anyio.sleep(0.01)

    run(scene)


_DYING = """
import os, sys, anyio
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.mqtt import Mqtt
async def main():
    transport = Mqtt(broker=sys.argv[1]).make(Identity.from_seed(bytes([2]) * 32))
    async with transport.open():
        print(transport.address, flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""


@needs_mosquitto
def test_a_killed_peer_is_gone_by_its_last_will_and_one_that_ends_by_its_own_word(relay: TestBroker) -> None:
    async def scene() -> None:
        a = Mqtt(broker=relay.place).make(A)
        async with a.open() as at_a:
            process = await anyio.open_process([sys.executable, "-c", _DYING, relay.place])
            try:
                assert process.stdout is not None
                address = (await process.stdout.receive()).decode().strip()
                a.introduce({B.peer: address})
                await a.send(B.peer, b"to be acknowledged")
            finally:
                process.kill()
            assert await anext(at_a) == Gone(B.peer)
            async with (b := Mqtt(broker=relay.place).make(B)).open() as to_b:
                a.introduce({B.peer: b.address})
                await a.send(B.peer, b"back")
                assert await next_frame(to_b) == b"back"
            assert await anext(at_a) == Gone(B.peer)

    run(scene)


@needs_mosquitto
def test_who_is_there_is_found_by_what_the_broker_retains_and_nothing_stays_behind(relay: TestBroker) -> None:
    async def scene() -> None:
        import aiomqtt

        a = Mqtt(broker=relay.place, find=True).make(A)
        async with Mqtt(broker=relay.place).make(B).open(), a.open() as at_a:
            found = await anext(at_a)
            assert isinstance(found, Found)
            assert found.peer == B.peer
            a.introduce({found.peer: found.address})
        async with aiomqtt.Client("127.0.0.1", relay.port) as visitor:
            await visitor.subscribe("veilmesh/#", qos=1)
            with anyio.move_on_after(0.3):
                async for message in visitor.messages:
                    raise AssertionError(f"{message.topic} stayed behind")

    run(scene)


@needs_mosquitto
def test_a_peer_whose_session_is_not_known_is_met_by_its_presence(relay: TestBroker) -> None:
    async def scene() -> None:
        a, b = (Mqtt(broker=relay.place).make(who) for who in (A, B))
        async with a.open(), b.open() as to_b:
            a.introduce({B.peer: b.address.partition("?")[0]})
            await a.send(B.peer, b"hello")
            assert await next_frame(to_b) == b"hello"

    run(scene)


@pytest.mark.slow
@needs_mosquitto
def test_over_tls_with_passwords_and_access_lists(tmp_path: Path) -> None:
    """A broker that holds everybody to its own name: nobody else can speak as A."""
    rules = tmp_path / "acl"
    rules.write_text(
        "pattern write veilmesh/to/+/%u\npattern read veilmesh/to/%u/+\n"
        "pattern write veilmesh/presence/%u\npattern read veilmesh/presence/+\n"
    )
    passwords = tmp_path / "passwords"
    passwords.touch()
    for who in (A, B):
        command = ["mosquitto_passwd", "-b", str(passwords), who.peer, f"secret of {who.peer}"]
        subprocess.run(command, check=True, capture_output=True)
        (tmp_path / who.peer).write_text(f"secret of {who.peer}\n")
    lines = f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\n{tls_files(tmp_path)}"

    def own(place: str, who: Identity, **changes: Any) -> MqttTransport:
        options = {
            "broker": place, "tls": True, "ca": str(tmp_path / "cert.pem"), "username": who.peer,
            "password_file": str(tmp_path / who.peer), **changes,
        }  # fmt: skip
        return Mqtt(**options).make(who)

    async def scene() -> None:
        import aiomqtt

        a, b = own(relay.place, A), own(relay.place, B)
        async with a.open(), b.open() as to_b:
            a.introduce({B.peer: b.address})
            await a.send(B.peer, b"sealed from here to the broker")
            assert await next_frame(to_b) == b"sealed from here to the broker"
            assert a.protections["channel"] == "tls"
            checked = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            of_a = {"username": A.peer, "password": f"secret of {A.peer}", "tls_context": checked}
            async with aiomqtt.Client("127.0.0.1", relay.port, **of_a) as liar:
                await liar.publish(f"veilmesh/to/{B.peer}/{C.peer}", b"in another's name", qos=1)
                await liar.publish(f"veilmesh/to/{B.peer}/{A.peer}", b"in its own", qos=1)
                while not b.traffic.refused:  # noqa: ASYNC110  # counters have no event
                    await anyio.sleep(0.01)
            assert b.traffic.refused == 1
        for wrong in ({"password_file": str(tmp_path / B.peer)}, {"ca": None}, {"tls": False, "ca": None}):
            with pytest.raises(BadInput, match=r"broker at"):
                async with own(relay.place, A, **wrong).open():
                    raise AssertionError(wrong)

    with broker(tmp_path, lines=lines) as relay:
        run(scene)


@needs_embedded
def test_the_embedded_broker_carries_large_frames_and_survives_a_restart(tmp_path: Path) -> None:
    frames = [b"%d" % n + bytes(n << 18) for n in range(12)]

    async def scene() -> None:
        async with two(relay.place, protocol="3.1.1", chunk=256 << 10) as pair:
            await both_ways(pair, frames)
            await anyio.to_thread.run_sync(lambda: relay.stop(at_once=True))
            await anyio.to_thread.run_sync(relay.start)
            await both_ways(pair, frames)

    with broker(tmp_path, embedded=True) as relay:
        run(scene)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"broker": "127.0.0.1:1"}, "No connection to an MQTT broker at 127.0.0.1:1 "),
        ({"broker": "no place"}, "one looks like 127.0.0.1:1883"),
        ({}, "Say where the MQTT broker is"),
        ({"broker": "127.0.0.1:1", "password_file": "/nowhere"}, "cannot be read"),
        ({"broker": "127.0.0.1:1", "ca": "/nowhere", "tls": True}, "transport.ca"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("aiomqtt")

    async def scene() -> None:
        with pytest.raises(BadInput, match=sentence):
            async with Mqtt(**options).make(A).open():
                raise AssertionError(options)

    run(scene)


@asynccontextmanager
async def breaking_off(port: int, times: int) -> AsyncIterator[str]:
    """A broker that takes in whoever comes and breaks off, so many times; and then is the one at `port`."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    broken = 0

    async def serve(client: anyio.abc.SocketStream) -> None:
        nonlocal broken
        async with client:
            if broken < times:
                broken += 1
                await client.receive()
                await client.send(bytes.fromhex("20020000"))  # welcome (MQTT 3.1.1, 3.2)
                return
            async with await anyio.connect_tcp("127.0.0.1", port) as it, anyio.create_task_group() as both:
                both.start_soon(copied, client, it, both.cancel_scope)
                await copied(it, client, both.cancel_scope)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@needs_mosquitto
def test_a_broker_that_breaks_off_at_first_is_tried_again(relay: TestBroker) -> None:
    async def scene() -> None:
        async with breaking_off(relay.port, 2) as place, two(place, protocol="3.1.1") as pair:
            await both_ways(pair, [b"after all"])

    run(scene)


def test_one_that_always_breaks_off_is_a_sentence() -> None:
    pytest.importorskip("aiomqtt")

    async def scene() -> None:
        async with breaking_off(1, 1000) as place:
            with pytest.raises(BadInput, match=f"broker at {place} "):
                async with Mqtt(broker=place, protocol="3.1.1").make(A).open():
                    raise AssertionError(place)

    run(scene)


@pytest.mark.parametrize("prefix", ["", "a//b", "a/+", "#", "x" * 65])
def test_a_prefix_is_plain(prefix: str) -> None:
    with pytest.raises(BadInput):
        TRANSPORTS.build("mqtt", {"prefix": prefix})


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    with pytest.raises(BadInput, match=r"veilmesh\[mqtt\]"):
        Mqtt().prepare()


def test_the_library_is_imported_when_a_peer_opens_and_not_before() -> None:
    code = "import sys, veilmesh.peer.transports.mqtt; assert not {'aiomqtt', 'paho'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
