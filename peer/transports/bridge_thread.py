"""A transport of asyncio's, for a peer on trio: in a thread, with an event loop of its own.

What crosses between the two loops is a call that the other one makes when it comes to it, so neither stands still while
the other computes. (`introduce` waits: its caller is to hear of a wrong address.) Arrivals come over one at a time, as
they are asked for: what nobody takes waits in the transport's own inbox, with that inbox's bounds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread

from veilmesh.core import LocalError
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import Arrival, Traffic, Transport
from veilmesh.peer.transports.bridge_guest import Errand, Guest
from veilmesh.peer.transports.groups import only
from veilmesh.peer.transports.wrapped import Wrapped

__all__ = ["Elsewhere", "added"]


class Elsewhere(Wrapped):
    """`inner`, which runs on asyncio, as a transport on trio.

    Args:
        inner: not open, and not used by anybody else.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._guest: Guest | None = None
        self._errands: set[Errand] = set()
        self._lost = 0

    @property
    def traffic(self) -> Traffic:
        """The counters of the transport itself, and what was sent while it was closed."""
        return added(super().traffic, Traffic(lost_frames=self._lost))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        """Run the other loop until the context closes. Raises BadInput as the transport does."""
        import trio

        guest = Guest(self._inner, trio.lowlevel.current_trio_token().run_sync_soon)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_visited_by, guest)
                await guest.opened.wait()
                self._guest = guest
                try:
                    yield guest.hatch
                finally:
                    self._guest = None
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        finally:
            guest.hatch.close()
            for errand in self._errands:
                errand.done.set()

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are. Raises BadInput: one is no address of its peer."""
        if self._guest is None:
            super().introduce(addresses)
        else:
            self._guest.introduce(addresses)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """As the transport itself does."""
        await anyio.lowlevel.checkpoint()
        if (guest := self._guest) is None:
            self._lost += 1
            return
        errand = Errand(to, frame)
        self._errands.add(errand)
        guest.soon(partial(guest.begin, errand))
        try:
            await errand.done.wait()
        finally:
            self._errands.discard(errand)
            if not errand.done.is_set():
                guest.soon(partial(guest.give_up, errand))
        if errand.error:
            raise errand.error


async def _visited_by(guest: Guest) -> None:
    """The thread's life. Cancelled, it is told to stop, and waited for."""

    async def told() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            guest.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told)
        await anyio.to_thread.run_sync(guest.main, limiter=anyio.CapacityLimiter(1))
        if not guest.dismissed:  # its user would wait for it for ever
            raise LocalError("a transport in a thread has ended by itself")
        tasks.cancel_scope.cancel()


def added(*counted: Traffic) -> Traffic:
    """Several counters, as one that does not go on counting."""
    return Traffic(
        sent=sum(t.sent for t in counted),
        received=sum(t.received for t in counted),
        dropped_frames=sum(t.dropped_frames for t in counted),
        lost_frames=sum(t.lost_frames for t in counted),
        refused=sum(t.refused for t in counted),
    )
