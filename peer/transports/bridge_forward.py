"""What a bridge carries for others: sealed frames between members that have no transport in common.

A header says from whom and to whom. A frame is carried if both are known to the bridge, each on its own side, and the
sender has signed it: nobody else can have a bridge say anything. A bridge reads no more of it than any relay, and what
it changed would be refused. What waits for one receiver is bounded as an inbox is, with a share for each sender; the
rest is dropped and counted.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread

from veilmesh.core import RemoteError
from veilmesh.crypto.frame import Header, read, signed
from veilmesh.crypto.identity import PeerId, peer_id, public_key
from veilmesh.peer.transports.base import MAX_FRAME, Frame, Traffic
from veilmesh.peer.transports.inbox import Inbox

__all__ = ["Forwards"]

WAITING_FRAMES: Final = 256  # for one receiver
WAITING_BYTES: Final = 2 * MAX_FRAME
LONG: Final = 256 << 10  # bytes; hashing more would hold up the event loop
DRAIN_SECONDS: Final = 2.0  # for what is still to be carried when the bridge closes
QUIET_SECONDS: Final = 0.3  # without a frame for others, and there will be none
_MOMENT: Final = 0.02


@dataclass(slots=True)
class _Line:
    """What waits for one receiver, and how much of it there is: also what is just being sent."""

    waiting: Inbox
    under_way: int = 0


class Forwards:
    """Frames on their way through one bridge.

    Args:
        me: the bridge itself, whose frames are not carried on.
        traffic: where dropped frames are counted.
        send: hands a frame on to its receiver.
    """

    def __init__(self, me: PeerId, traffic: Traffic, send: Callable[[PeerId, bytes], Awaitable[None]]) -> None:
        self._me = public_key(me)
        self._traffic = traffic
        self._send = send
        self._sides: Mapping[PeerId, str] = {}
        self._lines: dict[PeerId, _Line] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self.frames = 0
        """How many were carried."""

    def know(self, sides: Mapping[PeerId, str]) -> None:
        """Who is reached on which side; what waits for those who are nobody any more is lost."""
        self._sides = dict(sides)
        for peer in self._lines.keys() - sides.keys():
            self._lines.pop(peer).waiting.close()

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin to carry."""
        self._tasks, self._lines = tasks, {}

    async def takes(self, data: bytes, side: str) -> bool:
        """Whether `data`, which came in on `side`, is for somebody beyond; it then is on its way, or dropped.

        What is for the bridge itself, or for nobody that it carries to, is for its own door to judge.
        """
        try:
            header = read(data)
        except RemoteError:
            return False
        if header.receiver == self._me:
            return False
        sender, receiver = peer_id(header.sender), peer_id(header.receiver)
        if self._sides.get(sender) != side or self._sides.get(receiver, side) == side:
            return False
        if not await _is_signed(data, header):
            return False
        self._offer(sender, receiver, data)
        return True

    async def drained(self) -> None:
        """Wait, a moment, until others have said their last to each other: who closes a bridge cuts them off."""
        frames, quiet = self.frames, 0.0
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._lines and quiet < QUIET_SECONDS:
                await anyio.sleep(_MOMENT)
                busy = self.frames > frames or any(line.under_way for line in self._lines.values())
                frames, quiet = self.frames, 0.0 if busy else quiet + _MOMENT

    def _offer(self, sender: PeerId, receiver: PeerId, data: bytes) -> None:
        if self._tasks is None:
            return
        if (line := self._lines.get(receiver)) is None:
            line = self._lines[receiver] = _Line(Inbox(self._traffic, WAITING_FRAMES, WAITING_BYTES))
            self._tasks.start_soon(self._carry, receiver, line)
        dropped = self._traffic.dropped_frames
        line.waiting.offer(data, sender)
        line.under_way += self._traffic.dropped_frames == dropped

    async def _carry(self, to: PeerId, line: _Line) -> None:
        async for arrival in line.waiting:
            if isinstance(arrival, Frame):
                await self._send(to, arrival.data)
                line.under_way -= 1
                self.frames += 1


async def _is_signed(data: bytes, header: Header) -> bool:
    if len(data) < LONG:
        return signed(data, header.sender)
    return await anyio.to_thread.run_sync(signed, data, header.sender)
