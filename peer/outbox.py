"""What waits to leave: a line and a carrier for each neighbour, so that a slow one harms only itself.

Bodies leave in order. Signs of life do not wait behind them: they go next, and a newer one takes the place of an older.
(They do wait for the one body that is just being carried: a frame is not interrupted.)
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from veilmesh.core import LocalError
from veilmesh.peer.allowance import Allowance
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
    """

    def __init__(
        self,
        allowance: Allowance,
        carry: Callable[[PeerId, int, bytes], Awaitable[None]],
        emptied: Callable[[], None],
    ) -> None:
        self._allowance = allowance
        self._carry = carry
        self._emptied = emptied
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

    def _left(self, count: int) -> None:
        self._waiting -= count
        if self.empty:
            self._emptied()
