"""Running one turn of `bench_transports`: starting it, counting what its processes take, and ending them all."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

__all__ = ["Failed", "Job", "Measured", "run"]

HERE = Path(__file__).resolve().parent
LIMIT = 120.0  # seconds for a turn


class Failed(Exception):
    """A turn did not come to its end; why, in a sentence."""


@dataclass(frozen=True, slots=True)
class Job:
    """What `transports_turn` is started with; `broker` is the process whose CPU time counts too."""

    python: Path
    side: str
    variant: str
    octets: int
    count: int
    small: int
    folder: Path
    place: str
    broker: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """MB/s, CPU seconds for a GB, and milliseconds of a small message and its answer; None: not asked for."""

    speed: float | None
    cpu: float | None
    trip: float | None


def run(job: Job) -> Measured:
    """One turn. Raises Failed."""
    arguments = [job.side, job.variant, *map(str, (job.octets, job.count, job.small)), str(job.folder), job.place]
    command = [str(job.python), str(HERE / "transports_turn.py"), *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        with _ended(process):
            looks, result = _follow(process, job.broker)
        if result is None:
            errors.seek(0)
            lines = [line for line in errors.read().splitlines() if line.strip()]
            raise Failed(lines[-1][:200] if lines else f"no result within {LIMIT:g} s")
    cpu = (looks[1] - looks[0]) / (job.octets * job.count / 1e9) if len(looks) == 2 else None
    return Measured(result.get("mb_per_second"), cpu, result.get("trip_ms"))


def _follow(process: "subprocess.Popen[str]", broker: int | None) -> tuple[list[float], dict[str, Any] | None]:
    """CPU seconds at every mark, and the result."""
    looks: list[float] = []
    for line in _lines(process.stdout):
        if line == "@mark":
            looks.append(_cpu(process.pid, broker))
            assert process.stdin
            process.stdin.write("go on\n")
            process.stdin.flush()
        elif line.startswith("@result "):
            found: dict[str, Any] = json.loads(line.removeprefix("@result "))
            return looks, found
    return looks, None


def _lines(out: IO[str] | None) -> Iterator[str]:
    assert out
    for line in out:
        yield line.strip()


def _cpu(process: int, broker: int | None) -> float:
    """Of a process, of everything it has started, and of a broker."""
    top = psutil.Process(process)
    total = 0.0
    for one in (top, *top.children(recursive=True), *([psutil.Process(broker)] if broker else ())):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """However it goes, nothing of the turn is left; one that takes too long is ended from another thread."""
    late = threading.Timer(LIMIT, _end, [process.pid])
    late.start()
    try:
        yield
    finally:
        late.cancel()
        _end(process.pid)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def _end(session: int) -> None:
    """Kill whatever belongs to the session that a turn was started as; its first process may be gone already."""
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(one.pid) == session:
                one.kill()
