"""What waits to leave: a line and a carrier for each neighbour, so that a slow one harms only itself.

Bodies leave in order. Signs of life do not wait behind them: they go next, and a newer one takes the place of an older.
(They do wait for the one body that is just being carried: a frame is not interrupted.)

With cover traffic everything waits for slots, which leave at a fixed pace, full or empty (`cover`).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from veilmesh.core import LocalError
from veilmesh.peer.allowance import Allowance
from veilmesh.peer.cover import Cover, Packer, Slot, Slots
from veilmesh.peer.limits import Kind
from veilmesh.peer.machine import PeerId

__all__ = ["Outbox"]


@dataclass(slots=True)
class _Line:
    """What waits for one neighbour."""

    scope: anyio.CancelScope
    bodies: deque[tuple[int, bytes]] = field(default_factory=deque)
    first: dict[int, bytes] = field(default_factory=dict)  # by kind; the lowest kind first
    something: anyio.Event = field(default_factory=anyio.Event)

    async def next(self) -> tuple[int, bytes, bool]:
        """Kind, body, and whether it waited in order."""
        while not self.first and not self.bodies:
            self.something = anyio.Event()
            await self.something.wait()
        if self.first:
            kind = min(self.first)
            return kind, self.first.pop(kind), False
        return *self.bodies.popleft(), True


class Outbox:
    """Bodies on their way to each neighbour.

    Args:
        allowance: how much may wait, in order, for one neighbour.
        carry: takes one body away; what it does not deliver is lost.
        emptied: called whenever nothing waits any more.
        cover: how what is said is covered; None: it is not.
        clock: seconds, for slots.
        crowded: whether so much is on its way to a neighbour that a slot would only wait behind it, and is left out.
    """

    def __init__(
        self,
        allowance: Allowance,
        carry: Callable[[PeerId, int, bytes], Awaitable[None]],
        emptied: Callable[[], None],
        cover: Cover | None = None,
        clock: Callable[[], float] = anyio.current_time,
        crowded: Callable[[PeerId], bool] = lambda to: False,
    ) -> None:
        self._allowance = allowance
        self._carry = carry
        self._emptied = emptied
        self._cover = cover
        self._clock = clock
        self._crowded = crowded
        self.slots = self.idle = self.missed = 0  # of cover: that left, of these without anything, that were left out
        self._lines: dict[PeerId, _Line] = {}
        self._waiting = 0

    @property
    def empty(self) -> bool:
        """Whether everything has left."""
        return not self._waiting

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._lines

    def start(self, neighbours: Iterable[PeerId], tasks: TaskGroup) -> None:
        """Begin to carry to these, and go on carrying to the others."""
        for peer in neighbours:
            self._lines[peer] = line = _Line(anyio.CancelScope())
            if self._cover:
                tasks.start_soon(self._run_covered, peer, line, self._cover)
            else:
                tasks.start_soon(self._run, peer, line)

    def stop(self, peer: PeerId) -> None:
        """Carry nothing to `peer` any more; what waits for it is lost."""
        line = self._lines.pop(peer)
        line.scope.cancel()
        for _, body in line.bodies:
            self._allowance.give_back(peer, len(body))
        self._left(len(line.bodies) + len(line.first))
        line.bodies.clear()
        line.first.clear()

    def post(self, to: PeerId, kind: int, body: bytes) -> bool:
        """Queue a body; whether there was room. Raises LocalError if `to` is not a neighbour."""
        line = self._line(to)
        if not self._allowance.take(to, len(body)):
            return False
        line.bodies.append((kind, body))
        self._waiting += 1
        line.something.set()
        return True

    def hasten(self, to: PeerId, kind: int, body: bytes) -> None:
        """Send a short body next, instead of an earlier one of this kind that still waits. Raises as `post` does."""
        line = self._line(to)
        self._waiting += kind not in line.first
        line.first[kind] = body
        line.something.set()

    def _line(self, to: PeerId) -> _Line:
        if (line := self._lines.get(to)) is None:
            raise LocalError(f"the machine speaks to {to}, which is not a neighbour")
        return line

    async def _run(self, to: PeerId, line: _Line) -> None:
        with line.scope:
            while True:
                kind, body, in_order = await line.next()
                try:
                    await self._carry(to, kind, body)
                finally:
                    if in_order:
                        self._allowance.give_back(to, len(body))
                    self._left(1)

    async def _run_covered(self, to: PeerId, line: _Line, cover: Cover) -> None:
        slots, packer = Slots(self._clock(), cover.pace), Packer(cover.octets)
        with line.scope:
            while True:
                await anyio.sleep(max(0.0, slots.due - self._clock()))
                missed, crowded = slots.missed, self._crowded(to)
                slots.taken(self._clock())
                self.missed += slots.missed - missed + crowded
                if not crowded:
                    await self._carry_slot(to, packer.slot(line.first, line.bodies))

    async def _carry_slot(self, to: PeerId, slot: Slot) -> None:
        self.slots, self.idle = self.slots + 1, self.idle + slot.idle
        try:
            await self._carry(to, Kind.COVER, slot.body)
        finally:
            for _, body in slot.left:
                self._allowance.give_back(to, len(body))
            if count := slot.signs + len(slot.left):
                self._left(count)

    def _left(self, count: int) -> None:
        self._waiting -= count
        if self.empty:
            self._emptied()
