"""What a process is held to, read back from the kernel; each scene in an interpreter of its own, which stays held."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from veilmesh.core import BadInput
from veilmesh.peer.confinement import (
    MIB,
    Exhausted,
    can_hold_cores,
    can_hold_memory,
    confine,
    peak_memory,
    require_room,
    watch_memory,
)

cores = pytest.mark.skipif(not can_hold_cores(), reason="this system lets no process choose its cores")
memory = pytest.mark.skipif(not can_hold_memory(), reason="this system limits no process' writable memory")


def scene_cores() -> None:
    mine = sorted(os.sched_getaffinity(0))
    said = confine(1, None, place=len(mine) + 1)["cores"]
    [core] = os.sched_getaffinity(0)
    assert core == mine[1 % len(mine)]
    assert said == f"1 (affinity: {core})"
    if pid := os.fork():  # what it starts is held too
        assert os.waitpid(pid, 0)[1] == 0
    else:
        os._exit(os.sched_getaffinity(0) != {core})


def scene_more_cores_than_there_are() -> None:
    mine = os.sched_getaffinity(0)
    assert confine(10_000, None)["cores"].startswith(f"{len(mine)} (")
    assert os.sched_getaffinity(0) == mine


def scene_memory() -> None:
    import resource

    assert "RLIMIT_DATA" in confine(None, 256 * MIB)["memory"]
    assert resource.getrlimit(resource.RLIMIT_DATA) == (256 * MIB, 256 * MIB)
    try:
        bytearray(300 * MIB)
    except MemoryError:
        assert len(bytearray(10 * MIB)) == 10 * MIB
        return
    raise AssertionError("more than it has")


def scene_what_is_large_is_given_back_at_once() -> None:
    confine(None, 1024 * MIB)
    bytearray(b"x") * (8 * MIB)  # as a model that came and went: the C library would keep room for the next
    models = [bytearray(b"x") * MIB for _ in range(100)]
    before = resident()
    del models[::2]
    assert before - resident() > 40 * MIB


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(
            "scene_what_is_large_is_given_back_at_once",
            marks=[memory, pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")],
        ),
        pytest.param("scene_cores", marks=cores),
        pytest.param("scene_more_cores_than_there_are", marks=cores),
        pytest.param("scene_memory", marks=memory),
    ],
)
def test_scene(scene: str) -> None:
    ran = subprocess.run([sys.executable, __file__, scene], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


@memory
def test_less_memory_than_the_program_takes_is_refused() -> None:
    with pytest.raises(BadInput, match="edge.memory of 1 MiB is less than a peer and its worker take"):
        confine(None, MIB)
    used = peak_memory([os.getpid()]) or 0
    require_room([os.getpid()], 2 * used)
    with pytest.raises(BadInput, match="is less than a peer and its worker take"):
        require_room([os.getpid(), os.getpid()], used)


@memory
def test_peaks_are_summed_and_a_process_that_ended_has_none() -> None:
    mine = peak_memory([os.getpid()])
    assert mine is not None
    assert mine > 5 * MIB
    assert peak_memory([os.getpid(), os.getpid()]) >= 2 * mine
    assert peak_memory([2**22 + 1]) is None


@memory
def test_who_has_used_more_than_there_is_ends() -> None:
    with pytest.raises(Exhausted, match="out of memory: .* MiB resident, of 1 MiB"):
        anyio.run(watch_memory, [os.getpid()], MIB)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
