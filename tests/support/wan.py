"""A wide-area network on one machine, for real processes over real TCP: two sides and a link that can be bad, or cut.

The link is carried in user space (`wan_link.py`), so no kernel module is needed that emulates networks. What is needed:
Linux, /dev/net/tun, `ip`, and root, or a system where everybody may have a user namespace.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import wan_link

__all__ = ["Side", "Unavailable", "Wan"]

_SECONDS = 20.0  # for the link to answer


class Unavailable(Exception):
    """This system does not let us have what the link is made of; the sentence says what."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two places processes can be in. Its address is all that can be reached from the other."""

    address: str
    namespace: int
    user: int | None

    def enter(self) -> None:
        """Move this process into the side; to be called in a child before it execs (`preexec_fn`).

        A process that has more than one thread cannot move, nor can it ever leave.
        """
        if self.user is not None:
            wan_link.libc_call("setns", self.user, wan_link.CLONE_NEWUSER)
        wan_link.libc_call("setns", self.namespace, wan_link.CLONE_NEWNET)

    @property
    def processes(self) -> list[int]:
        """Who is in it."""
        return wan_link.inside({os.fstat(self.namespace).st_ino})


class Wan:
    """Two sides, `a` and `b`, and the link between them. A context manager: leaving it ends whoever is still inside.

    Nobody has to clean up after a test that was killed: then the link's process does what leaving does.

    Args:
        delay: seconds, one way.
        loss: probability that a packet is lost.
        rate: bits a second each way; 0: no limit.

    Raises Unavailable when it is entered.
    """

    def __init__(self, delay: float = 0.0, loss: float = 0.0, rate: float = 0.0) -> None:
        self._shape = {"delay": delay, "loss": loss, "rate": rate}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            self._control = opening.enter_context(_link())
            self._control.settimeout(_SECONDS)
            said, fds = _received(self._control)
            for fd in fds:
                opening.callback(os.close, fd)
            if "missing" in said:
                raise Unavailable(f"no two networks on this system ({said['missing']})")
            user = fds[2] if len(fds) == 3 else None
            self.a, self.b = (Side(wan_link.ADDRESSES[i], fds[i], user) for i in (0, 1))
            namespaces = {os.fstat(fd).st_ino for fd in fds[:2]}
            opening.callback(wan_link.end_all, namespaces)  # also where the link's process was killed
            self.shape(**self._shape)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End whoever is inside, and the link."""
        self._open.close()

    def cut(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self.shape(is_cut=True)

    def heal(self) -> None:
        """From now on everything comes through again."""
        self.shape(is_cut=False)

    def shape(self, **changes: float) -> dict[str, int]:
        """Change `delay`, `loss` or `rate`; how many packets were `carried` and `lost` so far."""
        self._control.send(json.dumps(changes).encode())
        counts: dict[str, int] = json.loads(self._control.recv(4096))
        return counts


@contextlib.contextmanager
def _link() -> Any:
    """The control socket of a new link process; at the end the process, too, has ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # A session of its own: Ctrl-C in the terminal is the test's to handle, which then closes the socket.
        command = [sys.executable, str(Path(wan_link.__file__)), str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _received(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A message and the file descriptors that came with it."""
    data, fds, _, _ = socket.recv_fds(control, 4096, 3)
    return json.loads(data or b'{"missing": "the link ended"}'), fds
