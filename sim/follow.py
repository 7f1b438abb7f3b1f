"""Reading a run directory while it is being written: for whoever watches a run from outside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veilmesh.core import BadInput
from veilmesh.sim.record import read_json

__all__ = ["Followed", "Tail"]


class Tail:
    """The lines of a JSON-lines file that have been completed since the last look.

    A file that is shorter than it was has been begun anew (a resumed run cuts off what lies after its last checkpoint);
    `restarted` then says so, and reading begins at its start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.restarted = False

    def new(self) -> Iterator[dict[str, Any]]:
        """Every whole line that has come; one that is no JSON object is passed over."""
        self.restarted = False
        try:
            if self._path.stat().st_size < self._at:
                self._at, self.restarted = 0, True
            with self._path.open("rb") as file:
                file.seek(self._at)
                written = file.read()
        except FileNotFoundError:
            return
        whole = written[: written.rfind(b"\n") + 1]
        self._at += len(whole)
        for raw in whole.splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


class Followed:
    """One run directory, read as it grows. Raises BadInput where there is no run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = read_json(folder / "run.json")
        self.names: tuple[str, ...] = tuple(member["name"] for member in run["members"])
        scenario = run["scenario"]
        self.title: str = scenario["title"] or f"{scenario['task']['name']}, {scenario['strategy']['name']}"
        if not self.names:
            raise BadInput(f"{folder / 'run.json'} names no members; give the folder of a run.")
        self.events = Tail(folder / "events.jsonl")
        self.metrics = Tail(folder / "metrics.jsonl")

    @property
    def over(self) -> bool:
        """Whether the run has written its last word."""
        return (self.folder / "summary.json").exists()

    def name(self, line: dict[str, Any]) -> str:
        """Which member a line speaks of."""
        index = line.get("peer")
        return self.names[index] if isinstance(index, int) and 0 <= index < len(self.names) else "?"
