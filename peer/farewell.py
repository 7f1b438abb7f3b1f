"""How a node ends: what was said last leaves, then goodbyes, then the goodbyes of the others."""

from collections.abc import Callable, Set

import anyio

from veilmesh.peer.limits import Kind, Limits
from veilmesh.peer.machine import PeerId
from veilmesh.peer.membership import Membership
from veilmesh.peer.outbox import Outbox

__all__ = ["Farewell"]


class Farewell:
    """The end of one node.

    Args:
        outbox: what waits to leave.
        members: whom to say goodbye to, and who has not said it.
        post: puts a body into the outbox.
        company: others to say goodbye to, and to wait for, so that it does not show who is a neighbour; those who have
            said goodbye are taken out of it as they do.
    """

    def __init__(
        self,
        outbox: Outbox,
        members: Membership,
        post: Callable[[PeerId, Kind, bytes], None],
        limits: Limits,
        company: Set[PeerId] = frozenset(),
    ) -> None:
        self._outbox = outbox
        self._members = members
        self._post = post
        self._limits = limits
        self._company = company
        self._all = frozenset(company)
        self._moved = anyio.Event()

    def stir(self) -> None:
        """Something that the end may wait for has happened."""
        self._moved.set()

    async def say(self, wait_for_others: bool) -> None:
        """End in order. Those that go on without us say no goodbye: then there is nothing to wait for."""
        await self._until(self._limits.flush, lambda: self._outbox.empty)
        for peer in self._members.listening | self._all:
            self._post(peer, Kind.GOODBYE, b"")
        await self._until(
            self._limits.linger,
            lambda: self._outbox.empty and not (wait_for_others and (self._members.present or self._company)),
        )
        # A socket closed with bytes unread is reset, and a reset can overtake our goodbye at the other side.
        await anyio.sleep(self._limits.settle)

    async def _until(self, seconds: float, met: Callable[[], bool]) -> None:
        with anyio.move_on_after(seconds):
            while not met():
                self._moved = anyio.Event()
                with anyio.move_on_after(0.2):
                    await self._moved.wait()
