"""Real meshes against a floor that nobody with a wire can reach: the same training in one process, nothing carried.

Every row trains the MLP 784-256-128-10 (235,146 parameters, 0.94 MB) with Adam, one epoch of batches of 128 a round, on
the same pictures. Peers are processes over libp2p, every frame signed and sealed. Seconds per round are those between
the first round and the last, so starting is not in them; the floor runs before every row, on the same machine in the
same minute, and the ratio is what to quote: seconds alone are the machine's.

`--baselines DIR` runs other systems' scripts in DIR beside it, each in the environment of its name under
`--environments`: a script prints a line `RESULT {"s_per_round": ...}`. Prints one table; everything in it is measured.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthetic import write_idx  # beside this file

from veilmesh.core import BadInput

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
TRAIN, TEST, BATCH = 8000, 1000, 128
PARAMETERS = 235_146


@dataclass(frozen=True, slots=True)
class Mesh:
    """One row: so many peers on a graph."""

    peers: int
    topology: str
    rounds: int
    mark: float | None = None  # times the floor's seconds per round that it is meant to stay below

    @property
    def name(self) -> str:
        return f"veilmesh, {self.peers} peers, {self.topology}"


MESHES = (Mesh(4, "complete", 20, 0.6), Mesh(8, "complete", 20), Mesh(16, "ring", 20, 1.2))

OTHERS = {
    "ideal": ["ideal.py", "4", "5"],
    "flwr": ["flwr_run.py", "--nodes", "4", "--rounds", "5"],
    "nvflare": ["nvf/swarm.py", "4", "5"],
    "hivemind": ["hivemind_opt.py", "--peers", "4", "--epochs", "5"],
    "p2pfl": ["p2pfl_run.py", "--nodes", "4", "--rounds", "5"],
    "gossipy": ["gossipy_run.py", "--nodes", "4", "--rounds", "5"],
}
"""Script and arguments for each; `ideal` runs in this environment, as the floor does."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came out: seconds per round, the floor's just before, and for a mesh what else it cost."""

    name: str
    seconds: float
    floor: float
    accuracy: float | None = None
    memory: float | None = None  # MB a peer, the largest
    sent: float | None = None  # MB a peer and round
    mark: float | None = None


def floor(peers: int) -> float:
    """Seconds per round of the floor."""
    done = subprocess.run(
        [sys.executable, str(HERE / "floor.py"), str(peers), "5", str(TRAIN), str(TEST)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["seconds"])


def scenario(mesh: Mesh, data: Path) -> dict[str, Any]:
    """The mesh as a scenario: one epoch a round, scored at the end only."""
    steps = -(-TRAIN // mesh.peers // BATCH)  # a last batch that is not full counts as one
    return {
        "peers": mesh.peers,
        "rounds": mesh.rounds,
        "evaluate_every": mesh.rounds,
        "task": {"name": "mnist", "path": str(data)},
        "model": {"name": "mlp", "hidden": [256, 128]},
        "training": {"batch": BATCH, "local_steps": steps, "learning_rate": 1e-3, "optimizer": "adam"},
        "topology": mesh.topology,
    }


def run(mesh: Mesh, data: Path, folder: Path) -> Row:
    """Run one mesh."""
    from veilmesh.sim.cast import Cast
    from veilmesh.sim.run import run_scenario
    from veilmesh.sim.scenario import Scenario

    before = floor(mesh.peers)
    cast = Cast.prepare(Scenario.parse(scenario(mesh, data)))
    assert cast.initial.size == PARAMETERS
    summary = run_scenario(cast, folder, lambda event: None)
    if summary["finished"] < mesh.peers:
        raise BadInput(f"{mesh.name}: {summary['finished']} of {mesh.peers} peers finished; see {folder}.")
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    ends = [line["t"] for line in lines if line["kind"] == "round"]
    memory = max(p["memory_mb"] or 0 for p in summary["peers"])
    seconds = (max(ends) - min(ends)) / (mesh.rounds - 1)
    sent = summary["bytes_per_peer_round"] / 1e6
    return Row(mesh.name, seconds, before, summary["accuracy"], memory, sent, mesh.mark)


def killed(data: Path, folder: Path) -> str:
    """What SIGKILL of one of four costs the others: their rounds, from one end to the next, in seconds."""
    from veilmesh.sim.cast import Cast
    from veilmesh.sim.run import run_scenario
    from veilmesh.sim.scenario import Scenario

    mesh = Mesh(4, "complete", 60)
    given = scenario(mesh, data) | {"faults": [{"at": 3.0, "kill": "peer:3"}]}
    summary = run_scenario(Cast.prepare(Scenario.parse(given)), folder, lambda event: None)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    ends = sorted(line["t"] for line in lines if line["kind"] == "round" and line["peer"] == 0)
    taken = sorted(after - before for before, after in itertools.pairwise(ends))
    return (
        f"one of 4 killed: the median round {taken[len(taken) // 2]:.3f} s, the longest {taken[-1]:.3f} s, the next "
        f"longest {taken[-2]:.3f} s; {summary['finished']} of 4 finished"
    )


def other(name: str, scripts: Path, environments: Path, work: Path) -> Row | None:
    """Run another system's script; None where its environment is missing or it printed no result."""
    python = Path(sys.executable) if name == "ideal" else environments / name / "bin" / "python"
    script, *arguments = OTHERS[name]
    if not python.exists() or not (scripts / script).exists():
        return None
    before = floor(4)
    around = {**os.environ, "BASELINES": str(scripts), "WORK": str(work)}
    log = work / f"{name}.log"
    with log.open("w") as out:
        command = [str(python), script, *arguments]
        process = subprocess.Popen(
            command, cwd=scripts, env=around, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=300)
        finally:
            _end_group(process)
    results = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("RESULT ")]
    seconds = json.loads(results[-1].removeprefix("RESULT ")).get("s_per_round") if results else None
    return Row(name, float(seconds), before) if seconds else None


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End whatever a system left running: all of it is in the process group it was started in."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def line(row: Row) -> str:
    """A row of the table."""
    ratio = row.seconds / row.floor
    mark = "" if row.mark is None else f"{'met' if ratio <= row.mark else 'MISSED'} (<= {row.mark:g}x)"

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return (
        f"{row.name:34} {row.seconds:9.3f} {row.floor:9.3f} {ratio:7.2f}x {number(row.accuracy, 3):>9} "
        f"{number(row.memory, 0):>8} {number(row.sent, 2):>9}  {mark}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=1, help="runs of every mesh")
    parser.add_argument("--peers", type=int, help="only the meshes of so many peers")
    parser.add_argument("--baselines", type=Path, help="folder with other systems' scripts")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "veilmesh-baselines")
    asked = parser.parse_args()
    from veilmesh.sim.engines import preload

    preload()
    work = Path(tempfile.mkdtemp(prefix="bench-mesh-"))
    try:
        write_idx(work, TRAIN, TEST)
        print(f"{'':34} {'s/round':>9} {'floor':>9} {'ratio':>8} {'accuracy':>9} {'MB/peer':>8} {'MB sent':>9}")
        for mesh in MESHES:
            if asked.peers in (None, mesh.peers):
                for time in range(asked.repeat):
                    print(line(run(mesh, work, work / f"run-{mesh.peers}-{time}")), flush=True)
        if asked.peers in (None, 4):
            print(killed(work, work / "killed"), flush=True)
        for name in OTHERS if asked.baselines else ():
            row = other(name, asked.baselines.resolve(), asked.environments, work)
            print(line(row) if row else f"{name:34} no environment, or no result", flush=True)
    except BadInput as error:
        sys.exit(f"{error}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
