"""A broker that meddles: a proxy in front of an honest one, which does to messages on their way out what it is told."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
import anyio.abc

__all__ = ["Fate", "copied", "meddler"]

Fate = Callable[[bytes], Iterable[bytes]]
"""What becomes of a PUBLISH packet on its way from the broker to a peer: the packets that are sent instead."""

_PUBLISH = 3


@asynccontextmanager
async def meddler(port: int, fate: Fate) -> AsyncIterator[str]:
    """HOST:PORT of a proxy for the broker at `port`; it lives as long as the context."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def serve(client: anyio.abc.SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", port) as broker, anyio.create_task_group() as both:
            both.start_soon(copied, client, broker, both.cancel_scope)
            await _packets(broker, client, fate)
            both.cancel_scope.cancel()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def copied(source: anyio.abc.SocketStream, to: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
    """Carry what comes until either end closes, and then cancel `scope`."""
    try:
        async for data in source:
            await to.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()


async def _packets(source: anyio.abc.SocketStream, to: anyio.abc.SocketStream, fate: Fate) -> None:
    held = b""
    try:
        async for data in source:
            held += data
            while (size := _size(held)) and len(held) >= size:
                packet, held = held[:size], held[size:]
                for changed in fate(packet) if packet[0] >> 4 == _PUBLISH else [packet]:
                    await to.send(changed)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


def _size(held: bytes) -> int:
    """Of the packet that begins here, with its header (MQTT 5, 2.1.4); 0 while that is not known."""
    length = 0
    for place, byte in enumerate(held[1:5]):
        length |= (byte & 127) << 7 * place
        if byte < 128:
            return 2 + place + length
    return 0
