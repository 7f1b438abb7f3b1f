"""Child processes that cannot outlive their parent, however it ends.

A child is forked from a preloaded parent (seconds and hundreds of megabytes cheaper than a fresh interpreter with
torch), gets a socket to it, and dies with it: on Linux the kernel kills it when its parent dies (PR_SET_PDEATHSIG);
elsewhere it notices that the socket has ended. Fork only from a process that runs no other thread and has not computed
with torch yet: a forked copy of a busy thread pool waits for ever.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from veilmesh.core import LocalError

__all__ = ["Child", "Link", "die_with_parent", "fork"]

_PR_SET_PDEATHSIG = 1
_HEADER = 4


class Link:
    """One end of a socket between a parent and its child: whole msgpack messages, blocking or not."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = bytearray()

    @classmethod
    def of(cls, handle: int) -> "Link":
        """The end that this process has under a number, from before it became another program."""
        end = socket.socket(fileno=handle)
        end.set_inheritable(False)
        return cls(end)

    def send(self, message: object) -> None:
        """Send one message; a peer that has gone is not an error here, its end is noticed elsewhere."""
        raw = msgspec.msgpack.encode(message)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(len(raw).to_bytes(_HEADER, "big") + raw)

    def receive(self) -> Any:
        """The next message, or None when the other end has closed. Blocks."""
        while (message := self._take()) is None:
            if not self._fill():
                return None
        return message

    def drain(self) -> tuple[list[Any], bool]:
        """Every message that can be had after one read, and whether the other end is still there."""
        alive = self._fill()
        found = []
        while (message := self._take()) is not None:
            found.append(message)
        return found, alive

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def _fill(self) -> bool:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def _take(self) -> Any:
        size = int.from_bytes(self._buffer[:_HEADER], "big")
        if len(self._buffer) < _HEADER + size or len(self._buffer) < _HEADER:
            return None
        raw = bytes(self._buffer[_HEADER : _HEADER + size])
        del self._buffer[: _HEADER + size]
        return msgspec.msgpack.decode(raw)


@dataclass(slots=True)
class Child:
    """A forked child, from its parent's side."""

    name: str
    pid: int
    link: Link
    status: int | None = None  # os.waitpid's status, once reaped

    def poll(self) -> bool:
        """Whether it has ended (and reap it)."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def ended(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return "running"
        if os.WIFSIGNALED(self.status):
            return f"killed ({_signal_name(os.WTERMSIG(self.status))})"
        code = os.waitstatus_to_exitcode(self.status)
        return "finished" if code == 0 else f"failed (exit code {code})"

    def kill(self) -> None:
        """End it now, and reap it."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        self.link.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def fork(name: str, main: Callable[[Link], None], close: Sequence[Link] = ()) -> Child:
    """Fork a child that runs `main(link)` and exits; never returns in the child.

    The links of `close` (to its siblings, to its grandparent) are closed in it: an end that somebody still holds open
    never ends. Raises LocalError if other threads are running.
    """
    if threading.active_count() > 1:
        raise LocalError(f"cannot fork {name}: other threads are running in the parent")
    here, there = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        there.close()
        return Child(name, pid, Link(here))
    code = 70  # what is reported if even the handler below fails
    try:
        here.close()
        for link in close:
            link.close()
        die_with_parent(parent)
        main(Link(there))
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001  # the process edge: say it, and end with a code instead of unwinding the parent
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)  # never run the parent's exit handlers in a child


def die_with_parent(parent: int) -> None:
    """Arrange that this process ends when `parent` does. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
