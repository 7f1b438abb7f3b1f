"""Identify and ping: answered where it is asked for, to any libp2p host, and no way to do harm."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.identity.identify.pb import identify_pb2
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports import libp2p_talk
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.peer.transports.libp2p import FRAMES
from veilmesh.peer.transports.libp2p_answers import IDENTIFY, PING, PING_BYTES

ONE, ASKER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))

Ask = Callable[[str], Awaitable[Any]]
"""A stream of that protocol, to the transport under test."""


def run(scene: Callable[[Any, Ask], Awaitable[None]], *serve: str, **options: Any) -> None:
    """Play `scene` with a transport that serves what is named, and a host as the library makes it to ask it."""

    async def patiently() -> None:
        pair = create_new_key_pair(ASKER.seed())
        noise: Any = {"/noise": Noise(pair, noise_privkey=create_noise_key().private_key)}
        host: Any = new_host(key_pair=pair, sec_opt=noise)
        port = free_port()
        made = TRANSPORTS.build("libp2p", {"serve": serve, "port": port, **options}).make(ONE)
        with trio.fail_after(30):
            async with made.open(), host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
                there = info_from_p2p_addr(Multiaddr(f"/ip4/127.0.0.1/tcp/{port}/p2p/{ONE.peer}"))
                await host.connect(there)
                await scene(made, lambda protocol: host.new_stream(there.peer_id, [protocol]))
                await host.close()

    trio.run(patiently)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def exactly(stream: Any, octets: int) -> bytes:
    got = b""
    while len(got) < octets:
        got += await stream.read(octets - len(got))
    return got


def test_identify_says_who_this_is_and_what_it_speaks() -> None:
    async def scene(made: Any, ask: Ask) -> None:
        said = await libp2p_talk.receive(await ask(IDENTIFY), identify_pb2.Identify)
        assert deserialize_public_key(said.public_key).to_bytes() == ONE.public
        assert said.agent_version.startswith("veilmesh/")
        assert set(said.protocols) == {FRAMES, IDENTIFY, PING}
        assert [f"{Multiaddr(one)}/p2p/{ONE.peer}" for one in said.listen_addrs] == [made.address]
        assert made.protections["serves"] == "identify,ping"

    run(scene, "identify", "ping")


def test_of_several_addresses_the_announced_one_is_said() -> None:
    async def scene(made: Any, ask: Ask) -> None:
        said = await libp2p_talk.receive(await ask(IDENTIFY), identify_pb2.Identify)
        assert [str(Multiaddr(one)) for one in said.listen_addrs] == ["/ip4/192.0.2.7/tcp/4001"]

    run(scene, "identify", announce="/ip4/192.0.2.7/tcp/4001")


def test_pings_come_back_as_they_were_however_they_are_cut() -> None:
    async def scene(made: Any, ask: Ask) -> None:
        stream, told = await ask(PING), bytes(range(3 * PING_BYTES))
        for piece in (told[:1], told[1:40], told[40:]):
            await stream.write(piece)
        assert await exactly(stream, len(told)) == told
        again = await ask(PING)
        await again.write(told[:PING_BYTES])
        assert await exactly(again, PING_BYTES) == told[:PING_BYTES]

    run(scene, "ping")


def test_streams_that_say_nothing_shut_out_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_talk, "STREAM_SECONDS", 0.5)

    async def scene(made: Any, ask: Ask) -> None:
        idle = [await ask(PING) for _ in range(2 * libp2p_talk.AT_ONCE_A_PEER)]
        last = await ask(PING)
        await last.write(bytes(PING_BYTES))
        assert await exactly(last, PING_BYTES) == bytes(PING_BYTES)
        for stream in [*idle, last]:  # none stays for ever
            with pytest.raises(StreamError):
                await stream.read(1)

    run(scene, "ping")


def test_neither_is_a_place_to_begin_looking_for_peers() -> None:
    options = {"discovery": ["kademlia"], "namespace": "00", "serve": ["identify", "ping"]}
    with pytest.raises(BadInput, match="bootstrap"):
        TRANSPORTS.build("libp2p", options).make(ONE)
