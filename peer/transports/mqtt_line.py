"""The way to one peer through the broker: its present session, what is under way to it, and who carries that."""

import math
from collections.abc import Callable
from typing import Final

import anyio
import anyio.abc

from veilmesh.peer.transports.mqtt_chunks import Piece
from veilmesh.peer.transports.mqtt_names import NO_SESSION, Presence, State
from veilmesh.peer.transports.mqtt_session import Session
from veilmesh.peer.transports.mqtt_window import Window

__all__ = ["Line"]

FLIGHT_BYTES: Final = 8 << 20
"""So many bytes may be at the broker on their way to one peer that has not acknowledged them."""

ROOM_BYTES: Final = 16 << 20
"""So many bytes of frames wait for one peer before a sender of further ones waits."""

GIVE_UP_SECONDS: Final = 120.0
"""Connected to the broker, and so long nothing acknowledged: what waits is lost."""


class Line:
    """One peer, as frames are sent to it.

    Args:
        topic: where it is spoken to.
        chunk_bytes: the size of a chunk.
    """

    def __init__(self, topic: str, chunk_bytes: int) -> None:
        self.topic = topic
        self.session = NO_SESSION
        self.closed = False  # that session has ended
        self._chunk_bytes = chunk_bytes
        self._me = NO_SESSION
        self._window: Window | None = None
        self._connections = 0  # as far as it has said so, in its session
        self._away = False
        self._progress = 0.0
        self._stirred = anyio.Event()
        self._repeated = 0
        self._carrying: anyio.CancelScope | None = None

    @property
    def repeated(self) -> int:
        """How many chunks were said again."""
        return self._repeated + (self._window.repeated if self._window else 0)

    @property
    def under_way(self) -> int:
        """How many frames have not wholly arrived."""
        return len(self._window) if self._window else 0

    def meet(self, me: bytes, session: bytes) -> int:
        """Our session, and the peer's as we are told; an older one says nothing new. How many frames are lost by it."""
        newer = session > self.session
        if not newer and (me == self._me or self.session == NO_SESSION):
            return 0
        lost, self._repeated = self._drop(), self.repeated
        if newer:
            self.session, self.closed, self._connections, self._away = session, False, 0, False
        self._me = me
        self._window = None if me == NO_SESSION else self._new_window()
        self._stir()
        return lost

    def hear(self, me: bytes, said: Presence) -> tuple[int, bool]:
        """The peer's own word: how many frames are lost by it, and whether its connection is."""
        if said.session < self.session:
            return 0, False
        lost = self.meet(me, said.session)
        if said.state is State.CLOSED:
            gone, self.closed = not self.closed, True
            lost += self._drop()
        elif said.state is State.LOST:
            gone = said.connections >= self._connections and not self._away and not self.closed
        else:
            gone = False
            if 0 < self._connections < said.connections:  # what was at the broker for it may be lost
                self.resume()
        self._away = said.state is not State.HERE and said.connections >= self._connections
        self._connections = max(self._connections, said.connections)
        self._stir()
        return lost, gone

    async def met(self) -> None:
        """Wait until the peer's session is known."""
        while self.session == NO_SESSION:
            await self._stirred.wait()

    async def put(self, frame: bytes) -> bool:
        """Wait for room, and put `frame` in; whether there is a peer to have it."""
        session = self.session
        while self.session == session and not self.closed and self._window and not self._window.has_room(len(frame)):
            await self._stirred.wait()
        if self.closed or self.session == NO_SESSION or self.session != session or self._window is None:
            return False
        if not len(self._window):
            self._progress = anyio.current_time()
        self._window.add(frame)
        self._stir()
        return True

    def acknowledged(self, pieces: tuple[Piece, ...], now: float) -> None:
        """These chunks have arrived."""
        if self._window:
            self._progress = now
            self._window.acknowledged(pieces, now)
            self._stir()

    def resume(self) -> None:
        """The connection to the broker is new."""
        if self._window:
            self._progress = anyio.current_time()
            self._window.resume()
            self._stir()

    async def drained(self) -> None:
        """Wait until nothing is under way, or nobody is there for it."""
        while self._window and len(self._window) and not self.closed and not self._away:
            await self._stirred.wait()

    def end(self) -> int:
        """Nothing is carried any more; how many frames are lost by it."""
        if self._carrying:
            self._carrying.cancel()
            self._carrying = None
        lost, self._repeated = self._drop(), self.repeated
        self._window, self._me = None, NO_SESSION
        self._stir()
        return lost

    async def carry(self, session: Session, tasks: anyio.abc.TaskGroup, lost: Callable[[int], None]) -> None:
        """Say what is to be said, until cancelled."""
        with anyio.CancelScope() as self._carrying:
            while True:
                await session.connected()
                now = anyio.current_time()
                if self._window and len(self._window) and now > self._progress + GIVE_UP_SECONDS:
                    lost(self._drop())
                if self._window and (chunk := self._window.say(now)):
                    await session.publish_soon(self.topic, chunk.to_bytes(), tasks)
                    continue
                due = self._window.due if self._window else None
                with anyio.move_on_after(math.inf if due is None else max(0.0, due - now)):
                    await self._stirred.wait()

    def _new_window(self) -> Window:
        return Window(self._me, self.session, self._chunk_bytes, FLIGHT_BYTES, ROOM_BYTES)

    def _drop(self) -> int:
        """Whatever waits is lost: how many frames. The numbers go on, so that the receiver knows what it had."""
        return self._window.drop() if self._window else 0

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = anyio.Event()
