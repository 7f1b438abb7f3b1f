"""A bare loop of aiomqtt through a broker: chunks of 1 MiB at QoS 1, so many at a time, nothing checked, nothing kept.

What a transport over MQTT is measured by. The topic's last part is a payload's length; a broker keeps the order of one
publisher's messages while the connection stands, and nothing here survives that it breaks.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from transports_turn import Drive, Given, Words  # beside this file

__all__ = ["receive", "run", "send"]

CHUNK = 1 << 20
AT_A_TIME = 8
NODELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


def run(given: Given, main: Callable[[], Awaitable[None]]) -> None:
    """In asyncio."""
    asyncio.run(main())  # type: ignore[arg-type]  # a coroutine


async def receive(given: Given, words: Words) -> None:
    """Chunks into one buffer, an answer when it is full."""
    name, answering = f"bench-{os.getpid()}", set()
    async with _client(given) as client:
        await client.subscribe(f"{name}/+", qos=1)
        words.tell(name)
        buffer, at = bytearray(), 0
        async for message in client.messages:
            if at == 0:
                buffer = bytearray(int(message.topic.value.rpartition("/")[2]))
            buffer[at : at + len(message.payload)] = message.payload
            at += len(message.payload)
            if at == len(buffer):
                at = 0
                answer = asyncio.create_task(client.publish(f"{name}-back", b"!", qos=1))
                answering.add(answer)
                answer.add_done_callback(answering.discard)


async def send(given: Given, words: Words, drive: Drive) -> None:
    """As `receive`."""
    [name] = words.ask()
    slots = asyncio.Semaphore(AT_A_TIME)
    async with _client(given) as client:
        await client.subscribe(f"{name}-back", qos=1)
        answers = aiter(client.messages)

        async def publish(topic: str, chunk: memoryview) -> None:
            async with slots:
                await client.publish(topic, bytes(chunk), qos=1, timeout=60)

        async def exchange(payload: bytes) -> None:
            topic, view = f"{name}/{len(payload)}", memoryview(payload)
            async with asyncio.TaskGroup() as tasks:
                for start in range(0, len(payload), CHUNK):
                    tasks.create_task(publish(topic, view[start : start + CHUNK]))
                await anext(answers)

        await drive(exchange)


def _client(given: Given) -> contextlib.AbstractAsyncContextManager[Any]:
    import aiomqtt

    host, _, port = given.place.partition(":")
    tls = ssl.create_default_context(cafile=str(given.folder / "cert.pem")) if given.variant == "tls" else None
    options = () if given.variant == "nagle" else NODELAY
    client = aiomqtt.Client(
        host, int(port), protocol=aiomqtt.ProtocolVersion.V5, socket_options=options, tls_context=tls
    )
    client.pending_calls_threshold = 1 << 10  # else it warns of what is meant to be
    return client
