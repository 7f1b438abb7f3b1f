"""Peers that were told of nobody find each other: on the LAN, at rendezvous points, in a DHT."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
import trio.testing
import zeroconf
from hypothesis import given
from hypothesis import strategies as st
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.discovery.rendezvous.pb.rendezvous_pb2 import Message as Rendezvous
from libp2p.discovery.rendezvous.service import RendezvousService
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message as Kademlia
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity, PeerId
from veilmesh.peer.transports import (
    libp2p_address,
    libp2p_kademlia,
    libp2p_kademlia_node,
    libp2p_mdns,
    libp2p_rendezvous,
    libp2p_talk,
)
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Found, Frame
from veilmesh.peer.transports.libp2p import FRAMES, Libp2pTransport
from veilmesh.peer.transports.libp2p_finding import ADDRESSES, Finds, key
from veilmesh.peer.transports.libp2p_services import Reach

MESH, OTHER_MESH = "ab" * 16, "cd" * 16
ONE, TWO, THREE, POINT, EVIL = (Identity.from_seed(bytes([n]) * 32) for n in range(1, 6))


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with trio.fail_after(60):
            await scene()

    trio.run(patiently)


async def finds(inbox: AsyncIterator[Arrival], *wanted: Identity) -> dict[PeerId, str]:
    """What the inbox says was found, once all of `wanted` were."""
    found: dict[PeerId, str] = {}
    while not {one.peer for one in wanted} <= found.keys():
        arrival = await anext(inbox)
        if isinstance(arrival, Found):
            found[arrival.peer] = arrival.address
    return found


async def frame(inbox: AsyncIterator[Arrival]) -> bytes:
    async for arrival in inbox:
        if isinstance(arrival, Frame):
            return arrival.data
    raise AssertionError("the inbox has ended")


@asynccontextmanager
async def stock(identity: Identity) -> AsyncIterator[Any]:
    """A host as the library makes it."""
    pair = create_new_key_pair(identity.seed())
    noise: Any = {"/noise": Noise(pair, noise_privkey=create_noise_key().private_key)}
    host: Any = new_host(key_pair=pair, sec_opt=noise)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host
        await host.close()


def peer(identity: Identity, **options: Any) -> Libp2pTransport:
    return Libp2pTransport(identity, reach=Reach(**({"namespace": MESH} | options)))


def offered(transport: Libp2pTransport) -> set[str]:
    host: Any = transport._host
    return set(host.get_mux().handlers)


def multicast_on_loopback() -> bool:
    try:
        zeroconf.Zeroconf(interfaces=["127.0.0.1"], ip_version=zeroconf.IPVersion.V4Only).close()
    except OSError:
        return False
    return True


# --- options


def test_nothing_is_offered_unless_it_is_asked_for() -> None:
    async def scene() -> None:
        async with (plain := TRANSPORTS.build("libp2p").make(ONE)).open():
            assert offered(plain) == {FRAMES}  # type: ignore[arg-type]  # it is a Libp2pTransport
            assert set(plain.protections) == {"channel", "muxer", "hardening"}

    run(scene)


def test_what_is_offered_is_said() -> None:
    async def scene() -> None:
        options = {"serve": ["kademlia", "rendezvous", "relay"]}
        async with (full := TRANSPORTS.build("libp2p", options).make(ONE)).open():
            assert len(offered(full)) == 4  # type: ignore[arg-type]  # it is a Libp2pTransport
            assert full.protections["serves"] == "kademlia,rendezvous,relay"

    run(scene)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"discovery": ["mdns"]}, "namespace"),
        ({"discovery": ["bluetooth"]}, "discovery"),
        ({"namespace": "xyz"}, "namespace"),
        ({"discovery": ["kademlia"], "namespace": MESH}, "bootstrap"),
        ({"bootstrap": ["/ip4/127.0.0.1/tcp/1"]}, "reach whom"),
        ({"bootstrap": ["nonsense"]}, "reach whom"),
        ({"relay": [f"/ip4/127.0.0.1/udp/1/p2p/{ONE.peer}"]}, "reach whom"),
        ({"relay": [f"/ip4/127.0.0.1/tcp/1/p2p/{ONE.peer}/p2p-circuit/p2p/{TWO.peer}"]}, "reach whom"),
        ({"announce": "nonsense"}, "cannot be announced"),
        ({"announce": "/ip4/0.0.0.0/tcp/4001"}, "cannot be announced"),
        ({"announce": f"/ip4/127.0.0.1/tcp/1/p2p/{TWO.peer}"}, "not of"),
    ],
)
def test_options_that_are_no_use_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        TRANSPORTS.build("libp2p", options).make(ONE)


def test_the_announced_address_is_the_one_that_is_told() -> None:
    async def scene() -> None:
        async with (transport := peer(ONE, announce="/dns4/example.org/tcp/4001")).open():
            assert transport.address == f"/dns4/example.org/tcp/4001/p2p/{ONE.peer}"

    run(scene)


def test_each_way_looks_under_a_name_of_its_own_that_is_not_the_meshs() -> None:
    names = {key(mesh, way) for mesh in (MESH, OTHER_MESH) for way in ("mdns", "kademlia", "rendezvous")}
    assert len(names) == 6
    assert not any(bytes.fromhex(MESH) in name for name in names)


# --- finding


@pytest.mark.skipif(not multicast_on_loopback(), reason="no multicast on the loopback interface")
def test_peers_on_a_lan_find_those_of_their_mesh() -> None:
    async def scene() -> None:
        one, two = peer(ONE, discovery=("mdns",)), peer(TWO, discovery=("mdns",))
        other = peer(THREE, discovery=("mdns",), namespace=OTHER_MESH)
        async with other.open() as to_other, one.open() as to_one, two.open() as to_two:
            assert await finds(to_one, TWO) == {TWO.peer: two.address}
            assert await finds(to_two, ONE) == {ONE.peer: one.address}
            with trio.move_on_after(1):
                raise AssertionError(await anext(to_other))

    run(scene)


def test_peers_find_each_other_at_a_rendezvous_point() -> None:
    async def scene() -> None:
        async with (point := peer(POINT, serve=("rendezvous",))).open() as to_point:
            options: dict[str, Any] = {"discovery": ("rendezvous",), "bootstrap": (point.address,)}
            one, two, other = (
                peer(ONE, **options),
                peer(TWO, **options),
                peer(THREE, **options | {"namespace": OTHER_MESH}),
            )
            async with other.open() as to_other, one.open() as to_one, two.open() as to_two:
                assert await finds(to_one, TWO) == {TWO.peer: two.address}
                assert await finds(to_two, ONE) == {ONE.peer: one.address}
                with trio.move_on_after(1):
                    raise AssertionError(await anext(to_other))
            with trio.move_on_after(0.1):
                assert not isinstance(await anext(to_point), Found)

    run(scene)


def test_a_peer_that_left_a_rendezvous_point_is_not_found() -> None:
    async def scene() -> None:
        async with (point := peer(POINT, serve=("rendezvous",))).open():
            options: dict[str, Any] = {"discovery": ("rendezvous",), "bootstrap": (point.address,)}
            async with peer(ONE, **options).open() as to_one, peer(TWO, **options).open():
                await finds(to_one, TWO)
            async with peer(THREE, **options).open() as to_three:
                with trio.move_on_after(1):
                    raise AssertionError(await anext(to_three))

    run(scene)


def test_peers_find_each_other_in_a_dht_that_neither_knows_whole() -> None:
    """A chain of nodes: each was told of the one before; the two peers enter at its ends."""

    async def scene() -> None:
        async with AsyncExitStack() as stack:
            nodes: list[Libp2pTransport] = []
            for n in range(4):
                told = (nodes[-1].address,) if nodes else ()
                nodes.append(peer(Identity.from_seed(bytes([100 + n]) * 32), serve=("kademlia",), bootstrap=told))
                await stack.enter_async_context(nodes[-1].open())
            one = peer(ONE, discovery=("kademlia",), bootstrap=(nodes[0].address,))
            two = peer(TWO, discovery=("kademlia",), bootstrap=(nodes[-1].address,))
            to_one, to_two = await stack.enter_async_context(one.open()), await stack.enter_async_context(two.open())
            assert await finds(to_one, TWO) == {TWO.peer: two.address}
            assert await finds(to_two, ONE) == {ONE.peer: one.address}

    run(scene)


def test_peers_that_serve_the_dht_themselves_need_nobody_else() -> None:
    async def scene() -> None:
        one = peer(ONE, discovery=("kademlia",), serve=("kademlia",))
        async with one.open() as to_one:
            two = peer(TWO, discovery=("kademlia",), serve=("kademlia",), bootstrap=(one.address,))
            async with two.open() as to_two:
                assert await finds(to_one, TWO) == {TWO.peer: two.address}
                assert await finds(to_two, ONE) == {ONE.peer: one.address}

    run(scene)


def test_the_librarys_own_dht_node_serves_too() -> None:
    async def scene() -> None:
        async with stock(POINT) as host, background_trio_service(KadDHT(host, DHTMode.SERVER)):
            options: dict[str, Any] = {"discovery": ("kademlia",), "bootstrap": (str(host.get_addrs()[0]),)}
            one, two = peer(ONE, **options), peer(TWO, **options)
            async with one.open() as to_one, two.open() as to_two:
                assert await finds(to_one, TWO) == {TWO.peer: two.address}
                assert await finds(to_two, ONE) == {ONE.peer: one.address}

    run(scene)


def test_the_librarys_own_rendezvous_point_serves_too() -> None:
    async def scene() -> None:
        async with stock(POINT) as host:
            RendezvousService(host)
            options: dict[str, Any] = {"discovery": ("rendezvous",), "bootstrap": (str(host.get_addrs()[0]),)}
            one, two = peer(ONE, **options), peer(TWO, **options)
            async with one.open() as to_one, two.open() as to_two:
                assert await finds(to_one, TWO) == {TWO.peer: two.address}
                assert await finds(to_two, ONE) == {ONE.peer: one.address}

    run(scene)


def test_who_was_found_can_be_introduced_and_written_to() -> None:
    async def scene() -> None:
        async with (point := peer(POINT, serve=("rendezvous",))).open():
            options: dict[str, Any] = {"discovery": ("rendezvous",), "bootstrap": (point.address,)}
            one, two = peer(ONE, **options), peer(TWO, **options)
            async with one.open() as to_one, two.open() as to_two:
                one.introduce(await finds(to_one, TWO))
                await one.send(TWO.peer, b"hello")
                assert await frame(to_two) == b"hello"

    run(scene)


def test_a_point_that_comes_late_is_used_when_it_is_there() -> None:
    async def scene() -> None:
        async with (point := peer(POINT, serve=("rendezvous", "kademlia"))).open():
            address, port = point.address, int(point.address.split("/")[4])
        options: dict[str, Any] = {"discovery": ("rendezvous", "kademlia"), "bootstrap": (address,)}
        one, two = peer(ONE, **options), peer(TWO, **options)
        async with one.open() as to_one, two.open():
            await trio.sleep(1)
            later = Libp2pTransport(POINT, port=port, reach=Reach(serve=("rendezvous", "kademlia")))
            async with later.open():
                await finds(to_one, TWO)

    run(scene)


# --- what is not believed


class Told:
    def __init__(self, met: bool = False) -> None:
        self.said: list[tuple[PeerId, str]] = []
        self.finds = Finds(ONE.peer, lambda peer, address: self.said.append((peer, address)), lambda peer: met)


def test_a_find_is_told_once_in_a_while_and_only_if_it_can_be_one() -> None:
    async def scene() -> None:
        told = Told()
        address = "/ip4/127.0.0.1/tcp/4001"
        for _ in range(3):
            told.finds(TWO.peer, [address])
            told.finds(ONE.peer, [address])  # oneself
            told.finds(PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), [address])  # holds no key of ours
            told.finds(THREE.peer, ["nonsense", "/ip4/0.0.0.0/tcp/1", "/dns4/example.org/tcp/1"])
        assert told.said == [(TWO.peer, f"{address}/p2p/{TWO.peer}")]
        (known := Told(met=True)).finds(TWO.peer, [address])
        assert known.said == []

    run(scene)


def test_of_many_addresses_few_are_told_in_turns_the_best_first() -> None:
    async def scene() -> None:
        told = Told()
        addresses = [f"/ip4/127.0.0.1/tcp/{n}" for n in range(1, 100)]
        for _ in range(2 * ADDRESSES):
            told.finds(TWO.peer, addresses)
            await trio.sleep(20)
        whole = [f"{address}/p2p/{TWO.peer}" for address in addresses[:ADDRESSES]]
        assert [address for _, address in told.said] == 2 * whole

    trio.run(scene, clock=trio.testing.MockClock(autojump_threshold=0))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_address_or_none(octets: bytes) -> None:
    address = libp2p_address.from_wire(TWO.peer, octets)
    assert address is None or address.endswith(f"/p2p/{TWO.peer}")


@given(st.dictionaries(st.sampled_from([b"mesh", b"peer", b"a0", b"a1", b"x"]), st.none() | st.binary(max_size=200)))
def test_any_text_record_is_read_or_left(record: dict[bytes, bytes | None]) -> None:
    mesh = key(MESH, "mdns").hex()
    written = libp2p_mdns.texts(TWO.peer, mesh, [f"/ip4/127.0.0.1/tcp/1/p2p/{TWO.peer}"])
    whole = {str(name).encode(): str(text).encode() for name, text in written.items()}
    assert libp2p_mdns.read(whole, mesh) == (TWO.peer, ["/ip4/127.0.0.1/tcp/1"])
    libp2p_mdns.read(whole | record, mesh)  # and does not raise
    assert libp2p_mdns.read(record | whole, key(OTHER_MESH, "mdns").hex()) is None


@given(st.binary(max_size=200), st.integers(0, 6), st.binary(max_size=90), st.lists(st.binary(max_size=60), max_size=4))
def test_a_dht_node_answers_any_question(record: bytes, kind: int, wanted: bytes, addresses: list[bytes]) -> None:
    async def scene() -> None:
        node = libp2p_kademlia_node.Node(POINT.peer)
        question = Kademlia(key=wanted, senderRecord=record)
        question.type = min(kind, 5)  # type: ignore[assignment]  # of an enumeration
        one = question.providerPeers.add()
        one.id = libp2p_address.raw(EVIL.peer)
        one.addrs.extend(addresses)
        node.answer(EVIL.peer, question)
        assert not node.nodes()

    trio.run(scene)


def test_a_peer_provides_for_itself_only_and_a_bounded_number_of_keys() -> None:
    async def scene() -> None:
        node = libp2p_kademlia_node.Node(POINT.peer)
        for n in range(100):
            question = Kademlia(type=Kademlia.ADD_PROVIDER, key=bytes([n]) * 34)
            one = question.providerPeers.add()
            one.id = libp2p_address.raw(EVIL.peer if n % 2 else TWO.peer)
            one.addrs.append(libp2p_address.to_wire("/ip4/127.0.0.1/tcp/1"))
            node.answer(EVIL.peer, question)
        kept = [n for n in range(100) if node.providers(bytes([n]) * 34)]
        assert kept == [1, 3, 5, 7, 9, 11, 13, 15]
        assert list(node.providers(bytes([1]) * 34)) == [EVIL.peer]

    trio.run(scene)


def test_a_dht_node_forgets_the_oldest_records_and_values_are_none_of_its_business() -> None:
    async def scene() -> None:
        node = libp2p_kademlia_node.Node(POINT.peer)
        for n in range(libp2p_kademlia_node.RECORDS + 10):
            node.keep(PeerId(f"peer{n}"), b"key", [])
        assert len(node._kept) == libp2p_kademlia_node.RECORDS
        put = Kademlia(type=Kademlia.PUT_VALUE, key=b"/x/y")
        put.record.key, put.record.value = b"/x/y", bytes(1000)
        assert node.answer(EVIL.peer, put) is None

    trio.run(scene)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, Rendezvous.OK),
        ({"ns": ""}, Rendezvous.E_INVALID_NAMESPACE),
        ({"ns": "x" * 300}, Rendezvous.E_INVALID_NAMESPACE),
        ({"ttl": 0}, Rendezvous.E_INVALID_TTL),
        ({"ttl": 10**9}, Rendezvous.E_INVALID_TTL),
        ({"id": TWO.peer}, Rendezvous.E_NOT_AUTHORIZED),
        ({"addrs": []}, Rendezvous.E_INVALID_PEER_INFO),
        ({"addrs": [b"nonsense"]}, Rendezvous.E_INVALID_PEER_INFO),
        ({"addrs": [libp2p_address.to_wire("/ip4/127.0.0.1/tcp/1")] * 50}, Rendezvous.E_INVALID_PEER_INFO),
    ],
)
def test_a_rendezvous_point_takes_only_what_it_can_keep(change: dict[str, Any], status: int) -> None:
    async def scene() -> None:
        lists = libp2p_rendezvous.Lists()
        said = {
            "ns": "x",
            "ttl": 60,
            "id": ONE.peer,
            "addrs": [libp2p_address.to_wire("/ip4/127.0.0.1/tcp/1")],
        } | change
        answer = lists.answer(ONE.peer, registration(**said))
        assert answer is not None
        assert answer.registerResponse.status == status
        assert len(listed(lists, said["ns"])) == (status == Rendezvous.OK)

    trio.run(scene)


def registration(ns: str, ttl: int, id: PeerId, addrs: list[bytes]) -> Rendezvous:
    question = Rendezvous(type=Rendezvous.REGISTER)
    question.register.ns, question.register.ttl = ns, ttl
    question.register.peer.id = libp2p_address.raw(id)
    question.register.peer.addrs.extend(addrs)
    return question


def listed(lists: libp2p_rendezvous.Lists, ns: str, cookie: bytes = b"") -> list[Any]:
    """Everybody under a namespace, page by page."""
    question = Rendezvous(type=Rendezvous.DISCOVER)
    question.discover.ns, question.discover.cookie = ns, cookie
    answer = lists.answer(EVIL.peer, question)
    assert answer is not None
    assert len(answer.SerializeToString()) <= libp2p_talk.MESSAGE_BYTES
    here = list(answer.discoverResponse.registrations)
    return here + (listed(lists, ns, answer.discoverResponse.cookie) if answer.discoverResponse.cookie else [])


def test_a_long_list_comes_in_pages_and_a_longer_one_forgets_the_first() -> None:
    async def scene() -> None:
        lists = libp2p_rendezvous.Lists()
        longest = [libp2p_address.to_wire(f"/ip4/127.0.0.1/tcp/{n}/p2p/{TWO.peer}/p2p-circuit") for n in (1, 2, 3)]
        peers = [Identity.from_seed(n.to_bytes(32, "big")).peer for n in range(1, 151)]
        for peer_id in peers:
            lists.answer(peer_id, registration("x", 60, peer_id, longest))
        assert [libp2p_address.peer_of(one.peer.id) for one in listed(lists, "x")] == peers
        for n in range(libp2p_rendezvous.REGISTRATIONS):
            lists._kept["y", PeerId(f"peer{n}")] = lists._kept["x", peers[-1]]
        lists.answer(ONE.peer, registration("z", 60, ONE.peer, longest))
        assert libp2p_address.peer_of(listed(lists, "x")[0].peer.id) == peers[1]

    trio.run(scene)


# --- strangers at the door of every protocol


@pytest.mark.parametrize("protocol", [libp2p_kademlia.PROTOCOL, libp2p_rendezvous.PROTOCOL])
def test_garbage_harms_nobody_else(protocol: str) -> None:
    noise = random.Random(7)

    async def scene() -> None:
        async with (point := peer(POINT, serve=("kademlia", "rendezvous"))).open():
            options: dict[str, Any] = {"discovery": ("kademlia", "rendezvous"), "bootstrap": (point.address,)}
            async with stock(EVIL) as host:
                for n in range(60):
                    body = noise.randbytes(noise.randrange(1, 200))
                    said = encode_varint_prefixed(body) if n % 2 else body
                    await say(host, point, protocol, said + bytes([255] * 9) * (n % 3))
            assert point.traffic.refused > 0
            async with peer(ONE, **options).open() as to_one, peer(TWO, **options).open():
                await finds(to_one, TWO)

    run(scene)


def test_silent_streams_shut_out_nobody() -> None:
    async def scene() -> None:
        async with (point := peer(POINT, serve=("kademlia",))).open(), AsyncExitStack() as strangers:
            for n in range(1 + libp2p_talk.AT_ONCE // libp2p_talk.AT_ONCE_A_PEER):
                host = await strangers.enter_async_context(stock(Identity.from_seed(bytes([50 + n]) * 32)))
                for _ in range(2 * libp2p_talk.AT_ONCE_A_PEER):
                    await say(host, point, libp2p_kademlia.PROTOCOL, b"\x05")
            options: dict[str, Any] = {"discovery": ("kademlia",), "bootstrap": (point.address,)}
            async with peer(ONE, **options).open() as to_one, peer(TWO, **options).open():
                await finds(to_one, TWO)

    run(scene)


async def say(host: Any, to: Libp2pTransport, protocol: str, octets: bytes) -> None:
    """Say something on a stream of its own, and leave it open."""
    from libp2p.peer.peerinfo import info_from_p2p_addr

    info = info_from_p2p_addr(Multiaddr(to.address))
    with anyio.move_on_after(1):
        try:
            await host.connect(info)
            stream = await host.new_stream(info.peer_id, [protocol])
            await stream.write(octets)
        except Exception:  # noqa: BLE001  # whatever says that it was cut off
            return
