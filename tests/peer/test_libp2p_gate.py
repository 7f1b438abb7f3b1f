"""Strangers fill the house, and whoever was introduced still gets in."""

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.abc import TaskStatus
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from veilmesh.crypto.identity import Identity, PeerId
from veilmesh.peer.transports import libp2p_gate, libp2p_host, wire
from veilmesh.peer.transports.base import Arrival, Frame
from veilmesh.peer.transports.libp2p import FRAMES, Libp2pTransport

ONE, FRIEND = (Identity.from_seed(bytes([n]) * 32) for n in (21, 22))
NOWHERE = "/ip4/127.0.0.1/tcp/1"


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
    while not done():  # noqa: ASYNC110  # connections have no event
        await anyio.sleep(0.02)


@asynccontextmanager
async def stranger(number: int, to: Libp2pTransport, stream: bool = False) -> AsyncIterator[Any]:
    """A host of somebody else's making, connected to `to`; with an open stream of frames, or without."""
    pair = create_new_key_pair(number.to_bytes(32, "big"))
    noise: Any = {"/noise": Noise(pair, noise_privkey=create_noise_key().private_key)}
    host: Any = new_host(key_pair=pair, sec_opt=noise)
    async with host.run([]):
        info = info_from_p2p_addr(Multiaddr(to.address))
        await host.connect(info)
        if stream:
            host.stream = await host.new_stream(info.peer_id, [FRAMES])
        yield host
        await host.close()


def guests(transport: Libp2pTransport) -> set[PeerId]:
    assert transport._host is not None
    return {PeerId(str(one.muxed_conn.peer_id)) for one in libp2p_host.connections(transport._host)}


def name(host: Any) -> PeerId:
    return PeerId(str(host.get_id()))


async def member(number: int, to: Libp2pTransport, stream: bool, task_status: TaskStatus[None]) -> None:
    """A stranger that stays until it is cancelled."""
    async with stranger(number, to, stream):
        task_status.started()
        await anyio.sleep_forever()


@pytest.mark.parametrize("stream", [False, True])
def test_strangers_fill_the_house_and_a_friend_gets_in(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(libp2p_gate, "STRANGERS", 6)
    monkeypatch.setattr(libp2p_host, "CONNECTIONS", 20)  # above strangers, and those that are just going

    async def scene() -> None:
        async with (house := Libp2pTransport(ONE)).open() as to_house, anyio.create_task_group() as crowd:
            house.introduce({FRIEND.peer: NOWHERE})
            for number in range(1, 16):
                await crowd.start(member, number, house, stream)
            await until(lambda: len(guests(house)) <= 6)
            async with (friend := Libp2pTransport(FRIEND)).open():
                friend.introduce({ONE.peer: house.address})
                await friend.send(ONE.peer, b"may I?")
                assert await frame(to_house) == b"may I?"
                for number in range(16, 26):
                    await crowd.start(member, number, house, stream)
                await until(lambda: len(guests(house)) <= 7)
                await friend.send(ONE.peer, b"still here")
                assert await frame(to_house) == b"still here"
                assert friend.traffic.lost_frames == 0
            assert house.traffic.refused >= 19
            crowd.cancel_scope.cancel()

    run(scene)


def test_the_first_stranger_that_does_nothing_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_gate, "STRANGERS", 2)

    async def scene() -> None:
        async with (
            (house := Libp2pTransport(ONE)).open(),
            stranger(1, house, stream=True) as busy,
            stranger(2, house) as idle,
            stranger(3, house) as late,
        ):
            await until(lambda: guests(house) == {name(busy), name(late)})
            assert name(idle) not in guests(house)

    run(scene)


def test_a_stranger_that_was_introduced_is_none_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_gate, "STRANGERS", 1)
    monkeypatch.setattr(libp2p_gate, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(libp2p_gate, "LOOK_SECONDS", 0.2)

    async def scene() -> None:
        async with (house := Libp2pTransport(ONE)).open(), stranger(1, house) as first:
            house.introduce({name(first): NOWHERE})
            async with stranger(2, house) as second, stranger(3, house):
                await anyio.sleep(1)
                assert guests(house) == {name(first)}  # the others had nothing to do
                house.introduce({name(second): NOWHERE})
                await until(lambda: not guests(house))  # it is a stranger again

    run(scene)


def test_a_stranger_with_nothing_open_is_sent_away_and_one_with_a_stream_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libp2p_gate, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(libp2p_gate, "LOOK_SECONDS", 0.1)

    async def scene() -> None:
        async with (house := Libp2pTransport(ONE)).open(), stranger(1, house), stranger(2, house, stream=True) as busy:
            await until(lambda: guests(house) == {name(busy)})
            await anyio.sleep(1)
            assert guests(house) == {name(busy)}
            await busy.stream.reset()
            await until(lambda: not guests(house))

    run(scene)


FLOOD = """
import sys, trio
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.libp2p import Libp2pTransport

async def main():
    transport = Libp2pTransport(Identity.from_seed(bytes([23]) * 32))
    async with transport.open():
        transport.introduce({sys.argv[1]: sys.argv[2]})
        while True:
            await transport.send(sys.argv[1], b"flood")

trio.run(main)
"""


def test_one_neighbour_that_floods_leaves_others_their_turn() -> None:
    """It has a process of its own and sends as fast as it can: some of its frames come between two of another's."""

    async def scene() -> None:
        async with (house := Libp2pTransport(ONE)).open() as to_house, (friend := Libp2pTransport(FRIEND)).open():
            house.introduce({FRIEND.peer: NOWHERE, Identity.from_seed(bytes([23]) * 32).peer: NOWHERE})
            friend.introduce({ONE.peer: house.address})
            command = [sys.executable, "-c", FLOOD, ONE.peer, house.address]
            with subprocess.Popen(command) as flood:  # noqa: ASYNC220  # returns at once
                try:
                    assert await frame(to_house) == b"flood"
                    floods = 0
                    for _ in range(50):
                        await friend.send(ONE.peer, b"a word")
                        while await frame(to_house) != b"a word":
                            floods += 1
                    assert floods > 0
                    assert floods < 50 * 256  # an inbox full of them each time would be more
                finally:
                    flood.kill()

    run(scene)


def test_sockets_that_say_nothing_shut_out_nobody() -> None:
    async def scene() -> None:
        async with (house := Libp2pTransport(ONE)).open() as to_house:
            port = int(house.address.split("/")[4])
            silent = []
            try:
                for _ in range(libp2p_host.CONNECTIONS + 2 * wire.HANDSHAKES):
                    silent.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                    await anyio.lowlevel.checkpoint()
                async with (friend := Libp2pTransport(FRIEND)).open():
                    friend.introduce({ONE.peer: house.address})
                    await friend.send(ONE.peer, b"may I?")
                    assert await frame(to_house) == b"may I?"
                assert house.traffic.refused >= libp2p_host.CONNECTIONS
            finally:
                for one in silent:
                    one.close()

    run(scene)
