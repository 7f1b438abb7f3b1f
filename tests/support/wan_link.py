"""The process in the middle of `wan.py`: two network namespaces, and every packet between them in its hands.

Each namespace has one TUN device, whose other end is a file descriptor here: what the kernel would put on the wire is
read from one and written to the other, later or never. Nothing has a name outside this process: the namespaces and
devices are gone with the last process that has them, whoever kills whom. When its control socket ends (the test is
over, or dead), this process kills whoever is left in the namespaces, and ends.

Run as a script with the number of the control socket; only the standard library, so that it starts at once.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["ADDRESSES", "CLONE_NEWNET", "CLONE_NEWUSER", "LIBC", "end_all", "inside", "libc_call"]

ADDRESSES: Final = ("192.0.2.1", "192.0.2.2")
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000
LIBC: Final = ctypes.CDLL(None, use_errno=True)

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
_BUFFER_SECONDS = 0.2  # what waits longer for a slow link is dropped, as by a router
_AT_ONCE = 64  # packets from one side before the other has its turn


def libc_call(name: str, *arguments: int) -> None:
    """A function of libc that answers 0, or -1 and errno. (`os.unshare`, `os.setns`: Python 3.12.) Raises OSError."""
    if getattr(LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def inside(namespaces: set[int]) -> list[int]:
    """The processes in network namespaces, which are given by their inodes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is none of ours
            if entry.name.isdigit() and (entry / "ns" / "net").stat().st_ino in namespaces:
                found.append(int(entry.name))
    return found


def end_all(namespaces: set[int]) -> None:
    """Kill whoever is in these namespaces, until nobody is."""
    deadline = time.monotonic() + 10
    while (left := inside(namespaces)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


# --- two namespaces ------------------------------------------------------------------------------------------------


def _become_root() -> int | None:
    """Where we are not: in a user namespace of our own, if the system lets everybody have one."""
    if os.geteuid() == 0:
        return None
    uid, gid = os.geteuid(), os.getegid()
    libc_call("unshare", CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)
    return os.open("/proc/self/ns/user", os.O_RDONLY)


def _side(mine: str, other: str) -> tuple[int, int]:
    """A new network namespace, which we are then in, and the hidden end of its only way out."""
    libc_call("unshare", CLONE_NEWNET)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", b"wan", _IFF_TUN | _IFF_NO_PI))
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ip is None:
        raise FileNotFoundError("no `ip` (iproute2)")
    for words in (
        ["link", "set", "lo", "up"],
        ["addr", "add", mine, "peer", other, "dev", "wan"],
        ["link", "set", "wan", "mtu", str(_MTU), "up"],
    ):
        done = subprocess.run([ip, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return os.open("/proc/self/ns/net", os.O_RDONLY), tun


# --- the link ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Link:
    """What becomes of packets between two TUN devices.

    `delay` in seconds, one way; `loss` a probability; `rate` in bits a second each way, 0: no limit.
    """

    ends: tuple[int, int]
    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    is_cut: bool = False
    carried: int = 0
    lost: int = 0
    _luck: random.Random = field(default_factory=lambda: random.Random(0))
    _free: list[float] = field(default_factory=lambda: [0.0, 0.0])  # when each direction has sent what it was given
    _on_its_way: list[tuple[float, int, int, bytes]] = field(default_factory=list)

    def shape(self, asked: dict[str, Any]) -> dict[str, int]:
        """Set what is asked, and tell what was done so far. A cut takes what is on its way, too."""
        for name, value in asked.items():
            setattr(self, name, value)
        if self.is_cut:
            self.lost += len(self._on_its_way)
            self._on_its_way.clear()
        return {"carried": self.carried, "lost": self.lost}

    def take(self, side: int, now: float) -> None:
        """Read what this side sends."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self.ends[side], _MTU)
            except BlockingIOError:
                return
            if (leaves := self._leaves(side, len(packet), now)) is None:
                self.lost += 1
            else:
                self.carried += 1
                heapq.heappush(self._on_its_way, (leaves + self.delay, self.carried, 1 - side, packet))

    def _leaves(self, side: int, size: int, now: float) -> float | None:
        if self.is_cut or (self.loss and self._luck.random() < self.loss):
            return None
        if not self.rate:
            return now
        begins = max(now, self._free[side])
        if begins - now > _BUFFER_SECONDS:
            return None
        self._free[side] = begins + 8 * size / self.rate
        return self._free[side]

    def deliver(self, now: float) -> float | None:
        """Write what has arrived; seconds until more will, None: nothing is on its way."""
        while self._on_its_way and self._on_its_way[0][0] <= now:
            _, _, side, packet = heapq.heappop(self._on_its_way)
            with contextlib.suppress(OSError):  # a device that takes no more: then this packet is lost
                os.write(self.ends[side], packet)
        return self._on_its_way[0][0] - now if self._on_its_way else None


def _carry(link: Link, control: socket.socket) -> None:
    """Until the control socket ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for side, end in enumerate(link.ends):
            selector.register(end, selectors.EVENT_READ, side)
        until: float | None = None
        while True:
            for key, _ in selector.select(until):
                if key.fileobj is not control:
                    link.take(key.data, time.monotonic())
                elif asked := control.recv(4096):
                    control.send(json.dumps(link.shape(json.loads(asked))).encode())
                else:
                    return
            until = link.deliver(time.monotonic())


def main(control: socket.socket) -> None:
    """Say what is missing, or hand over the namespaces and carry."""
    try:
        user = _become_root()
        (one, tun), (two, other_tun) = _side(*ADDRESSES), _side(*reversed(ADDRESSES))
        libc_call("unshare", CLONE_NEWNET)  # a third one, so that nobody is in the two but who is meant to be
    except OSError as error:
        control.send(json.dumps({"missing": str(error)}).encode())
        return
    handed = [one, two] if user is None else [one, two, user]
    socket.send_fds(control, [b"{}"], handed)
    try:
        _carry(Link((tun, other_tun)), control)
    finally:
        end_all({os.fstat(one).st_ino, os.fstat(two).st_ino})


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
