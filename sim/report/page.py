"""The page: one HTML file with its style, script, pictures and drawings inside it, and nothing that it would fetch.

A content security policy in the page itself allows the one style and the one script by their hashes, and pictures as
data URIs; so even a string that slipped through escaping could neither run nor fetch anything.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from veilmesh.sim.report import numbers
from veilmesh.sim.report.charts import BYTES, SECONDS, Chart, line_chart
from veilmesh.sim.report.costs import Arm, arms, by_bytes, by_time, costs
from veilmesh.sim.report.curves import Series, accuracy, loss
from veilmesh.sim.report.devices import devices
from veilmesh.sim.report.division import divisions, noticed
from veilmesh.sim.report.extracted import extracted
from veilmesh.sim.report.gallery import galleries
from veilmesh.sim.report.inferred import inferred
from veilmesh.sim.report.load import read_report
from veilmesh.sim.report.mesh import mesh_drawing, mesh_kinds
from veilmesh.sim.report.model import Report, Run
from veilmesh.sim.report.passing import told
from veilmesh.sim.report.rows import Row, position, rows
from veilmesh.sim.report.sections import endings, headline, privacy, protections, refusals, settings, tally
from veilmesh.sim.report.strips import strip_chart
from veilmesh.sim.report.svg import SERIES

__all__ = ["render", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run or a study and return its path.

    Raises BadInput, one sentence, where `folder` has no `summary.json` or a broken one.
    """
    text = render(read_report(folder))
    place = folder / "report.html"
    place.write_text(text, encoding="utf-8", newline="\n")
    return place


def render(report: Report) -> str:
    """The page as text. The same report gives the same page, byte for byte."""
    style, script = _asset("report.css"), _asset("report.js")
    shell = {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}
    page = _environment().get_template("report.html")
    return page.render(report=report, endings=endings, position=position, **shell, **_parts(report))


def _parts(report: Report) -> dict[str, Any]:
    """Everything the template lays out, by the name it has there."""
    runs = report.runs
    return {
        "tally": tally(report.claims),
        "headline": headline(report),
        "rows": list(rows([(run.label, run.summary) for run in runs])),
        "galleries": [gallery for run in runs for gallery in galleries(run)],
        "strips": _strips(report),
        "extracted": extracted(rows([(run.label, run.summary) for run in runs])),
        "inferred": inferred(rows([(run.label, run.summary) for run in runs])),
        "curves": _curves(runs),
        "costs": _costs(runs),
        "meshes": _meshes(runs),
        "mesh_kinds": mesh_kinds([run.summary for run in runs if run.summary]),
        "devices": devices(runs),
        "divisions": divisions(runs),
        "noticed": noticed(runs),
        "protections": protections(runs),
        "privacy": privacy(runs),
        "told": told(runs),
        "refusals": refusals(runs),
        "settings": settings(runs),
    }


def _environment() -> Environment:
    env = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_asset), trim_blocks=True, lstrip_blocks=True
    )
    names = ("amount", "decibels", "described", "duration", "gain", "percent", "share", "shares", "similarity")
    env.filters.update({name: getattr(numbers, name) for name in names})
    env.filters["figure"] = _figure
    env.globals["interval"] = numbers.interval
    env.filters["by_run"] = _by_run
    return env


def _figure(value: float | None, form: str) -> str | Markup:
    """A figure as people read it, with the exact one beside it for machines."""
    text: str = getattr(numbers, form)(value)
    return text if value is None else Markup('<data value="{}">{}</data>').format(repr(value), text)


def _by_run(table: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of one run together under its label, in their order."""
    groups = [list(of) for _, of in groupby(table, key=lambda row: row.run)]
    return [(of[0].label, of) for of in groups]


def _asset(name: str) -> str:
    return files("veilmesh.sim.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy(style: str, script: str) -> str:
    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"

    return (
        f"default-src 'none'; img-src data:; style-src {allowed(style)}; script-src {allowed(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _strips(report: Report) -> Markup | None:
    table = rows([(run.label, run.summary) for run in report.runs])
    named = [
        (" · ".join(filter(None, (row.label, row.attacked.called))), row.attacked) for row in table if row.attacked
    ]
    return strip_chart(named)


def _curves(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """Accuracy and loss of the runs of each task, at most as many runs to a chart as there are colours."""
    groups = [(task, of[at : at + SERIES]) for task, of in _by_task(runs) for at in range(0, len(of), SERIES)]
    drawn = [{"task": task, "charts": _charts(of)} for task, of in groups]
    return [group for group in drawn if group["charts"]]


def _charts(runs: Sequence[Run]) -> list[Chart]:
    right: list[Series] = [series for run in runs if (series := accuracy(run))]
    wrong: list[Series] = [series for run in runs if (series := loss(run))]
    charts = [line_chart("Test accuracy", right, shares=True)] if right else []
    return charts + ([line_chart("Training loss", wrong, shares=False)] if wrong else [])


def _by_task(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.summary.task if run.summary else "", []).append(run)
    return list(by_task.items())


def _costs(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """What accuracy cost the arms of each task: charts and a table."""
    groups = [(task, arms(of)) for task, of in _by_task(runs)]
    return [
        {
            "task": task,
            "charts": [chart for at in range(0, len(of), SERIES) for chart in _cost_charts(of[at : at + SERIES])],
            "table": costs(of),
            "runs": max(len(arm.runs) for arm in of),
        }
        for task, of in groups
        if of
    ]


def _cost_charts(of: Sequence[Arm]) -> list[Chart]:
    charts = [line_chart("Accuracy by time", by_time(of), shares=True, axis=SECONDS)]
    return charts + [line_chart("Accuracy by bytes", said, shares=True, axis=BYTES) for said in [by_bytes(of)] if said]


def _meshes(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """The drawing of each mesh; runs on the same mesh, with the same peers marked, share one."""
    seen: dict[object, list[Run]] = {}
    for run in runs:
        if run.summary is not None:
            known = tuple((peer.index, peer.name, peer.role, peer.ended) for peer in run.summary.peers)
            seen.setdefault((known, run.summary.edges, run.summary.adversary), []).append(run)
    drawings = []
    for same in seen.values():
        label = ", ".join(run.label for run in same)
        drawing = mesh_drawing(label, same[0].summary) if same[0].summary else None
        drawings += [(label, drawing)] if drawing else []
    return drawings
