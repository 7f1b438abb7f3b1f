"""Holding a process, and those it starts, to the processor cores and the memory of a smaller machine; and what it used.

No rights are needed, and nothing is left behind: cores by the scheduler's affinity, memory by the kernel's limit on a
process' writable memory (RLIMIT_DATA) and by looking at what is resident. RLIMIT_AS would not do: torch maps more than
a gigabyte of addresses that it never touches. A control group would not either, alone: pages that a forked process
shares with its parent are charged to the parent's.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio

from veilmesh.core import BadInput

__all__ = [
    "MIB", "Exhausted", "can_hold_cores", "can_hold_memory", "confine", "give_back", "keep", "peak_memory",
    "require_room", "watch_memory",
]  # fmt: skip

MIB: Final = 1 << 20

_LOOK_SECONDS = 0.1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 18
_KEPT = 1 << 26
_KEPT_PIECE = 1 << 25  # what is larger, glibc always gives back


class Exhausted(Exception):
    """A peer has used more memory than it has: it ends, as it would on a machine of that size."""


def confine(cores: int | None, memory: int | None, place: int = 0, processes: int = 2) -> dict[str, str]:
    """Hold this process, and those it will start, to `cores` and to `memory` bytes; what is now in force, in words.

    `place`: the how-manieth process is confined here, so that several are not all given the same cores. `processes`:
    how many will be as large as this one is now. Raises BadInput where the program alone takes more memory.
    """
    found = {}
    if cores is not None:
        found["cores"] = _hold_cores(cores, place)
    if memory is not None:
        found["memory"] = _hold_memory(memory, processes)
    return found


def give_back() -> None:
    """Have this process, and those it forks, give back what is large as soon as it is freed.

    The C library (glibc) else learns from the first model that is freed to keep models' room for later ones, and never
    fills it as well as it could. It costs time to have pages zeroed again, so only what is short of memory does it.
    """
    _tell_malloc(_M_MMAP_THRESHOLD, _LARGE)


def keep() -> None:
    """Have this process, and those it forks, keep up to 64 MiB of what is freed for what comes next.

    The C library (glibc) else gives back the room of one piece of a model, and asks for it again with the next one:
    zeroing those pages takes as long as handing the piece to a broker does.
    """
    _tell_malloc(_M_MMAP_THRESHOLD, _KEPT_PIECE)
    _tell_malloc(_M_TRIM_THRESHOLD, _KEPT)


def _tell_malloc(what: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(what, value)


def require_room(pids: Iterable[int], memory: int, processes: int = 1) -> None:
    """Raises BadInput where `processes` times what these take already is more than there is."""
    if (needed := processes * (peak_memory(pids) or 0)) > memory:
        raise BadInput(
            f"edge.memory of {memory / MIB:g} MiB is less than a peer and its worker take before they do anything "
            f"({needed / MIB:.0f} MiB); give more."
        )


def can_hold_cores() -> bool:
    """Whether this system lets a process choose its cores."""
    return hasattr(os, "sched_setaffinity")


def can_hold_memory() -> bool:
    """Whether this system refuses a process more writable memory than it asks to be held to."""
    return sys.platform == "linux"  # elsewhere RLIMIT_DATA counts the heap alone, or nothing


def _hold_cores(cores: int, place: int) -> str:
    if not can_hold_cores():
        return "not held: this system has no affinity"
    mine = sorted(os.sched_getaffinity(0))
    chosen = {mine[(place * cores + i) % len(mine)] for i in range(min(cores, len(mine)))}
    os.sched_setaffinity(0, chosen)
    return f"{len(chosen)} (affinity: {', '.join(map(str, sorted(chosen)))})"


def _hold_memory(memory: int, processes: int) -> str:
    if not can_hold_memory():
        return f"not held to {memory / MIB:g} MiB: this system has no limit on writable memory"
    import resource

    require_room([os.getpid()], memory, processes)
    give_back()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    held = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (held, held))
    return f"{memory / MIB:g} MiB (RLIMIT_DATA for each process, and the sum of what is resident is watched)"


def peak_memory(pids: Iterable[int]) -> int | None:
    """The most bytes that were resident in each of these processes (VmHWM), summed; None where the system says none.

    An upper bound for all of them: their peaks need not be at one time, and pages that they share count in each.
    """
    peaks = [peak for pid in pids if (peak := _peak(pid)) is not None]
    return sum(peaks) if peaks else None


def _peak(pid: int) -> int | None:
    with suppress(OSError):  # it has ended, or there is no such file on this system
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


async def watch_memory(pids: Iterable[int], memory: int) -> Any:
    """Look at the peak memory of these processes for as long as this is not cancelled. Raises Exhausted."""
    watched = tuple(pids)
    while True:
        if (used := peak_memory(watched) or 0) > memory:
            raise Exhausted(f"out of memory: {used / MIB:.0f} MiB resident, of {memory / MIB:.0f} MiB")
        await anyio.sleep(_LOOK_SECONDS)
