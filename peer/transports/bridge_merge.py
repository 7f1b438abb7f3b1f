"""What arrives by several ways, as one iterator.

It asks a way for something only when its reader waits, and holds at most one arrival of each. What nobody takes waits
in the ways' own inboxes, so their bounds and every sender's share hold as they are, and a flood on one way fills that
one's inbox only.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel

from veilmesh.peer.transports.base import Arrival

__all__ = ["Merged"]


class Merged:
    """An async iterator of arrivals, way by way in turn. One reader."""

    def __init__(self) -> None:
        self._waiting: deque[Arrival] = deque()
        self._asked = anyio.Event()
        self._something = anyio.Event()
        self._closed = False

    async def pump(self, inbox: AsyncIterator[Arrival], ours: Callable[[Arrival], Awaitable[bool]]) -> None:
        """Take from one way, for as long as it lasts; what is not `ours` has been seen to, and is not handed on."""
        await self._asked.wait()
        async for arrival in inbox:
            if await ours(arrival) and not self._closed:
                self._waiting.append(arrival)
                if self._asked.is_set():  # that is enough for this time; others may be waiting for one that is not
                    self._asked = anyio.Event()
                self._something.set()
            await self._asked.wait()

    def close(self) -> None:
        """End the iteration; what was not taken yet is forgotten, and so is what is `ours` of what still comes."""
        self._closed = True
        self._waiting.clear()
        self._asked.set()
        self._something.set()

    def __aiter__(self) -> "Merged":
        return self

    async def __anext__(self) -> Arrival:
        await anyio.lowlevel.checkpoint()  # before anything is taken: a cancelled reader loses nothing
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._something = anyio.Event()
            self._asked.set()
            await self._something.wait()
        return self._waiting.popleft()
