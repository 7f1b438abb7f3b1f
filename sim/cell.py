"""One cell of a study, what makes it the same cell again, and how the cells of a quick form are smaller.

A finished cell is keyed by its scenario, its attacks, its files of data, and the code and libraries that ran it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from veilmesh.sim.record import versions
from veilmesh.sim.run import COMPLETE, Assignment
from veilmesh.sim.scenario import Scenario

__all__ = ["Cell", "code_digest", "shrunk"]


@dataclass(frozen=True)
class Cell:
    """One point of a study: its place on the axes, its scenario and its attacks."""

    axes: Mapping[str, Any]
    scenario: Scenario
    attacks: tuple[Assignment, ...]

    @property
    def name(self) -> str:
        """For people and folders."""
        return ", ".join(str(v) for v in self.axes.values()) or "the run"

    @cached_property
    def key(self) -> str:
        """The cell's folder: what it is, and a digest of everything its result depends on."""
        attacks = [[a.attack.model_dump(mode="json"), a.vantage, a.title] for a in self.attacks]
        depends = [self.scenario.model_dump(mode="json"), attacks, code_digest(), versions(), _stamp(self.scenario)]
        content = json.dumps(depends, sort_keys=True)
        slug = "-".join(str(v) for v in self.axes.values()) or "run"
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in slug)[:60]
        return f"{safe}-{hashlib.blake2b(content.encode(), digest_size=5).hexdigest()}"

    def folder(self, study: Path) -> Path:
        """Where it is run, in the folder of its study."""
        return study / "cells" / self.key

    def is_done(self, study: Path) -> bool:
        """Whether it was run to its end already."""
        return (self.folder(study) / COMPLETE).exists()


def shrunk(whole: Sequence[Cell], quick: Sequence[Cell]) -> str:
    """How the cells of a quick form differ from those of the whole: every field that does, as `rounds 100 (of 200)`."""
    before, after = _values(whole), _values(quick)
    fields = [f for f in sorted(before.keys() | after.keys()) if f != "title" and before.get(f) != after.get(f)]
    words = [f"{f} {_listed(after.get(f, ()))} (of {_listed(before.get(f, ()))})" for f in fields]
    runs = f"{len(quick)} runs" + (f" (of {len(whole)})" if len(quick) != len(whole) else "")
    return ", ".join([runs, *words]) + ("" if words or len(quick) != len(whole) else ", nothing smaller")


def _values(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Every field of the cells' scenarios, with the different values it has."""
    found: dict[str, list[Any]] = {}
    for cell in cells:
        for name, value in _flat(cell.scenario.model_dump(mode="json")):
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return found


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "its default"


def _stamp(scenario: Scenario) -> list[Any]:
    """What shows that a task's files on disk are still the same: their names, sizes and times of change."""
    path = Path(str(scenario.task.options.get("path", ""))).expanduser()
    if "path" not in scenario.task.options or not path.exists():
        return []
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@cache
def code_digest() -> str:
    """A digest of this program's own source: results of other code are not taken for this one's."""
    import veilmesh.core

    root = Path(veilmesh.core.__file__).parent.parent
    rooms = ("core", "crypto", "tasks", "peer", "swarm", "split", "attacks", "sim")
    digest = hashlib.blake2b(digest_size=8)
    for room in rooms:
        for source in sorted((root / room).rglob("*.py")):
            if "report" not in source.parts:
                digest.update(source.read_bytes())
    return digest.hexdigest()
