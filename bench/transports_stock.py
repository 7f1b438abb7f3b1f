"""py-libp2p as it comes: `new_host` with Noise and Yamux, one stream kept open, reads of whatever has come."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from transports_turn import Drive, Given, Words  # beside this file

__all__ = ["receive", "run", "send"]

PROTOCOL = "/bench/payload/1"
LENGTH = 8


def run(given: Given, main: Callable[[], Awaitable[None]]) -> None:
    """In trio."""
    trio.run(main)


async def receive(given: Given, words: Words) -> None:
    """Every payload after its length, answered with a byte."""
    host, listen = _host()

    async def handle(stream: Any) -> None:
        while True:
            buffer, size = bytearray(), LENGTH
            while len(buffer) < size:
                buffer += await stream.read(1 << 20)
                if size == LENGTH <= len(buffer):
                    size += int.from_bytes(buffer[:LENGTH], "big")
            await stream.write(b"!")

    async with host.run([listen]):
        host.set_stream_handler(PROTOCOL, handle)
        words.tell(str(host.get_addrs()[0]))
        await trio.sleep_forever()


async def send(given: Given, words: Words, drive: Drive) -> None:
    """As `receive`."""
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    [address] = words.ask()
    host, listen = _host()
    async with host.run([listen]):
        info = info_from_p2p_addr(Multiaddr(address))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [PROTOCOL])

        async def exchange(payload: bytes) -> None:
            await stream.write(len(payload).to_bytes(LENGTH, "big") + payload)
            await stream.read(1)

        await drive(exchange)


def _host() -> tuple[Any, Any]:
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as noise_pair
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as Noise
    from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
    from libp2p.stream_muxer.yamux.yamux import Yamux
    from multiaddr import Multiaddr

    pair, listen = create_new_key_pair(os.urandom(32)), Multiaddr("/ip4/127.0.0.1/tcp/0")
    noise = Noise(pair, noise_privkey=noise_pair().private_key)
    return new_host(key_pair=pair, listen_addrs=[listen], sec_opt={NOISE: noise}, muxer_opt={YAMUX: Yamux}), listen
