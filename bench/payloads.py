"""One turn of `bench_payload`: a receiver in this process, a sender in a forked one. Prints one line of JSON.

Runs in environments that have no veilmesh too, so everything is imported where it is used.
"""

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

__all__ = ["main"]

PROTOCOL = "/bench/payload/1"
WARM = 2  # payloads before the clock starts: windows grow, sessions are agreed


def paced(count: int, send: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
    """Send `count` payloads one after the other, each answered; seconds for all but the first ones."""

    async def run() -> float:
        for _ in range(WARM):
            await send()
        begun = time.perf_counter()
        for _ in range(count):
            await send()
        return time.perf_counter() - begun

    return run


def report(octets: int, count: int, seconds: float) -> None:
    """The line of JSON."""
    print(json.dumps({"mb_per_second": octets * count / seconds / 1e6}), flush=True)


# --- veilmesh: two transports, with and without envelopes ----------------------------------------------------------


def veilmesh(octets: int, count: int, sealed: bool) -> None:
    """The receiver is this process, the sender a child."""
    import trio
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from veilmesh.crypto.envelope import Card, Mailroom
    from veilmesh.crypto.identity import Identity
    from veilmesh.peer.transports.base import Frame
    from veilmesh.peer.transports.libp2p import Libp2p

    run, kind = bytes(16), Libp2p()
    kind.prepare()
    identities, keys = [Identity.generate() for _ in range(2)], [X25519PrivateKey.generate() for _ in range(2)]
    cards = [Card.issue(i, k.public_key().public_bytes_raw(), run, "") for i, k in zip(identities, keys, strict=True)]
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child:  # a mailroom belongs to the process that made it
        mine, other, words, addresses = 0, 1, to_parent[0], to_child[1]
    else:
        mine, other, words, addresses = 1, 0, to_child[0], to_parent[1]
    room = Mailroom(identities[mine], keys[mine], run)
    room.admit(cards[other])
    peer = identities[other].peer

    async def live() -> None:
        transport = kind.make(identities[mine])
        async with transport.open() as inbox:
            os.write(addresses, f"{transport.address}\n".encode())
            address = (await trio.to_thread.run_sync(os.read, words, 4096)).decode().strip()
            transport.introduce({peer: address})
            if child:
                await answer(transport, inbox)
            else:
                payload = os.urandom(octets)

                async def send() -> None:
                    await transport.send(peer, room.seal(peer, 1, payload) if sealed else payload)
                    while not isinstance(await anext(inbox), Frame):
                        pass

                report(octets, count, await paced(count, send)())

    async def answer(transport: object, inbox: object) -> None:
        for _ in range(WARM + count):
            while not isinstance(arrival := await anext(inbox), Frame):  # type: ignore[call-overload]  # an Arrival
                pass
            whole = room.open(arrival.data).body if sealed else arrival.data
            assert len(whole) == octets
            await transport.send(peer, room.seal(peer, 1, b"!") if sealed else b"!")  # type: ignore[attr-defined]  # a Transport
        await trio.sleep(0.5)

    trio.run(live)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


# --- py-libp2p as it comes -------------------------------------------------------------------------------------------


def stock(octets: int, count: int) -> None:
    """new_host() with Noise and Yamux, one stream a payload direction kept open, reads of whatever has come."""
    import trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as noise_pair
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as Noise
    from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
    from libp2p.stream_muxer.yamux.yamux import Yamux
    from multiaddr import Multiaddr

    words, addresses = os.pipe()
    child = os.fork()
    pair, listen = create_new_key_pair(os.urandom(32)), Multiaddr("/ip4/127.0.0.1/tcp/0")
    noise = Noise(pair, noise_privkey=noise_pair().private_key)
    host = new_host(key_pair=pair, listen_addrs=[listen], sec_opt={NOISE: noise}, muxer_opt={YAMUX: Yamux})

    async def receive() -> None:
        done = trio.Event()

        async def handle(stream: object) -> None:
            for _ in range(WARM + count):
                buffer = bytearray()
                while len(buffer) < octets:
                    buffer += await stream.read(1 << 20)  # type: ignore[attr-defined]  # an INetStream
                await stream.write(b"!")  # type: ignore[attr-defined]  # an INetStream
            done.set()

        async with host.run([listen]):
            host.set_stream_handler(PROTOCOL, handle)
            os.write(addresses, f"{host.get_addrs()[0]}\n".encode())
            await done.wait()
            await trio.sleep(0.5)

    async def send() -> None:
        address = (await trio.to_thread.run_sync(os.read, words, 4096)).decode().strip()
        async with host.run([listen]):
            info = info_from_p2p_addr(Multiaddr(address))
            await host.connect(info)
            stream = await host.new_stream(info.peer_id, [PROTOCOL])
            payload = os.urandom(octets)

            async def one() -> None:
                await stream.write(payload)
                await stream.read(1)

            report(octets, count, await paced(count, one)())
            os._exit(0)

    trio.run(receive if child else send)
    os.waitpid(child, 0)


# --- hivemind's Go daemon --------------------------------------------------------------------------------------------


def p2pd(octets: int, count: int) -> None:
    """hivemind.P2P on both sides: unary stream handlers of raw bytes."""
    import asyncio
    import multiprocessing

    def receive(queue: "multiprocessing.Queue[object]", over: object) -> None:
        from hivemind.p2p import P2P

        async def serve() -> None:
            p2p = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])

            async def handle(info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                for _ in range(WARM + count):
                    await reader.readexactly(octets)
                    writer.write(b"!")
                    await writer.drain()

            await p2p.add_binary_stream_handler("bench", handle)
            queue.put([str(a) for a in await p2p.get_visible_maddrs()])
            queue.put(p2p.peer_id.to_base58())
            while not over.is_set():  # type: ignore[attr-defined]  # noqa: ASYNC110  # an Event of multiprocessing
                await asyncio.sleep(0.1)
            await p2p.shutdown()

        asyncio.run(serve())

    async def send(addresses: list[str], name: str) -> None:
        from hivemind.p2p import P2P, PeerID

        p2p = await P2P.create(initial_peers=addresses, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
        _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(name), "bench")
        payload = os.urandom(octets)

        async def one() -> None:
            writer.write(payload)
            await writer.drain()
            await reader.readexactly(1)

        report(octets, count, await paced(count, one)())
        await p2p.shutdown()

    context = multiprocessing.get_context("fork")
    queue, over = context.Queue(), context.Event()
    server = context.Process(target=receive, args=(queue, over))
    server.start()
    try:
        asyncio.run(send(queue.get(timeout=30), queue.get(timeout=30)))
    finally:
        over.set()
        server.join(5)
        server.kill()


def main(system: str, octets: int, count: int) -> None:
    """Run one turn of a system."""
    if system == "stock":
        stock(octets, count)
    elif system == "hivemind p2pd":
        p2pd(octets, count)
    else:
        veilmesh(octets, count, sealed=system == "veilmesh sealed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
