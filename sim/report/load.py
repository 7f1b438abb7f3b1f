"""From a folder of a run or a study to a `Report`.

The files are a run's own record, but many strings in them were chosen by remote peers, and a folder may come from
somebody else. So every string is stripped of control and bidirectional characters here, once, and a path that leads
out of the folder is never followed. What is missing is left out; what is there but broken is refused, with its place.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from veilmesh.core import BadInput
from veilmesh.core.registry import first_complaint
from veilmesh.sim.report.model import Cell, Claim, Metric, Noticed, Report, Run, Study, Summary

__all__ = ["cleaned", "inside", "labelled", "read_report", "read_summaries", "validated"]

T = TypeVar("T")
LONGEST = 2000
NOTICED = ("alarm", "canary", "replaced")


def read_report(folder: Path) -> Report:
    """The report of the study or run in `folder`. Raises BadInput if it has no summary, or a broken one."""
    raw = _read_json(folder / "summary.json", needed=True)
    if "cells" in raw or "study" in raw:
        return _study(folder, raw)
    summary = validated(Summary, raw, folder / "summary.json")
    title = summary.title or folder.resolve().name
    run, unread = _run(folder, summary, title, title)
    return Report(title, None, (run,), versions=_mapping(run.record.get("versions")), unread=unread)


def read_summaries(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cells and the claims of the study or run in `folder`, as `summary_table` and `claims_table` take them."""
    raw = _read_json(folder / "summary.json", needed=True)
    if "cells" in raw or "study" in raw:
        return raw.get("cells", []), raw.get("claims", [])
    return [raw], []


def validated(kind: type[T], raw: object, place: Path | str) -> T:
    """`raw` as a `kind`. Raises BadInput, naming what in `place` is wrong."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        raise BadInput(f"{place} is broken ({first_complaint(error)}); run it again to write it anew.") from None


def cleaned(value: Any) -> Any:
    """JSON without its nulls, its NaNs and infinities, and the unprintable characters of its strings."""
    if isinstance(value, str):
        return "".join(
            c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in value[:LONGEST]
        )
    if isinstance(value, Mapping):
        pairs = ((cleaned(str(key)), cleaned(item)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def inside(folder: Path, name: str) -> Path | None:
    """`folder / name` where that is something inside `folder`, links followed; else None."""
    try:
        place = (folder / name).resolve()
        return place if name and place.exists() and place.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return None


def _study(folder: Path, raw: Mapping[str, Any]) -> Report:
    place = folder / "summary.json"
    study = validated(Study, raw.get("study", {}), place)
    cells = validated(tuple[Cell, ...], raw.get("cells", []), place)
    claims = validated(tuple[Claim, ...], raw.get("claims", []), place)
    runs, unread = [], 0
    for cell, (label, arm), kind in zip(cells, labelled(cells), _kinds(cells), strict=True):
        run, broken = _run_of_cell(folder, cell, label, arm)
        runs.append(replace(run, kind=kind or study.title))
        unread += broken
    title = study.title or folder.resolve().name
    return Report(title, study, tuple(runs), claims, _mapping(raw.get("versions")), unread)


def _run_of_cell(folder: Path, cell: Cell, label: str, arm: str) -> tuple[Run, int]:
    place = inside(folder / "cells", cell.key)
    if place is None:
        return Run(label, arm, folder, cell.summary), 0
    summary = cell.summary
    if summary is None and (place / "summary.json").is_file():
        summary = validated(Summary, _read_json(place / "summary.json"), place / "summary.json")
    return _run(place, summary, label, arm)


def _run(folder: Path, summary: Summary | None, label: str, arm: str) -> tuple[Run, int]:
    metrics, torn = _read_lines(folder / "metrics.jsonl")
    events, broken = _read_lines(folder / "events.jsonl")
    kinds = Counter(str(event.get("kind", "?")) for event in events)
    curve = validated(tuple[Metric, ...], metrics, folder / "metrics.jsonl")
    record = _read_json(folder / "run.json")
    told = [event for event in events if event.get("kind") in NOTICED]
    noticed = validated(tuple[Noticed, ...], told, folder / "events.jsonl")
    run = Run(label, arm, folder, summary, curve, dict(sorted(kinds.items())), record, noticed=noticed)
    return run, torn + broken


def labelled(cells: tuple[Cell, ...]) -> Iterator[tuple[str, str]]:
    """A label for each cell and one without its task: the axes that vary, text as it is, numbers with their axis.

    Cells whose axes say the same also carry their key, so that no two labels are equal.
    """
    varying = _varying(cells)
    seen: Counter[str] = Counter()
    for cell in cells:
        parts = {axis: _part(axis, cell.axes[axis]) for axis in varying if axis in cell.axes}
        label = " · ".join(parts.values()) or (cell.summary.title if cell.summary else "") or cell.key
        arm = " · ".join(part for axis, part in parts.items() if axis != "task")
        seen[label] += 1
        yield (label, arm or label) if seen[label] == 1 else (f"{label} ({cell.key})", f"{arm or label} ({cell.key})")


def _kinds(cells: tuple[Cell, ...]) -> list[str]:
    """What each cell is but for its task and its seed: cells of one kind are repetitions of each other."""
    axes = [axis for axis in _varying(cells) if axis not in ("task", "seed")]
    return [" · ".join(_part(axis, cell.axes[axis]) for axis in axes if axis in cell.axes) for cell in cells]


def _varying(cells: tuple[Cell, ...]) -> list[str]:
    """The axes on which the cells differ, in order; all of them where they differ on none."""
    names = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    return [axis for axis in names if len({str(cell.axes.get(axis)) for cell in cells}) > 1] or names


def _part(axis: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return str(value.get("name", f"{axis} {json.dumps(value)}"))
    return f"{axis} {json.dumps(value)}"


def _read_json(place: Path, *, needed: bool = False) -> dict[str, Any]:
    """The JSON object in `place`, cleaned; without one, {} unless it is `needed`."""
    try:
        value = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if not needed:
            return {}
        raise BadInput(
            f"There is no {place.name} in {place.parent}; name the folder of a finished run or study."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{place} cannot be read ({error}); run it again to write it anew.") from None
    if not isinstance(value, dict):
        raise BadInput(f"{place} is broken (not a JSON object); run it again to write it anew.")
    clean: dict[str, Any] = cleaned(value)
    return clean


def _read_lines(place: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects in `place`, and how many lines are none: a killed run leaves its last line cut off."""
    if not place.is_file():
        return [], 0
    lines = [line for line in place.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    objects = [value for value in map(_object, lines) if value is not None]
    return objects, len(lines) - len(objects)


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cleaned(value) if isinstance(value, dict) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
