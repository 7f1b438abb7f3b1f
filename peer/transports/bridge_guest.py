"""What runs on asyncio's side of `bridge_thread`: a transport, in a thread, and how both sides speak of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from veilmesh.core import BadInput, LocalError
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import Arrival, Transport

__all__ = ["Errand", "Guest", "Hatch"]

ANSWER_SECONDS: Final = 10.0  # for the other loop to look at addresses


class Soon(Protocol):
    """Have an event loop call something, from any thread."""

    def __call__(self, what: Callable[[], object], /) -> object: ...


@dataclass(eq=False, slots=True)
class Errand:
    """A frame that is on its way through the transport."""

    to: PeerId
    frame: bytes
    done: anyio.Event = field(default_factory=anyio.Event)  # of trio
    scope: anyio.CancelScope | None = None  # of asyncio
    error: LocalError | None = None


class Hatch:
    """What arrives in asyncio, for a reader on trio: asked for, and handed over, one at a time."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._asked = self._closed = False
        self._arrival: Arrival | None = None
        self._stirred = anyio.Event()

    def put(self, arrival: Arrival) -> None:
        """Called by asyncio's side, once it was asked."""
        self._arrival = arrival
        self._stirred.set()

    def close(self) -> None:
        """End the iteration."""
        self._closed, self._arrival = True, None
        self._stirred.set()

    def __aiter__(self) -> "Hatch":
        return self

    async def __anext__(self) -> Arrival:
        await anyio.lowlevel.checkpoint()  # before anything is taken: a cancelled reader loses nothing
        while self._arrival is None:
            if self._closed:
                raise StopAsyncIteration
            self._stirred = anyio.Event()
            if not self._asked:
                self._asked = True
                self._ask()
            await self._stirred.wait()
        arrival, self._arrival, self._asked = self._arrival, None, False
        return arrival


class Guest:
    """What there is while a transport runs elsewhere, on both sides.

    Args:
        inner: the transport.
        back: has the loop that this was made in call something.
    """

    def __init__(self, inner: Transport, back: Soon) -> None:
        self._inner = inner
        self._back = back
        self._call: Soon | None = None
        self._scope: anyio.CancelScope | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._asked: anyio.Event | None = None
        self._stopping = False
        self.dismissed = False
        """Whether it was told to stop."""
        self.opened = anyio.Event()
        self.hatch = Hatch(lambda: self.soon(self._ask))

    def main(self) -> None:
        """In the thread: run the transport until it is to stop."""
        anyio.run(self._live, backend="asyncio")

    def soon(self, what: Callable[[], object]) -> bool:
        """From trio: have asyncio call `what`; whether there is one that will."""
        if self._call is None:
            return False
        try:
            self._call(what)
        except RuntimeError:  # it has ended
            return False
        return True

    def stop(self) -> None:
        """From trio: close the transport, or give up opening it."""
        self.dismissed = self._stopping = True  # read by a loop that has not begun yet
        self.soon(self._end)

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """From trio: tell it, and wait for what it says to it. Raises BadInput."""
        said: Future[None] = Future()
        if not self.soon(partial(self._introduce, dict(addresses), said)):
            return
        try:
            said.result(ANSWER_SECONDS)
        except TimeoutError:
            raise LocalError("a transport in a thread does not answer") from None

    # --- in asyncio ------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        self._scope, self._asked = anyio.CancelScope(), anyio.Event()
        # In a context of this loop's: the caller's would say that it is the other one.
        self._call = partial(asyncio.get_running_loop().call_soon_threadsafe, context=copy_context())
        if self._stopping:
            return
        with self._scope:
            async with self._inner.open() as inbox, anyio.create_task_group() as self._tasks:
                self._back(self.opened.set)
                try:
                    await self._hand_over(inbox)
                finally:
                    self._stopping = True  # nothing more is begun

    def _end(self) -> None:
        """What an open transport runs is not cancelled with the rest: it closes in its own way."""
        assert self._scope is not None
        (self._tasks.cancel_scope if self._tasks else self._scope).cancel()

    async def _hand_over(self, inbox: AsyncIterator[Arrival]) -> None:
        await self._asking()
        async for arrival in inbox:
            self._back(partial(self.hatch.put, arrival))
            await self._asking()

    async def _asking(self) -> None:
        assert self._asked is not None
        await self._asked.wait()
        self._asked = anyio.Event()

    def _ask(self) -> None:
        if self._asked is not None:
            self._asked.set()

    def _introduce(self, addresses: dict[PeerId, str], said: "Future[None]") -> None:
        try:
            self._inner.introduce(addresses)
        except (BadInput, LocalError) as error:
            said.set_exception(error)
        else:
            said.set_result(None)

    def begin(self, errand: Errand) -> None:
        """In asyncio: send a frame."""
        if self._tasks is not None and not self._stopping:
            errand.scope = anyio.CancelScope()
            self._tasks.start_soon(self._run, errand, errand.scope)

    def give_up(self, errand: Errand) -> None:
        """In asyncio: nobody waits for this frame to leave any more."""
        if errand.scope:
            errand.scope.cancel()

    async def _run(self, errand: Errand, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await self._inner.send(errand.to, errand.frame)
        except LocalError as error:
            errand.error = error
        finally:
            self._back(errand.done.set)
