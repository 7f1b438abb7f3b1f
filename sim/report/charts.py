"""Line charts as inline SVG: axes with round ticks, several series, a legend that holds each series' last value.

The numbers travel with the drawing (`data-series`), so that the page's script can read a chart out at the pointer;
without the script the chart and its legend already say everything that is printed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup

from veilmesh.sim.report.curves import Point, Series
from veilmesh.sim.report.numbers import amount, percent
from veilmesh.sim.report.scales import Scale, ticks
from veilmesh.sim.report.svg import PATTERNS, SERIES, canvas, marker, tag, trimmed

__all__ = ["BYTES", "ROUNDS", "SECONDS", "Axis", "Chart", "line_chart"]

WIDTH, HEIGHT = 480.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 44.0
FEW = 40  # a line with no more points than this shows each of them


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies along a chart: its name, its unit as the page's script knows it, and the ticks between two ends."""

    name: str
    unit: str
    marks: Callable[[float, float], Sequence[tuple[float, str]]]


def _whole(low: float, high: float) -> list[tuple[float, str]]:
    return [(mark, f"{mark:g}") for mark in ticks(low, high, 6, whole=True)]


def _even(low: float, high: float) -> list[tuple[float, str]]:
    return [(mark, f"{mark:g}") for mark in ticks(low, high, 6)]


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two logarithms, with 2 and 5 times them where there are few."""
    among = (1, 2, 5) if high - low < 2 else (1,)
    marks = [power + log10(factor) for power in range(floor(low), ceil(high) + 1) for factor in among]
    inside = [mark for mark in marks if low <= mark <= high]
    return [(mark, amount(10**mark)) for mark in (inside if len(inside) > 1 else sorted({low, high}))]


ROUNDS = Axis("round", "round", _whole)
SECONDS = Axis("seconds", "s", _even)
BYTES = Axis("bytes sent by a peer, on a logarithmic scale", "B", _decades)
"""Series on this axis give the decimal logarithm of their bytes."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart: its name, the drawing, the legend below it, and how many rounds stand behind a point."""

    title: str
    svg: Markup
    legend: Markup
    every: int


def line_chart(title: str, series: Sequence[Series], *, shares: bool, axis: Axis = ROUNDS) -> Chart:
    """Values along `axis`, one line a series (at most `SERIES`); `shares` writes values in [0, 1] as percentages."""
    shown = series[:SERIES]
    points = [point for line in shown for point in line.points]
    x = Scale(min(p.x for p in points), max(p.x for p in points), LEFT, WIDTH - RIGHT)
    spread = [value for p in points for value in ((p.low, p.high) if shares else (p.mean,))]
    marks = ticks(min(spread), max(spread))
    y = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    write = percent if shares else _plain
    lines = [_line(index, line, x, y, shares) for index, line in enumerate(shown)]
    words = f"{title} by {axis.name}. Last values: {'; '.join(f'{s.label} {write(s.points[-1].mean)}' for s in shown)}."
    data = {
        "class": "chart",
        "data-series": json.dumps([[[round(p.x, 6), round(p.mean, 6)] for p in line.points] for line in shown]),
        "data-frame": json.dumps([x.low, x.high, x.start, x.end, TOP, HEIGHT - BOTTOM]),
        "data-shares": "true" if shares else "false",
        "data-unit": axis.unit,
    }
    drawing = canvas(WIDTH, HEIGHT, words, data, _axes(axis, x, y, marks, shares), *lines)
    return Chart(title, drawing, _legend(shown, write), max(line.every for line in shown))


def _axes(axis: Axis, x: Scale, y: Scale, marks: Sequence[float], shares: bool) -> Markup:
    parts = []
    for mark in marks:
        label = f"{round(100 * mark, 8):g} %" if shares else f"{mark:g}"
        parts.append(tag("line", {"class": "grid", "x1": x.start, "x2": x.end, "y1": y(mark), "y2": y(mark)}))
        parts.append(tag("text", {"class": "tick", "x": LEFT - 7, "y": y(mark) + 4, "text-anchor": "end"}, label))
    for mark, label in axis.marks(x.low, x.high):
        if x.low <= mark <= x.high:
            parts.append(
                tag("line", {"class": "notch", "x1": x(mark), "x2": x(mark), "y1": y.start, "y2": y.start + 5})
            )
            at = {"class": "tick", "x": x(mark), "y": y.start + 19, "text-anchor": "middle"}
            parts.append(tag("text", at, label))
    parts.append(tag("line", {"class": "axis", "x1": x.start, "x2": x.end, "y1": y.start, "y2": y.start}))
    middle = {"class": "axis-name", "x": (x.start + x.end) / 2, "y": HEIGHT - 6, "text-anchor": "middle"}
    return tag("g", {}, *parts, tag("text", middle, axis.name))


def _line(index: int, line: Series, x: Scale, y: Scale, shares: bool) -> Markup:
    points = line.points
    parts = [_band(index, points, x, y)] if shares and any(p.low < p.high for p in points) else []
    path = " ".join(f"{'L' if at else 'M'}{trimmed(x(p.x))} {trimmed(y(p.mean))}" for at, p in enumerate(points))
    dashes = PATTERNS[index % SERIES] or None
    parts.append(tag("path", {"class": f"line s{index}", "d": path, "stroke-dasharray": dashes}))
    marked = points if len(points) <= FEW else points[-1:]
    parts.extend(marker(index, x(p.x), y(p.mean), 3.2) for p in marked)
    return tag("g", {}, *parts)


def _band(index: int, points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    there = [f"{trimmed(x(p.x))},{trimmed(y(p.high))}" for p in points]
    back = [f"{trimmed(x(p.x))},{trimmed(y(p.low))}" for p in reversed(points)]
    return tag("polygon", {"class": f"band s{index}", "points": " ".join(there + back)})


def _legend(series: Sequence[Series], write: Callable[[float | None], str]) -> Markup:
    items = []
    for index, line in enumerate(series):
        stroke = {"class": f"line s{index}", "d": "M1 7 H27", "stroke-dasharray": PATTERNS[index] or None}
        swatch = tag(
            "svg", {"viewBox": "0 0 28 14", "aria-hidden": "true"}, tag("path", stroke), marker(index, 14, 7, 3.2)
        )
        last = tag("span", {"class": "value"}, write(line.points[-1].mean))
        items.append(tag("li", {}, swatch, tag("span", {}, line.label), " ", last))
    return tag("ul", {"class": "legend"}, *items)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
