"""A study as one table (CSV), and what its settings cost against what they hide as one drawing (SVG).

    python -m veilmesh.sim.report.trade_off FOLDER --points defence --series message

The table has a row for every attack of every cell, so that anything else can be made of it. The drawing has a mark for
every value of the axis `points`: to the right the accuracy, upwards the PSNR of the best attacker on the very same
messages, both means over the cells that have both, with bars from the lowest to the highest cell; a dashed line is what
the best guess without any information scores. Down and to the right is where a defence should be.
"""

import argparse
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from veilmesh.core import BadInput
from veilmesh.core.registry import unknown
from veilmesh.sim.record import read_json
from veilmesh.sim.report.scales import Scale, ticks
from veilmesh.sim.report.svg import SERIES, canvas, marker, tag

__all__ = ["Spot", "drawing", "spots", "table", "write_trade_off"]

WIDTH, HEIGHT = 720.0, 460.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 150.0, 16.0, 46.0
OF_RUN = ("accuracy", "accuracy_lowest", "bytes_per_peer_round", "cpu_seconds")
OF_ATTACK = (
    "attack", "title", "vantage", "pictures", "psnr_mean", "psnr_low", "psnr_high", "gain_mean", "floor_blind",
    "labels_right",
)  # fmt: skip
FLOORS = ("grey", "mean", "nearest")
COLOURS = ("#1f5fa8", "#b3541e", "#2e7d4f", "#7b4ba0", "#8a6d00", "#a03060", "#3d7f86", "#555555")

Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Spot:
    """One mark: accuracy and PSNR of its best attacker over cells, each as (mean, lowest, highest), and the floor."""

    series: str
    point: str
    accuracy: tuple[float, float, float]
    psnr: tuple[float, float, float]
    title: str  # of the attack
    floor: float


def table(cells: Cells) -> str:
    """Every cell and every attack on it as CSV, one row each; cells without attacks have one row. Empty: not known."""
    axes = list(cells[0]["axes"]) if cells else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *OF_RUN, *OF_ATTACK, *(f"floor_{name}" for name in FLOORS)])
    for cell in cells:
        summary = cell["summary"]
        for attack in summary["attacks"] or [{}]:
            floors = attack.get("floors") or {}
            known = [summary.get(name) for name in OF_RUN] + [attack.get(name) for name in OF_ATTACK]
            writer.writerow([*(cell["axes"][a] for a in axes), *known, *(floors.get(name) for name in FLOORS)])
    return text.getvalue()


def spots(cells: Cells, points: str, series: str) -> list[Spot]:
    """A mark for each value of the axis `points` in each of `series`, in the study's order. Raises BadInput: no such
    axis."""
    axes = list(cells[0]["axes"]) if cells else []
    for axis in (points, series):
        if axis not in axes:
            raise BadInput(unknown("axis", axis, axes))
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((str(cell["axes"][series]), str(cell["axes"][points])), []).append(cell["summary"])
    return [spot for (line, point), of in groups.items() for spot in _spot(line, point, of)]


def _spot(series: str, point: str, summaries: Sequence[Mapping[str, Any]]) -> Iterator[Spot]:
    """Of the attacks that more than its share of cells have, the one with the highest mean."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for summary in summaries:
        for attack in summary["attacks"]:
            if attack.get("psnr_mean") is not None and summary.get("accuracy") is not None:
                scores = (summary["accuracy"], attack["psnr_mean"], attack["psnr_mean"] - attack["gain_mean"])
                found.setdefault(attack["title"] or attack["attack"], []).append(scores)
    if found:
        most = max(len(of) for of in found.values())
        title, of = max(((t, o) for t, o in found.items() if len(o) == most), key=lambda i: fmean(s[1] for s in i[1]))
        accuracy, psnr, floor = zip(*of, strict=True)
        yield Spot(series, point, _range(accuracy), _range(psnr), title, fmean(floor))


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    return fmean(values), min(values), max(values)


def drawing(found: Sequence[Spot], title: str) -> str:
    """The marks as an SVG file of its own. Raises BadInput where there are none."""
    if not found:
        raise BadInput("No cell of this study has both an accuracy and an attack that was scored; there is no drawing.")
    across = ticks(min(s.accuracy[1] for s in found), max(s.accuracy[2] for s in found))
    up = ticks(min(min(s.psnr[1], s.floor) for s in found), max(s.psnr[2] for s in found))
    x = Scale(across[0], across[-1], LEFT, WIDTH - RIGHT)
    y = Scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    names = list(dict.fromkeys(s.series for s in found))[:SERIES]
    marks = [_mark(names.index(s.series), s, x, y) for s in found if s.series in names]
    floors = [_floor(at, [s.floor for s in found if s.series == name], x, y) for at, name in enumerate(names)]
    legend = [_legend(at, name) for at, name in enumerate(names)]
    words = f"{title} " + "; ".join(f"{s.series}, {s.point}: {s.accuracy[0]:.3f}, {s.psnr[0]:.1f} dB" for s in found)
    attributes = {"xmlns": "http://www.w3.org/2000/svg", "width": WIDTH, "height": HEIGHT}
    style = tag("style", {}, Markup(_style()))
    parts = (style, _frame(x, y, across, up), *floors, *marks, *legend)
    return str(canvas(WIDTH, HEIGHT, words, attributes, *parts))


def _style() -> str:
    colours = "".join(f".mark.s{n}{{fill:{c}}} .bar.s{n}{{stroke:{c}}}" for n, c in enumerate(COLOURS))
    return (
        "svg{background:#fff} text{font:12px sans-serif;fill:#444} .grid{stroke:#e2e2e2} .bar{stroke-width:1} "
        f".floor{{stroke-dasharray:5 4}} .name{{font-size:10.5px}} {colours}"
    )


def _frame(x: Scale, y: Scale, across: Sequence[float], up: Sequence[float]) -> Markup:
    parts = []
    for mark in up:
        parts.append(tag("line", {"class": "grid", "x1": x.start, "x2": x.end, "y1": y(mark), "y2": y(mark)}))
        parts.append(tag("text", {"x": LEFT - 7, "y": y(mark) + 4, "text-anchor": "end"}, f"{mark:g}"))
    for mark in across:
        parts.append(tag("line", {"class": "grid", "x1": x(mark), "x2": x(mark), "y1": y.start, "y2": y.end}))
        parts.append(tag("text", {"x": x(mark), "y": y.start + 18, "text-anchor": "middle"}, f"{100 * mark:g} %"))
    below = {"x": (x.start + x.end) / 2, "y": HEIGHT - 6, "text-anchor": "middle"}
    beside = {"transform": f"translate(14 {(y.start + y.end) / 2:g}) rotate(-90)", "text-anchor": "middle"}
    parts.append(tag("text", below, "accuracy"))
    parts.append(tag("text", beside, "PSNR of the best attacker on the same message, dB"))
    return tag("g", {}, *parts)


def _mark(series: int, spot: Spot, x: Scale, y: Scale) -> Markup:
    at, height = x(spot.accuracy[0]), y(spot.psnr[0])
    bar = {"class": f"bar s{series}"}
    wide = tag("line", {**bar, "x1": x(spot.accuracy[1]), "x2": x(spot.accuracy[2]), "y1": height, "y2": height})
    tall = tag("line", {**bar, "x1": at, "x2": at, "y1": y(spot.psnr[1]), "y2": y(spot.psnr[2])})
    name = tag("text", {"class": "name", "x": at + 6, "y": height - 5}, spot.point)
    said = f"{spot.series}, {spot.point}: {spot.accuracy[0]:.3f}, {spot.psnr[0]:.2f} dB by {spot.title}"
    return tag("g", {}, tag("title", {}, said), wide, tall, marker(series, at, height), name)


def _floor(series: int, floors: Sequence[float], x: Scale, y: Scale) -> Markup:
    at = y(fmean(floors))
    return tag("line", {"class": f"bar floor s{series}", "x1": x.start, "x2": x.end, "y1": at, "y2": at})


def _legend(series: int, name: str) -> Markup:
    top = TOP + 12 + 20 * series
    label = tag("text", {"x": WIDTH - RIGHT + 26, "y": top + 4}, name)
    return tag("g", {}, marker(series, WIDTH - RIGHT + 14, top), label)


def write_trade_off(folder: Path, points: str, series: str) -> tuple[Path, Path]:
    """Write `trade-off.csv` and `trade-off.svg` into the folder of a finished study. Raises BadInput."""
    summary = read_json(folder / "summary.json")
    if "cells" not in summary:
        raise BadInput(f"{folder} is not the folder of a study; run one with `veilmesh study run`.")
    files = folder / "trade-off.csv", folder / "trade-off.svg"
    drawn = drawing(spots(summary["cells"], points, series), str(summary["study"]["title"]))
    files[0].write_text(table(summary["cells"]), encoding="utf-8", newline="\n")
    files[1].write_text(drawn, encoding="utf-8", newline="\n")
    return files


def _main() -> None:
    parser = argparse.ArgumentParser(prog="trade_off", description="A finished study as CSV and as a drawing.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", default="defence", help="the axis whose values are marks")
    parser.add_argument("--series", default="message", help="the axis whose values are colours")
    given = parser.parse_args()
    try:
        for path in write_trade_off(given.folder, given.points, given.series):
            print(path)
    except BadInput as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    _main()
