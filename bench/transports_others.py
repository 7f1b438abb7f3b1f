"""gRPC, streaming 1 MiB at a time, and hivemind's Go daemon with a stream kept open: `grpc` and `hivemind`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from transports_turn import Drive, Given, Words  # beside this file

__all__ = ["receive", "run", "send"]

CHUNK = 1 << 20
LENGTH = 8
METHOD = "/bench/payload"


def run(given: Given, main: Callable[[], Awaitable[None]]) -> None:
    """In asyncio."""
    asyncio.run(main())  # type: ignore[arg-type]  # a coroutine


async def receive(given: Given, words: Words) -> None:
    """Answer every payload."""
    await (_serve_grpc if given.variant == "grpc" else _serve_hivemind)(words)


async def send(given: Given, words: Words, drive: Drive) -> None:
    """As `receive`."""
    await (_call_grpc if given.variant == "grpc" else _call_hivemind)(words, drive)


async def _serve_grpc(words: Words) -> None:
    import grpc

    async def take(chunks: AsyncIterator[bytes], context: Any) -> bytes:
        buffer, at = bytearray(int(dict(context.invocation_metadata())["length"])), 0
        async for chunk in chunks:
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)
        assert at == len(buffer)
        return b"!"

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no hints
        def service(self, details: Any) -> Any:
            return grpc.stream_unary_rpc_method_handler(take) if details.method == METHOD else None

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 * CHUNK)])
    server.add_generic_rpc_handlers((Handlers(),))
    words.tell(str(server.add_insecure_port("127.0.0.1:0")))
    await server.start()
    await server.wait_for_termination()


async def _call_grpc(words: Words, drive: Drive) -> None:
    import grpc

    [port] = words.ask()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary(METHOD)

        async def exchange(payload: bytes) -> None:
            chunks = (payload[start : start + CHUNK] for start in range(0, len(payload), CHUNK))
            await call(chunks, metadata=(("length", str(len(payload))),), wait_for_ready=True)

        await drive(exchange)


async def _serve_hivemind(words: Words) -> None:
    from hivemind.p2p import P2P

    p2p = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"])

    async def handle(info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readexactly(int.from_bytes(await reader.readexactly(LENGTH), "big"))
            writer.write(b"!")
            await writer.drain()

    await p2p.add_binary_stream_handler("bench", handle)
    words.tell(p2p.peer_id.to_base58(), *(str(address) for address in await p2p.get_visible_maddrs()))
    await asyncio.Event().wait()


async def _call_hivemind(words: Words, drive: Drive) -> None:
    from hivemind.p2p import P2P, PeerID

    name, *addresses = words.ask()
    p2p = await P2P.create(initial_peers=addresses, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(name), "bench")

    async def exchange(payload: bytes) -> None:
        writer.write(len(payload).to_bytes(LENGTH, "big"))
        writer.write(payload)
        await writer.drain()
        await reader.readexactly(1)

    await drive(exchange)
