"""One slow link, as arithmetic: what is put on it, when it has left, and when it arrives. Pure; `now` is an argument.

Theory of operation. A link has a lane each way. A lane sends one piece after the other at its rate (so every connection
of a peer shares it), and each piece arrives a delay after the last of its bits has left. At most BUFFER_SECONDS of work
wait for a lane: then it is shut, nobody reads for it, and TCP tells whoever sends to wait, as a router's queue does by
dropping. Counted is what TCP carries; the headers of its packets, 3 % of a full one, are not.
"""

import heapq
from dataclasses import dataclass, field
from typing import Final

__all__ = ["BUFFER_SECONDS", "DOWN", "PIECE", "UP", "Lane", "Pace"]

BUFFER_SECONDS: Final = 0.2
"""How much work may wait for a lane before it is shut."""

PIECE: Final = 1448
"""Bytes put on a lane at a time, at least: the payload of one Ethernet packet, so that connections take turns."""

UP, DOWN = 0, 1  # out of the peer, into it

_PIECE_SECONDS = 0.002  # a fast lane takes more at a time: pieces cost a program more than they cost a wire


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a link is, each way: `rate` in bits a second (0: no limit), `delay` in seconds, one way."""

    rate: float = 0.0
    delay: float = 0.0

    def __str__(self) -> str:
        rate = f"{self.rate / 1e6:g} Mbit/s" if self.rate else "any rate"
        return f"{rate} and {self.delay * 1e3:g} ms each way"


@dataclass(slots=True)
class Lane:
    """One direction of a link."""

    pace: Pace
    carried: int = 0  # bytes that were put on it so far
    _free: float = 0.0  # when all of it will have left
    _on_its_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _count: int = 0

    @property
    def piece(self) -> int:
        """How many bytes to put on it at a time."""
        return max(PIECE, int(self.pace.rate / 8 * _PIECE_SECONDS)) if self.pace.rate else 1 << 16

    def opens(self, now: float) -> float:
        """Seconds until it takes something again; 0 where it does."""
        return max(0.0, self._free - now - BUFFER_SECONDS)

    def put(self, flow: int, data: bytes, now: float, not_before: float = 0.0) -> float:
        """Put `data` of connection `flow` on it (nothing: the end of that connection's bytes); when it will arrive.

        `not_before`: when the connection itself is there, at the earliest. What one flow puts arrives in order, as long
        as its `not_before` does not fall.
        """
        self._free = max(now, self._free)
        if self.pace.rate:
            self._free += 8 * len(data) / self.pace.rate
        arrives = max(self._free + self.pace.delay, not_before)
        self._count += 1
        self.carried += len(data)
        heapq.heappush(self._on_its_way, (arrives, self._count, flow, data))
        return arrives

    def arrived(self, now: float) -> list[tuple[int, bytes]]:
        """What has arrived by now: (flow, data), in order."""
        found = []
        while self._on_its_way and self._on_its_way[0][0] <= now:
            _, _, flow, data = heapq.heappop(self._on_its_way)
            found.append((flow, data))
        return found

    def next(self, now: float) -> float | None:
        """Seconds until something arrives; None: nothing is on its way."""
        return max(0.0, self._on_its_way[0][0] - now) if self._on_its_way else None
