"""A step of split training between two real peers, beside hivemind's RemoteExpert in the same run.

Bottom 784-256, top 256-128-10, Adam at 0.001, batches of 64 pictures of 28x28, one thread a process. Of veilmesh two
protocols: `vanilla` (the labels go up with the activations, two messages a step) and `u-shaped` with an empty last
stage (outputs come back to the data owner, who has labels and loss, four messages a step: what hivemind's client does).
Peers are processes over libp2p, every frame signed and sealed. A step's seconds are those between two gradients that
reach the data owner, so all of it is in them: both halves, the wire, the optimizers. The first steps are left out.

`--baselines DIR` runs `hm_split.py` in DIR beside it, in the environment `hivemind` under `--environments`: it prints a
line `RESULT {"ms_p50": ..., "ms_p95": ..., "lo_KB_per_step": ...}`. The systems take turns, so that a machine whose
speed changes changes it for all; the ratio of medians is what to quote, from a machine with nothing else to do: a step
is handed from process to process, and where others queue for the processors, it waits its turn at every hand. Every
turn has a network namespace of its own where the system allows it, so that nobody else's bytes are counted. Accuracy is
that on test pictures; hivemind's script says that of its last batches. Everything that is printed is measured.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic import write_idx  # beside this file
from torch import nn

from veilmesh.core import BadInput
from veilmesh.peer.machine import Effect, Event, Machine, Note, PeerId, Received
from veilmesh.tasks.models.layers import Normalise

__all__ = ["main", "network"]

HERE = Path(__file__).resolve().parent
TRAIN, TEST, BATCH, CUT, CLASSES = 8000, 1000, 64, 256, 10
WARM = 5  # steps before anything is counted, as hm_split.py has it
CUTS = {"vanilla": [4], "u-shaped": [4, 7]}
TENSORS = 2 * 4 * BATCH * CUT  # bytes: activations up, gradients down
RAW = {"vanilla": TENSORS + 2 * BATCH, "u-shaped": TENSORS + 2 * 4 * BATCH * CLASSES, "hivemind": 0.0}
"""Bytes of a step as plain arrays: labels two bytes each; outputs and their gradients where those cross the wire."""
STEP_MARK, BYTES_MARK = 0.7, 1.1  # what is aimed at: of hivemind's median step, of the raw bytes


def network() -> nn.Module:
    """784-256-128-10 as pieces; the last, which does nothing, is what the data owner has of it behind the cut."""
    return nn.Sequential(
        Normalise(), nn.Flatten(), nn.Linear(784, CUT), nn.ReLU(),
        nn.Linear(CUT, 128), nn.ReLU(), nn.Linear(128, CLASSES), nn.Identity(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of one system came to."""

    p50: float  # milliseconds
    p95: float
    mean: float
    octets: float  # that a step sends, in TCP's streams, with everything around the tensors; hivemind: as `loopback`
    loopback: float  # and in the loopback interface, TCP's own headers included
    raw: float
    accuracy: float | None


class Timed:
    """The data owner's machine, and when its gradients came: noted at the end, so that no step pays for it."""

    def __init__(self, machine: Machine, steps: int) -> None:
        self._machine = machine
        self._steps = steps
        self._times: list[float] = []
        self._loopback = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """As the machine."""
        effects = self._machine.handle(event, now)
        if isinstance(event, Received) and b"gradients" in event.body[:12]:
            self._times.append(now)
            if len(self._times) == WARM:
                self._loopback = loopback()
                effects.append(Note("begun", {}))
            elif len(self._times) == self._steps:
                count = {"loopback": loopback() - self._loopback, "times": self._times[WARM - 1 :]}
                effects.insert(0, Note("done", count))
        return effects


def loopback() -> int:
    """Bytes that the loopback interface has carried; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/net/dev").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] == "lo:")
    return 0


def ours(protocol: str, steps: int, data: Path, folder: Path) -> Turn:
    """One run of `protocol`: one round of `steps`, scored at its end."""
    from veilmesh.sim.run import run_scenario
    from veilmesh.sim.scenario import Scenario
    from veilmesh.sim.split_cast import SplitCast

    class TimedCast(SplitCast):
        def machine(self, index: int, ids: Sequence[PeerId], late: bool = False) -> Machine:
            machine = super().machine(index, ids, late)
            return Timed(machine, steps) if index == 0 else machine

    scenario = Scenario.parse(
        {
            "peers": 1,
            "rounds": 1,
            "strategy": protocol,
            "task": {"name": "mnist", "path": str(data)},
            "model": {"name": "module", "path": "bench_split:network"},
            "training": {"batch": BATCH, "local_steps": steps, "learning_rate": 1e-3, "optimizer": "adam"},
            "split": {"cuts": CUTS[protocol]},
        }
    )
    marks: dict[str, Any] = {}
    summary = run_scenario(TimedCast.prepare(scenario), folder, lambda event: marks.update({event["note"]: event}))
    if summary["finished"] < 2 or "done" not in marks:
        raise BadInput(f"{protocol}: {summary['finished']} of 2 peers finished; see {folder}.")
    found = marks["done"]["data"]
    taken = sorted(1e3 * (b - a) for a, b in zip(found["times"], found["times"][1:], strict=False))
    counted = sum(marks["done"][way] - marks["begun"][way] for way in ("sent", "received"))
    n = len(taken)
    return Turn(
        taken[n // 2], taken[int(0.95 * n)], sum(taken) / n, counted / n, found["loopback"] / n, RAW[protocol],
        summary["accuracy"],
    )  # fmt: skip


def alone() -> list[str]:
    """What begins a command that is to have a network namespace of its own; nothing where that cannot be had."""
    if shutil.which("unshare") and shutil.which("ip"):
        prefix = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


def result(command: list[str], log: Path, mark: str, **more: Any) -> Any:
    """What `command` says behind `mark` on its last such line; None if nothing. Whatever it left running is ended."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **more)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(mark)]
    return json.loads(said[-1].removeprefix(mark)) if said else None


def turn(system: str, asked: argparse.Namespace, work: Path, number: int) -> Turn | None:
    """One turn of one system, in processes of its own."""
    log, around = work / f"{system}-{number}.log", {**os.environ, "OMP_NUM_THREADS": "1"}
    if system != "hivemind":
        folder = work / f"run-{system}-{number}"
        own = [__file__, "--once", system, "--steps", str(asked.steps), "--data", str(asked.data), "--out", str(folder)]
        found = result([*alone(), sys.executable, *own], log, "TURN ", cwd=HERE, env=around)
        if found is None:
            sys.stderr.write(log.read_text()[-2000:])
        return Turn(**found) if found else None
    python = asked.environments / "hivemind" / "bin" / "python"
    scripts = asked.baselines.resolve()
    around |= {"BASELINES": str(scripts), "WORK": str(work)}
    command = [*alone(), str(python), "hm_split.py", str(asked.steps), str(BATCH), str(CUT)]
    found = result(command, log, "RESULT ", cwd=scripts, env=around)
    if found is None:
        return None
    octets, raw = 1e3 * found["lo_KB_per_step"], 1e3 * found["raw_KB"]
    return Turn(found["ms_p50"], found["ms_p95"], found["ms_mean"], octets, octets, raw, found.get("acc_last20"))


def line(system: str, turns: list[Turn], theirs: float | None) -> str:
    """A row of the table: medians over the turns, and how they spread."""
    p50 = statistics.median(t.p50 for t in turns)
    octets, raw = statistics.median(t.octets for t in turns), turns[0].raw
    accuracy = statistics.median(t.accuracy or 0.0 for t in turns)
    spread = f"{min(t.p50 for t in turns):.1f}-{max(t.p50 for t in turns):.1f}"
    verdict = f"bytes {_said(octets / raw, BYTES_MARK)}"
    if theirs and system != "hivemind":
        verdict = f"step {_said(p50 / theirs, STEP_MARK)}, {verdict}"
    return (
        f"{system:10} {p50:8.2f} {spread:>12} {statistics.median(t.p95 for t in turns):8.2f} "
        f"{statistics.median(t.mean for t in turns):8.2f} "
        f"{f'{p50 / theirs:.2f}x' if theirs else '-':>9} {octets / 1e3:9.1f} {octets / raw:8.3f}x "
        f"{statistics.median(t.loopback for t in turns) / 1e3:9.1f} {accuracy:9.3f}  "
        f"{verdict if system != 'hivemind' else ''}"
    )


def _said(value: float, most: float) -> str:
    return f"{'met' if value <= most else 'MISSED'} (<= {most:g}x)"


def compare(asked: argparse.Namespace, work: Path) -> None:
    """Let the systems take turns, and print the table."""
    if asked.data is None:
        asked.data = work
        write_idx(work, TRAIN, TEST)
    python = asked.environments / "hivemind" / "bin" / "python"
    with_theirs = asked.baselines and python.exists() and (asked.baselines / "hm_split.py").exists()
    turns: dict[str, list[Turn]] = {name: [] for name in ("hivemind", *CUTS) if name in CUTS or with_theirs}
    for number in range(asked.turns):
        for system, found in turns.items():
            if one := turn(system, asked, work, number):
                found.append(one)
    heads = ("ms p50", "of turns", "ms p95", "ms mean", "hivemind", "kB sent", "of raw", "kB in lo", "accuracy")
    print(f"{'':10} " + " ".join(f"{head:>{w}}" for head, w in zip(heads, (8, 12, 8, 8, 9, 9, 9, 9, 9), strict=True)))
    theirs = statistics.median(t.p50 for t in turns["hivemind"]) if turns.get("hivemind") else None
    for system, found in turns.items():
        print(line(system, found, theirs) if found else f"{system:10} no result")
    if asked.baselines and not with_theirs:
        print("hivemind   no environment, or no script")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder with MNIST's files; else pictures are made")
    parser.add_argument("--baselines", type=Path, help="folder with hm_split.py")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "veilmesh-baselines")
    parser.add_argument("--once", choices=list(CUTS), help=argparse.SUPPRESS)  # one turn, in this process
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    try:
        if asked.once:
            one = ours(asked.once, asked.steps, asked.data, asked.out)
            print("TURN", json.dumps({name: getattr(one, name) for name in Turn.__slots__}), flush=True)
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what a turn started is ended then too
        with tempfile.TemporaryDirectory(prefix="bench-split-") as work:
            compare(asked, Path(work))
    except BadInput as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
