"""A process between one peer and everybody else, that makes its link slow: a TCP relay in front of the peer's port.

Theory of operation. Others are told the relay's own port; what they send there reaches the peer over the lane DOWN.
The peer dials a port of the relay for every neighbour, or one for its broker, and what it sends there goes over the
lane UP. Whoever answers
uses the other lane. A connection exists a round trip after it was asked for, as without a relay. When a lane is shut,
nobody is read for it; when a receiver does not read, its sender is not read either. A side that ends is told to the
other side behind the last of its bytes; a side that breaks breaks the other.

It needs no rights and no kernel module, and it shapes TCP only. It ends with the peer that forked it.
"""

import contextlib
import errno
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Final

from veilmesh.core import BadInput, LocalError
from veilmesh.peer.processes import Child, Link, fork
from veilmesh.peer.shaping import DOWN, PIECE, UP, Lane, Pace

__all__ = ["Relay", "Shaper"]

_SOCKET_BYTES: Final = 32 << 10  # the kernel is not to hold much for us: what waits is to be seen by who sends it
_MOST_PENDING: Final = 64 << 10  # of what has arrived for a receiver that does not read
_BACKLOG: Final = 128

Place = tuple[str, int]


class Relay:
    """The relay of one peer, from the peer's side. Start it before any event loop runs, and close it at last."""

    def __init__(self, pace: Pace, host: str, close: list[Link]) -> None:
        self._keep(fork("link", lambda link: Shaper(pace, host, link).run(), close), host)

    @classmethod
    def kept(cls, child: Child, host: str) -> "Relay":
        """The relay that this process started before it became another program."""
        made = cls.__new__(cls)
        made._keep(child, host)
        return made

    def _keep(self, child: Child, host: str) -> None:
        self.child, self.host = child, host
        self._ways: dict[Place, Place] = {}
        self.pid, self.link = child.pid, child.link

    def front(self, peer: Place) -> Place:
        """Where others reach the peer that listens at `peer`."""
        return self._asked({"front": peer})

    def way(self, other: Place) -> Place:
        """Where the peer reaches `other`."""
        if other not in self._ways:
            self._ways[other] = self._asked({"way": other})
        return self._ways[other]

    def carried(self) -> tuple[int, int]:
        """Bytes that went up and down so far."""
        self.link.send({"carried": True})
        up, down = self._answer()["carried"]
        return up, down

    def close(self) -> None:
        """End it."""
        self.child.kill()

    def _asked(self, question: dict[str, Place]) -> Place:
        self.link.send(question)
        answer = self._answer()
        if "failed" in answer:
            raise BadInput(f"No slow link can be had: {answer['failed']}; leave out edge.rate and edge.delay.")
        return self.host, answer["port"]

    def _answer(self) -> Any:
        if (answer := self.link.receive()) is None:
            raise LocalError("the process that is the peer's link has ended")
        return answer


@dataclass(slots=True)
class _Side:
    """One end of a connection through the relay."""

    socket: socket.socket
    flow: int
    out: int  # the lane its own bytes take
    since: float  # when its first bytes can be at the other end
    other: "_Side" = field(init=False)
    pending: bytearray = field(default_factory=bytearray)  # has arrived for it, and is not written yet
    connected: bool = True
    ended: bool = False  # it will say no more
    told: bool = False  # that the other side will say no more
    closing: bool = False  # to be told, once all that is pending is written


class Shaper:
    """The relay itself, in its own process. `run` returns when the peer has gone.

    Args:
        pace: of the link.
        host: where it listens.
        link: to the peer, which says what it wants: {"front" | "way": [host, port]} or {"carried"}.
    """

    def __init__(self, pace: Pace, host: str, link: Link) -> None:
        self._delay = pace.delay
        self._lanes = (Lane(pace), Lane(pace))
        self._host = host
        self._link = link
        self._selector = selectors.DefaultSelector()
        self._sides: dict[tuple[int, int], _Side] = {}  # by flow, and the lane that ends there
        self._turn: list[_Side] = []
        self._flows = 0

    def run(self) -> None:
        """Carry until the link to the peer ends."""
        self._selector.register(self._link.socket, selectors.EVENT_READ, None)
        while True:
            for key, events in self._selector.select(self._wait(time.monotonic())):
                if key.data is None:
                    if not self._obey():
                        return
                elif isinstance(key.data, _Side):
                    self._move(key.data, events)
                else:
                    self._accept(key.fileobj, *key.data)  # type: ignore[arg-type]  # it is the socket we registered
            self._deliver(time.monotonic())
            self._listen_to_all(time.monotonic())

    # --- what the peer asks for ----------------------------------------------------------------------------------

    def _obey(self) -> bool:
        messages, alive = self._link.drain()
        for message in messages:
            self._link.send(self._answer(message))
        return alive

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        if "carried" in message:
            return {"carried": [lane.carried for lane in self._lanes]}
        [(what, (host, port))] = message.items()
        try:
            return {"port": self._listen(_numeric(host, port), DOWN if what == "front" else UP)}
        except OSError as error:
            return {"failed": f"{host}: {error.strerror}"}

    def _listen(self, target: Place, lane: int) -> int:
        listening = socket.socket(_family(self._host))
        _small(listening)
        listening.bind((self._host, 0))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, (target, lane))
        port: int = listening.getsockname()[1]
        return port

    # --- connections ---------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket, target: Place, lane: int) -> None:
        try:
            came, _ = listening.accept()
        except OSError:  # it has gone again, or there is no descriptor left for it
            return
        goes = socket.socket(_family(target[0]))
        _small(goes)
        for end in (came, goes):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now, self._flows = time.monotonic(), self._flows + 1
        asker = _Side(came, self._flows, lane, now + 3 * self._delay)  # there and back, before its first byte leaves
        asked = _Side(goes, self._flows, 1 - lane, now + 2 * self._delay, connected=False)
        asker.other, asked.other = asked, asker
        self._sides[asker.flow, lane], self._sides[asker.flow, 1 - lane] = asked, asker
        self._turn += [asker, asked]
        if goes.connect_ex(target) not in (0, errno.EINPROGRESS):
            self._break(asker)

    def _move(self, side: _Side, events: int) -> None:
        if (side.flow, 1 - side.out) not in self._sides:  # it broke this very turn
            return
        try:
            if events & selectors.EVENT_WRITE:
                self._write(side)
            if events & selectors.EVENT_READ:
                self._read(side)
        except BlockingIOError:
            return
        except OSError:
            self._break(side)

    def _read(self, side: _Side) -> None:
        lane, now = self._lanes[side.out], time.monotonic()
        if lane.opens(now):  # somebody else filled it, this very turn
            return
        data = side.socket.recv(lane.piece)
        side.ended = not data
        lane.put(side.flow, data, now, side.since)

    def _write(self, side: _Side) -> None:
        if not side.connected:
            if number := side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            side.connected = True
        if side.pending:
            del side.pending[: side.socket.send(side.pending)]
        if side.closing and not side.pending and not side.told:
            side.told = True
            side.socket.shutdown(socket.SHUT_WR)
            self._close_if_done(side)

    def _deliver(self, now: float) -> None:
        for number, lane in enumerate(self._lanes):
            for flow, data in lane.arrived(now):
                if (side := self._sides.get((flow, number))) is None:
                    continue
                side.pending += data
                side.closing |= not data
                if side.connected:
                    self._move(side, selectors.EVENT_WRITE)

    def _close_if_done(self, side: _Side) -> None:
        if side.told and side.other.told:
            self._forget(side)

    def _break(self, side: _Side) -> None:
        """One side has gone without a word: so does the other, at once."""
        for end in (side, side.other):
            with contextlib.suppress(OSError):
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._forget(side)

    def _forget(self, side: _Side) -> None:
        for end in (side, side.other):
            self._sides.pop((end.flow, 1 - end.out), None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end.socket)
            end.socket.close()
        self._turn = [one for one in self._turn if one.flow != side.flow]

    # --- who is listened to --------------------------------------------------------------------------------------

    def _listen_to_all(self, now: float) -> None:
        """Ask the system for what can be used now. Who was first is last next time, so that all get their share."""
        shut = [lane.opens(now) > 0 for lane in self._lanes]
        self._turn = self._turn[1:] + self._turn[:1]
        for side in self._turn:
            reads = side.connected and not side.ended and not shut[side.out] and len(side.other.pending) < _MOST_PENDING
            writes = not side.connected or bool(side.pending) or (side.closing and not side.told)
            self._ask(side, reads * selectors.EVENT_READ | writes * selectors.EVENT_WRITE)

    def _ask(self, side: _Side, events: int) -> None:
        known = self._selector.get_map().get(side.socket)
        if known is None and events:
            self._selector.register(side.socket, events, side)
        elif known is not None and not events:
            self._selector.unregister(side.socket)
        elif known is not None and known.events != events:
            self._selector.modify(side.socket, events, side)

    def _wait(self, now: float) -> float | None:
        """Seconds until something arrives, or a lane that is shut opens; None: until somebody does something."""
        times = [seconds for lane in self._lanes if (seconds := lane.next(now)) is not None]
        times += [seconds for lane in self._lanes if (seconds := lane.opens(now))]
        return min(times, default=None)


def _numeric(host: str, port: int) -> Place:
    """Where a name leads: looked up once, for a look-up would hold up everybody. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return str(found[0][4][0]), port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _small(end: socket.socket) -> None:
    """Before it listens or connects. With segments of loopback's 64 KB, a window as small as this would stall."""
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PIECE)
    for which in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, which, _SOCKET_BYTES)
