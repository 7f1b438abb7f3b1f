"""Rounds of whole meshes, through a broker and over libp2p: the part of `bench_transports` that trains."""

import json
import math
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["MESHES", "Mesh", "measure", "ratios", "table"]

PIXELS, CLASSES = 64, 10  # of the task `digits`
WAYS = ("mqtt", "libp2p")


@dataclass(frozen=True, slots=True)
class Mesh:
    """So many peers, all neighbours, with a model of so many megabytes, which each sends to all others in a round."""

    peers: int
    megabytes: float

    @property
    def name(self) -> str:
        """In a table."""
        return f"{self.peers} peers, {self.megabytes:g} MB"

    @property
    def hidden(self) -> int:
        """The width of each of two hidden layers that make the model as large as that, in float32."""
        once = PIXELS + 2 + CLASSES  # parameters that grow with the width: weights of the first and last layer, biases
        return round((math.sqrt(once**2 + self.megabytes * 1e6) - once) / 2)


MESHES = (Mesh(4, 10.0), Mesh(2, 100.0))


def scenario(mesh: Mesh, rounds: int, transport: dict[str, Any]) -> dict[str, Any]:
    """One short step a round, scored at the end: the models' way is what takes the time."""
    return {
        "peers": mesh.peers,
        "rounds": rounds,
        "evaluate_every": rounds,
        "strategy": "gossip",
        "topology": "complete",
        "task": "digits",
        "model": {"name": "mlp", "hidden": [mesh.hidden, mesh.hidden]},
        "training": {"batch": 8, "local_steps": 1, "learning_rate": 0.01},
        "transport": transport,
    }


def once(mesh: Mesh, rounds: int, transport: dict[str, Any], folder: Path) -> float | None:
    """Seconds per round, between the end of the first and of the last; None where not everybody finished."""
    from veilmesh.sim.cast import Cast
    from veilmesh.sim.run import run_scenario
    from veilmesh.sim.scenario import Scenario

    cast = Cast.prepare(Scenario.parse(scenario(mesh, rounds, transport)))
    summary = run_scenario(cast, folder, lambda event: None)
    if summary["finished"] < mesh.peers:
        return None
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    ends = [line["t"] for line in lines if line["kind"] == "round"]
    return float(max(ends) - min(ends)) / (rounds - 1)


def measure(folder: Path, broker: str, rounds: int, passes: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per round by mesh and transport, one for each pass; the transports take turns."""
    from veilmesh.sim.engines import preload

    preload()
    found: dict[str, dict[str, list[float]]] = {mesh.name: {way: [] for way in WAYS} for mesh in MESHES}
    for number in range(passes):
        for mesh in MESHES:
            for way in WAYS:
                transport = {"name": way} | ({"broker": broker} if way == "mqtt" else {})
                run = folder / f"run-{number}-{mesh.peers}-{way}"
                seconds = once(mesh, rounds, transport, run)
                shutil.rmtree(run, ignore_errors=True)  # models of 100 MB
                if seconds is not None:
                    found[mesh.name][way].append(seconds)
    return found


def ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, float | None]:
    """Times the round over libp2p that one over MQTT takes: the median over passes."""
    made: dict[str, float | None] = {}
    for name, ways in found.items():
        parts = [mine / its for mine, its in zip(ways["mqtt"], ways["libp2p"], strict=False)]
        made[name] = statistics.median(parts) if parts else None
    return made


def table(found: dict[str, dict[str, list[float]]]) -> Table:
    """Medians over the passes."""
    made = Table(box=box.SIMPLE_HEAD, title="meshes: seconds per round", title_justify="left")
    for head in ("", *WAYS, "mqtt / libp2p"):
        made.add_column(head, justify="right" if head else "left")
    ratio = ratios(found)
    for name, ways in found.items():
        cells = [f"{statistics.median(ways[way]):.2f}" if ways[way] else "not everybody finished" for way in WAYS]
        made.add_row(name, *cells, "-" if ratio[name] is None else f"{ratio[name]:.2f}x")
    return made
