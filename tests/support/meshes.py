"""Starting real meshes in tests, as a user does, and ending whatever they started on every path."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

__all__ = ["WAIT", "alive", "family", "members", "rounds_done", "up", "veilmesh", "veilmesh_up", "wait_for"]

WAIT = 90.0  # for anything that has to happen; nothing here is timed


def wait_for(met: Callable[[], Any], what: str) -> Any:
    """What `met` returns once it is true."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if found := met():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {WAIT:g} s for {what}")


@contextlib.contextmanager
def up(folder: Path, *options: str, limit: Callable[[], None] | None = None) -> Iterator[subprocess.Popen[str]]:
    """`veilmesh up` in a process of its own, in which `limit` is called first."""
    with veilmesh_up(folder.parent, "--out", str(folder), *options, limit=limit) as process:
        yield process


@contextlib.contextmanager
def veilmesh_up(
    where: Path, *arguments: str, limit: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`veilmesh up` with these arguments and no others, in a process of its own that works in `where`."""
    with veilmesh(where, "up", *arguments, limit=limit) as process:
        yield process


@contextlib.contextmanager
def veilmesh(where: Path, *arguments: str, limit: Callable[[], None] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Any command, in a process of its own that works in `where`; it and all it started are ended at last."""

    def before() -> None:
        # As in a terminal: where a shell started the tests in the background, SIGINT is ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit:
            limit()

    process = subprocess.Popen(
        [sys.executable, "-m", "veilmesh.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=where,
        preexec_fn=before,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for descendant in family(process.pid)[1:]:
                descendant.kill()
        process.kill()
        process.communicate()


def members(folder: Path) -> list[dict[str, Any]]:
    """The members of a run, from its record; none before it is written."""
    run = folder / "run.json"
    return json.loads(run.read_text())["members"] if run.exists() else []


def rounds_done(folder: Path) -> int:
    """The highest round that anybody has trained in."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["round"] for line in lines), default=0)
    except (OSError, ValueError):  # not there yet, or a line is half written
        return 0


def family(pid: int) -> list[psutil.Process]:
    """A process and all of its descendants."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[int]:
    """Those that have not ended."""
    return [p.pid for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
