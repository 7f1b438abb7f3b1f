"""Signs of life: who is here, who hears us, and whether the mesh is up.

Every neighbour is told once per heartbeat that we are here, and whether we have heard it; one that asks is answered at
once. The mesh is up when all that this peer begins with have answered; or, if it joins a mesh by way of contacts, all
of those, or one and a moment has passed; or, if it has neither, from the start.
"""

from collections.abc import Callable
from typing import Final

import anyio

from veilmesh.peer.limits import IN_CLEAR, Kind, Limits
from veilmesh.peer.machine import PeerId
from veilmesh.peer.membership import Membership
from veilmesh.peer.outbox import Outbox

__all__ = ["HEARD", "NOT_YET", "Presence"]

_CALL_SECONDS: Final = 0.2
_GATHER_CALLS: Final = 10
"""Once one contact has let a newcomer in, the others have so many calls' time: what one says another can vouch for."""

NOT_YET: Final = b"\x00"
HEARD: Final = b"\x01"


class Presence:
    """One peer's word with its neighbours about who is there.

    Args:
        founders: all of these must answer before the mesh is up.
        contacts: without founders, one of these must.
        members: who is believed to be alive.
        outbox: carries signs of life.
        changed: told whenever somebody came or went, once the mesh is up.
        hello: how this peer announces itself to those that may not know it; None: everybody knows it.
    """

    def __init__(
        self,
        founders: frozenset[PeerId],
        contacts: frozenset[PeerId],
        limits: Limits,
        outbox: Outbox,
        changed: Callable[[], None],
        hello: Callable[[], bytes] | None,
    ) -> None:
        self._founders = founders
        self._contacts = contacts
        self._outbox = outbox
        self._changed = changed
        self._hello = hello
        self._hears_us: set[PeerId] = set()
        self._new: dict[PeerId, int] = {}  # never heard yet: heartbeats since they came
        self.members = Membership(founders, limits.patience, limits.grace)
        self.up = anyio.Event()
        self._see()

    @property
    def awaited(self) -> list[PeerId]:
        """Those the mesh waits for that have not answered; of contacts, one would do."""
        answered = self._hears_us & self.members.present
        return sorted((self._founders or self._contacts) - answered)

    async def come_up(self, seconds: float) -> str | None:
        """Wait until the mesh is up, calling all the while; after so many seconds, a sentence that says for whom."""
        gathering = _GATHER_CALLS
        with anyio.move_on_after(seconds):
            while not self.up.is_set():
                self.call()
                with anyio.move_on_after(_CALL_SECONDS):
                    await self.up.wait()
                if self._answered() and (gathering := gathering - 1) <= 0:
                    self.up.set()
        if self.up.is_set():
            return None
        names, who = (
            (", ".join, "they run") if self._founders else (" or ".join, "one of them runs, lets this peer in,")
        )
        return (
            f"Waited {seconds:g} s for {names(self.awaited)} to answer, in vain; "
            f"see that {who} and can be reached, or raise timing.start."
        )

    def call(self) -> None:
        """Say to those that have not answered yet that we are here."""
        for peer in self._founders - self._hears_us:
            self.tell(peer)

    def beat(self) -> None:
        """A sign of life to everybody; not to those that said goodbye and fell silent.

        To newcomers that never answer ever more rarely: a crowd that comes at once is not told everything twice.
        """
        for peer in self.members.listening.union(self.members.unheard):
            if peer in self._new:
                self._new[peer] += 1
            if self._new.get(peer, 1).bit_count() == 1:  # 1, 2, 4, ...
                self.tell(peer)

    def tell(self, peer: PeerId) -> None:
        """A sign of life, and who we are if `peer` may not know."""
        heard = peer in self.members.listening
        if self._hello and not heard:
            self._outbox.hasten(peer, IN_CLEAR, self._hello())
        self._outbox.hasten(peer, Kind.PRESENCE, HEARD if heard else NOT_YET)

    def heard(self, peer: PeerId, now: float) -> bool:
        """`peer` said something; whether it is here again, or for the first time."""
        back = self.members.heard(peer, now)
        self._new.pop(peer, None)
        if back:
            self._say()
        return back

    def answer(self, peer: PeerId, body: bytes) -> None:
        """`peer` says that it is here, and whether it hears us."""
        news = body == HEARD and peer not in self._hears_us
        if news:
            self._hears_us.add(peer)
        if news or body == NOT_YET:  # it may still be waiting for our word
            self._outbox.hasten(peer, Kind.PRESENCE, HEARD)
        self._see()

    def left(self, peer: PeerId) -> None:
        """`peer` said goodbye."""
        if self.members.left(peer):
            self._say()

    def expect(self, peer: PeerId, now: float) -> None:
        """`peer` is a neighbour from now on."""
        self.members.add(peer, now)
        self._new[peer] = 0

    def renewed(self, peer: PeerId, now: float) -> None:
        """`peer` has begun anew: it is gone, until it is heard."""
        self._hears_us.discard(peer)
        self._new[peer] = 0
        if self.members.renew(peer, now):
            self._say()

    def forgotten(self, peer: PeerId) -> None:
        """`peer` is nobody any more."""
        self._hears_us.discard(peer)
        self._new.pop(peer, None)
        self.members.drop(peer)

    def broken(self, peer: PeerId, now: float) -> None:
        """The transport lost its connection to `peer`; if it is there after all, it will answer."""
        if peer in self.members:  # a transport may know more peers than we talk to
            self.members.broken(peer, now)
            self.tell(peer)

    def tick(self, now: float) -> list[PeerId]:
        """Those that have just fallen silent."""
        if lost := self.members.tick(now):
            self._say()
        return lost

    def _see(self) -> None:
        if self._founders:
            up = self._hears_us >= self._founders and not self._founders & set(self.members.unheard)
        else:
            up = self._answered() >= self._contacts
        if up:
            self.up.set()

    def _answered(self) -> frozenset[PeerId]:
        """The contacts that have let this newcomer in."""
        return self._contacts & self._hears_us & self.members.present

    def _say(self) -> None:
        if self.up.is_set():  # before that, `Started` will say it
            self._changed()
