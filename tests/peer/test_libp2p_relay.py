"""A peer that nobody can dial is reached through a relay, and what the relay may do to those it connects."""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import TaskStatus
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.host.exceptions import StreamFailure
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports import libp2p_circuit, libp2p_host, libp2p_relay, libp2p_talk
from veilmesh.peer.transports.base import Arrival, Found, Frame, Gone
from veilmesh.peer.transports.libp2p import Libp2pTransport
from veilmesh.peer.transports.libp2p_relay import HOP, STOP
from veilmesh.peer.transports.libp2p_services import Reach

ONE, TWO, THREE, RELAY, EVIL = (Identity.from_seed(bytes([n]) * 32) for n in range(11, 16))
MESH = "ab" * 16


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with trio.fail_after(60):
            await scene()

    trio.run(patiently)


async def frame(inbox: AsyncIterator[Arrival]) -> bytes:
    async for arrival in inbox:
        if isinstance(arrival, Frame):
            return arrival.data
    raise AssertionError("the inbox has ended")


async def until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  # counters have no event
        await anyio.sleep(0.02)


def relay_host(port: int = 0) -> Libp2pTransport:
    return Libp2pTransport(RELAY, port=port, reach=Reach(serve=("relay",)))


def behind(identity: Identity, relay: str, **options: Any) -> Libp2pTransport:
    """A peer that is reached through `relay` only."""
    return Libp2pTransport(identity, reach=Reach(relay=(relay,), **options))


@asynccontextmanager
async def stock(identity: Identity) -> AsyncIterator[Any]:
    """A host as the library makes it."""
    pair = create_new_key_pair(identity.seed())
    noise: Any = {"/noise": Noise(pair, noise_privkey=create_noise_key().private_key)}
    host: Any = new_host(key_pair=pair, sec_opt=noise)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host
        await host.close()


async def stream_to(host: Any, address: str, protocol: str) -> Any:
    info = info_from_p2p_addr(Multiaddr(address))
    await host.connect(info)
    return await host.new_stream(info.peer_id, [protocol])


async def status(stream: Any, question: HopMessage) -> str:
    await libp2p_talk.tell(stream, question)
    return Status.Name((await libp2p_talk.receive(stream, HopMessage)).status)


def connect_to(identity: Identity) -> HopMessage:
    question = HopMessage(type=HopMessage.CONNECT)
    question.peer.id = ID.from_base58(identity.peer).to_bytes()
    return question


def partners(transport: Libp2pTransport) -> set[str]:
    """To whom it has connections, and how."""
    assert transport._host is not None
    return {
        f"{one.muxed_conn.peer_id} {one.get_connection_type().value}"
        for one in libp2p_host.connections(transport._host)
    }


def test_a_large_frame_goes_through_a_relay_both_ways() -> None:
    large = random.Random(1).randbytes(1 << 20)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            one, two = behind(ONE, relay.address), behind(TWO, relay.address)
            async with one.open() as to_one, two.open() as to_two:
                assert two.address == f"{relay.address}/p2p-circuit/p2p/{TWO.peer}"
                one.introduce({TWO.peer: two.address})
                two.introduce({ONE.peer: one.address})
                await one.send(TWO.peer, large)
                assert await frame(to_two) == large
                await two.send(ONE.peer, large[::-1])
                assert await frame(to_one) == large[::-1]
                assert partners(one) == {f"{RELAY.peer} direct", f"{TWO.peer} relayed"}
                assert relay.traffic.received > 2 * len(large)
                assert one.protections["relays"] == RELAY.peer

    run(scene)


def test_a_peer_that_can_dial_reaches_one_that_cannot_be_dialled() -> None:
    async def scene() -> None:
        async with (relay := relay_host()).open():
            one, two = Libp2pTransport(ONE), behind(TWO, relay.address)
            async with one.open() as to_one, two.open() as to_two:
                one.introduce({TWO.peer: two.address})
                two.introduce({ONE.peer: one.address})
                await one.send(TWO.peer, b"there")
                assert await frame(to_two) == b"there"
                await two.send(ONE.peer, b"and back")
                assert await frame(to_one) == b"and back"

    run(scene)


def test_the_relay_sees_no_byte_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[bytes] = []

    def overhear(source: Any) -> None:
        """Called by the relay with each stream it passes on."""
        read = source.read

        async def listening(n: int) -> bytes:
            passed.append(await read(n))
            return passed[-1]

        source.read = listening

    async def scene() -> None:
        async with (relay := relay_host()).open():
            one, two = behind(ONE, relay.address), behind(TWO, relay.address)
            async with one.open(), two.open() as to_two:
                monkeypatch.setattr(libp2p_relay, "_small_window", overhear)
                one.introduce({TWO.peer: two.address})
                await one.send(TWO.peer, b"a secret" * 1000)
                assert await frame(to_two) == b"a secret" * 1000
        octets = b"".join(passed)
        assert len(octets) > 8000
        assert b"a secret" not in octets

    run(scene)


async def serve(port: int, task_status: TaskStatus[tuple[str, anyio.CancelScope]]) -> None:
    """A relay that runs until it is cancelled, and says where it is."""
    with anyio.CancelScope() as life:
        async with (relay := relay_host(port)).open():
            task_status.started((relay.address, life))
            await anyio.sleep_forever()


def test_a_relay_that_dies_loses_frames_and_one_that_comes_back_carries_them() -> None:
    async def scene() -> None:
        async with anyio.create_task_group() as relays:
            address, life = await relays.start(serve, 0)
            one, two = behind(ONE, address), behind(TWO, address)
            async with one.open(), two.open() as to_two:
                one.introduce({TWO.peer: two.address})
                await one.send(TWO.peer, b"first")
                assert await frame(to_two) == b"first"
                life.cancel()
                await until(lambda: not partners(one) and not partners(two))
                await one.send(TWO.peer, b"lost")
                assert one.traffic.lost_frames == 1
                await relays.start(serve, int(address.split("/")[4]))
                with anyio.move_on_after(20):
                    while (lost := one.traffic.lost_frames) < 100:
                        await one.send(TWO.peer, b"second")
                        if one.traffic.lost_frames == lost:
                            break
                        await anyio.sleep(0.1)
                assert await frame(to_two) == b"second"
            relays.cancel_scope.cancel()

    run(scene)


def test_a_relay_that_is_not_there_yet_is_waited_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_circuit, "ASK_SECONDS", 1.0)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            address = relay.address
        async with (two := behind(TWO, address)).open() as to_two, (one := Libp2pTransport(ONE)).open():
            assert two.address == f"{address}/p2p-circuit/p2p/{TWO.peer}"
            async with relay_host(int(address.split("/")[4])).open():
                await until(lambda: bool(two._services._places.taken))
                one.introduce({TWO.peer: two.address})
                await one.send(TWO.peer, b"there")
                assert await frame(to_two) == b"there"

    run(scene)


def test_a_circuit_that_has_had_its_share_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_relay, "CIRCUIT_BYTES", 100_000)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            one, two = behind(ONE, relay.address), behind(TWO, relay.address)
            async with one.open(), two.open() as to_two, anyio.create_task_group() as reading:
                got: list[bytes] = []

                async def collect() -> None:
                    async for arrival in to_two:
                        if isinstance(arrival, Frame):
                            got.append(arrival.data)

                reading.start_soon(collect)
                one.introduce({TWO.peer: two.address})
                for n in range(20):
                    await one.send(TWO.peer, bytes([n]) * 30_000)
                    await anyio.sleep(0.1)
                await until(lambda: len(got) >= 8)  # some are lost with every circuit that ends
                assert len({data[0] for data in got}) == len(got)
                assert max(data[0] for data in got) > 12
                reading.cancel_scope.cancel()

    run(scene)


def test_peers_behind_a_relay_are_found_at_its_address() -> None:
    async def scene() -> None:
        reach = Reach(serve=("relay", "rendezvous"))
        async with (relay := Libp2pTransport(RELAY, reach=reach)).open():
            options: dict[str, Any] = {"discovery": ("rendezvous",), "bootstrap": (relay.address,), "namespace": MESH}
            one, two = behind(ONE, relay.address, **options), behind(TWO, relay.address, **options)
            async with one.open() as to_one, two.open() as to_two:
                found = await anext(to_one)
                assert found == Found(TWO.peer, two.address)
                one.introduce({TWO.peer: two.address})
                await one.send(TWO.peer, b"hello")
                assert await frame(to_two) == b"hello"

    run(scene)


def test_a_place_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_relay, "RESERVATION_SECONDS", 4)
    monkeypatch.setattr(libp2p_circuit, "LOOK_SECONDS", 0.1)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            two = behind(TWO, relay.address)
            async with two.open():
                first = relay._services._relay._reserved[TWO.peer]
                await until(lambda: relay._services._relay._reserved[TWO.peer] > first)

    run(scene)


def test_a_place_is_taken_in_ones_own_name_and_strangers_do_not_take_a_known_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libp2p_relay, "RESERVATIONS", 2)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            relay.introduce({TWO.peer: "/ip4/127.0.0.1/tcp/1"})
            places = relay._services._relay._reserved
            async with behind(TWO, relay.address).open(), stock(EVIL) as evil:
                question = HopMessage(type=HopMessage.RESERVE)
                question.peer.id = ID.from_base58(ONE.peer).to_bytes()
                assert await status(await stream_to(evil, relay.address, HOP), question) == "OK"
                assert set(places) == {TWO.peer, EVIL.peer}
                async with behind(THREE, relay.address).open():
                    assert set(places) == {TWO.peer, THREE.peer}
                    relay.introduce({TWO.peer: "/ip4/127.0.0.1/tcp/1", THREE.peer: "/ip4/127.0.0.1/tcp/1"})
                    again = await stream_to(evil, relay.address, HOP)
                    assert await status(again, HopMessage(type=HopMessage.RESERVE)) == "RESERVATION_REFUSED"

    run(scene)


def test_who_has_no_place_is_not_reached_and_circuits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_relay, "CIRCUITS_A_PEER", 1)

    async def scene() -> None:
        async with (relay := relay_host()).open(), behind(TWO, relay.address).open(), stock(EVIL) as evil:
            assert await status(await stream_to(evil, relay.address, HOP), connect_to(ONE)) == "NO_RESERVATION"
            first = await stream_to(evil, relay.address, HOP)
            assert await status(first, connect_to(TWO)) == "OK"
            second = await stream_to(evil, relay.address, HOP)
            assert await status(second, connect_to(TWO)) == "RESOURCE_LIMIT_EXCEEDED"
            await first.reset()
            await until(lambda: not relay._services._relay._circuits)

    run(scene)


def test_a_relay_cannot_put_somebody_else_at_the_other_end() -> None:
    """The relay says that it connects to TWO, and connects to THREE: Noise tells."""

    async def scene() -> None:
        async with (
            (relay := relay_host()).open(),
            (one := behind(ONE, relay.address)).open(),
            behind(THREE, relay.address).open() as to_three,
        ):
            one.introduce({TWO.peer: f"{relay.address}/p2p-circuit/p2p/{TWO.peer}"})
            places = relay._services._relay
            places._reserved[TWO.peer] = places._reserved[THREE.peer]
            knock = libp2p_relay._knock
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(libp2p_relay, "_knock", lambda host, sender, _: knock(host, sender, THREE.peer))
                await one.send(TWO.peer, b"secret")
            assert one.traffic.lost_frames == 1
            with trio.move_on_after(0.5):
                assert isinstance(await anext(to_three), Gone)

    run(scene)


def test_nobody_comes_through_a_relay_that_was_not_chosen() -> None:
    async def scene() -> None:
        async with (relay := relay_host()).open():
            two = behind(TWO, relay.address)
            async with two.open():
                direct = f"/ip4/127.0.0.1/tcp/{port_of(two)}/p2p/{TWO.peer}"
                async with stock(EVIL) as evil:
                    with contextlib.suppress(StreamFailure):  # it is reset at once, perhaps before it is whole
                        stream = await stream_to(evil, direct, STOP)
                        question = StopMessage(type=StopMessage.CONNECT)
                        question.peer.id = ID.from_base58(ONE.peer).to_bytes()
                        await libp2p_talk.tell(stream, question)
                    await until(lambda: two.traffic.refused == 1)

    run(scene)


def port_of(transport: Libp2pTransport) -> int:
    host: Any = transport._host
    return int(host.get_transport_addrs()[0].value_for_protocol("tcp"))


@pytest.mark.parametrize("protocol", [HOP, STOP])
def test_garbage_harms_nobody_else(protocol: str) -> None:
    noise = random.Random(3)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            two = behind(TWO, relay.address)
            async with two.open() as to_two:
                target = relay.address if protocol == HOP else f"/ip4/127.0.0.1/tcp/{port_of(two)}/p2p/{TWO.peer}"
                async with stock(EVIL) as evil:
                    for _ in range(40):
                        with anyio.move_on_after(1), contextlib.suppress(Exception):  # whatever says: cut off
                            stream = await stream_to(evil, target, protocol)
                            await stream.write(noise.randbytes(noise.randrange(1, 99)))
                async with (one := Libp2pTransport(ONE)).open():
                    one.introduce({TWO.peer: two.address})
                    await one.send(TWO.peer, b"still there?")
                    assert await frame(to_two) == b"still there?"

    run(scene)


def test_garbage_through_a_circuit_harms_nobody_else() -> None:
    noise = random.Random(4)

    async def scene() -> None:
        async with (relay := relay_host()).open():
            two = behind(TWO, relay.address)
            async with two.open() as to_two:
                async with stock(EVIL) as evil:
                    for _ in range(10):
                        stream = await stream_to(evil, relay.address, HOP)
                        assert await status(stream, connect_to(TWO)) == "OK"
                        await stream.write(noise.randbytes(noise.randrange(1, 500)))
                        await stream.close()
                async with (one := Libp2pTransport(ONE)).open():
                    one.introduce({TWO.peer: two.address})
                    await one.send(TWO.peer, b"still there?")
                    assert await frame(to_two) == b"still there?"

    run(scene)


def test_the_librarys_own_relay_serves_too() -> None:
    async def scene() -> None:
        async with stock(RELAY) as host, background_trio_service(CircuitV2Protocol(host, allow_hop=True)):
            address = str(host.get_addrs()[0])
            await anyio.sleep(0.1)
            one, two = behind(ONE, address), behind(TWO, address)
            async with one.open(), two.open() as to_two:
                one.introduce({TWO.peer: two.address})
                await one.send(TWO.peer, bytes(1 << 20))
                assert await frame(to_two) == bytes(1 << 20)

    run(scene)
