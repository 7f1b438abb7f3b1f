"""What accuracy cost, in the report: its curves against time and bytes, and the table of levels."""

import json
import re
from html import unescape
from math import log10
from pathlib import Path
from typing import Any

import pytest
from report_folders import write

from veilmesh.sim.curves import Counted, time_and_bytes_to
from veilmesh.sim.report import write_report
from veilmesh.sim.report.charts import BYTES, line_chart
from veilmesh.sim.report.costs import Arm, Cost, Spent, arms, by_bytes, by_time, costs, spending
from veilmesh.sim.report.curves import MOST_POINTS, Point, Series
from veilmesh.sim.report.load import read_report
from veilmesh.sim.report.model import Metric, Peer, Run, Setup, Summary, Tampering

PEERS = tuple(Peer(i, f"peer:{i}") for i in range(3))


def lines(rate: float, size: int, peers: int = 3) -> list[dict[str, Any]]:
    """Ten rounds of a second each; accuracy after every other, 0.1 x `rate` better each second, peer 2 a bit behind."""
    found = []
    for at in range(1, 11):
        for peer in range(peers):
            accuracy = min(0.99, 0.1 * at * rate - 0.02 * (peer == 2)) if at % 2 == 0 else None
            found.append(
                {"t": float(at), "peer": peer, "round": at, "loss": 1.0, "accuracy": accuracy, "bytes_sent": at * size}
            )
    return found


def run_of(metrics: list[dict[str, Any]], kind: str = "arm", summary: Summary | None = None) -> Run:
    return Run(kind, kind, Path(), summary, tuple(Metric(**line) for line in metrics), kind=kind)


def study_of(folder: Path, cells: dict[tuple[str, int], list[dict[str, Any]]]) -> Path:
    """A study of arms and seeds, with these metrics."""
    listed = []
    for (arm, seed), metrics in cells.items():
        place = folder / "cells" / f"{arm}-{seed}"
        members = [{"index": i, "name": f"peer:{i}", "role": "peer", "ended": "finished"} for i in range(3)]
        summary = {"task": "digits", "peers": members, "scenario": {"adversary": None}}
        write(place / "summary.json", summary)
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        listed.append({"key": place.name, "axes": {"seed": seed, "arm": arm}, "summary": summary})
    write(folder / "summary.json", {"study": {"title": "A study"}, "cells": listed})
    return folder


def test_a_run_is_as_good_as_its_median_model_for_what_had_been_sent_by_then() -> None:
    spent = spending(run_of(lines(1.0, 1000)))
    assert [s.seconds for s in spent] == [1, 3, 5, 7, 9]  # from the first training that was done
    assert [s.bytes_per_peer for s in spent] == [2000, 4000, 6000, 8000, 10000]
    assert [round(s.accuracy, 6) for s in spent] == [0.2, 0.4, 0.6, 0.8, 0.99]


@pytest.mark.parametrize("level", [0.3, 0.8, 0.9])
def test_its_figures_are_those_of_the_summary(level: float) -> None:
    metrics = lines(1.0, 1000)
    everybody = frozenset(range(3))
    reached = time_and_bytes_to(metrics, level, Counted(everybody, everybody))
    first = next(s for s in spending(run_of(metrics)) if s.accuracy >= level)
    assert reached is not None
    assert (reached.seconds, reached.bytes_per_peer) == (first.seconds, first.bytes_per_peer)


def test_liars_do_not_count_and_a_hub_counts_alone() -> None:
    metrics = [*lines(1.0, 1000, 2), *({**line, "peer": 2, "accuracy": 1.0} for line in lines(1.0, 9000, 1))]
    liar = Summary(peers=PEERS, scenario=Setup(Tampering("peer:2", {"name": "flip"})))
    assert spending(run_of(metrics, summary=liar)) == spending(run_of(lines(1.0, 1000, 2)))
    hub = Summary(peers=(*PEERS[:2], Peer(2, "server", role="server")))
    assert [s.accuracy for s in spending(run_of(metrics, summary=hub))] == [1.0] * 10
    everybody_lies = Summary(peers=PEERS, scenario=Setup(Tampering("peer:2", {"name": "flip"}, (0, 1, 2))))
    assert spending(run_of(metrics, summary=everybody_lies)) == ()


def test_runs_that_differ_in_their_seed_are_one_arm_with_their_mean_and_range() -> None:
    several = [run_of(lines(rate, 1000)) for rate in (1.0, 0.9)] + [run_of(lines(0.5, 10), "other")]
    found = arms(several)
    assert [(arm.label, len(arm.runs)) for arm in found] == [("arm", 2), ("other", 1)]
    curve, _ = by_time(found)
    assert [p.x for p in curve.points] == [1, 3, 5, 7, 9]
    at_five = curve.points[2]
    assert (at_five.low, at_five.mean, at_five.high) == pytest.approx((0.54, 0.57, 0.6))
    assert [p.x for p in by_bytes(found)[1].points] == pytest.approx([log10(20 * k) for k in (1, 2, 3, 4, 5)])


def test_runs_that_measured_at_different_moments_are_joined_and_the_shorter_one_stays_where_it_ended() -> None:
    one = (Spent(1, 10, 0.2), Spent(3, 30, 0.6))
    two = (Spent(2, 20, 0.3), Spent(4, 40, 0.5))
    [curve] = by_time([Arm("arm", (one, two))])
    assert [(p.x, pytest.approx(p.mean)) for p in curve.points] == [(2, 0.35), (3, 0.5), (4, 0.55)]


def test_long_curves_are_thinned_from_their_end() -> None:
    [curve] = by_time([Arm("arm", (tuple(Spent(t, 1, t / 1000) for t in range(1000)),))])
    assert len(curve.points) <= MOST_POINTS
    assert curve.points[-1].x == 999


def test_a_run_that_counted_no_bytes_has_a_curve_in_time_only() -> None:
    found = arms([run_of([{**line, "bytes_sent": 0} for line in lines(1.0, 1)])])
    assert by_time(found)
    assert by_bytes(found) == []


def test_metrics_without_a_time_cost_nothing_that_could_be_said() -> None:
    assert arms([run_of([{**line, "t": None} for line in lines(1.0, 1)]), run_of([])]) == []


def test_the_table_compares_with_the_first_arm_and_leaves_out_what_was_not_reached_by_all() -> None:
    slow, half = [run_of(lines(1.0, 1000), "dense"), run_of(lines(0.85, 1000), "dense")], run_of(lines(0.9, 10), "few")
    (dense, first), (few, second) = costs(arms([*slow, half]))
    assert (dense.label, few.label) == ("dense", "few")
    assert first == {80: Cost(8.0, 9000.0, 1.0), 90: Cost()}
    assert second[80] == Cost(9.0, 100.0, 90.0)
    assert second[90] == Cost(9.0, 100.0, None)
    assert costs(arms([run_of(lines(0.1, 1))]))[0][1] == {}


def test_the_page_holds_the_curves_of_a_study_and_the_exact_figures(tmp_path: Path) -> None:
    cells = {
        (arm, seed): lines(rate, size)
        for arm, size in (("dense", 100_000), ("few", 400))
        for seed, rate in ((0, 1.0), (1, 1.01))
    }
    text = write_report(study_of(tmp_path, cells)).read_text(encoding="utf-8")
    section = text[text.index('<section id="costs">') :]
    section = section[: section.index("</section>")]
    assert [run.kind for run in read_report(tmp_path).runs] == ["dense", "dense", "few", "few"]
    assert "Accuracy by time" in section
    assert "Accuracy by bytes" in section
    series = [json.loads(unescape(found)) for found in re.findall(r'data-series="([^"]*)"', section)]
    assert [len(chart) for chart in series] == [2, 2]
    assert series[1][1][-1] == pytest.approx([log10(4000), 0.99], abs=1e-5)
    assert re.findall(r'data-unit="(\w+)"', section) == ["s", "B"]
    for figure in ("800000.0", "3200.0", "250.0"):
        assert f'<data value="{figure}">' in section
    assert "100\u202fkB" in section  # a tick
    assert 'class="band' in section


def test_a_single_run_has_its_curves_too_and_needs_no_comparison(tmp_path: Path) -> None:
    write(tmp_path / "summary.json", {"title": "one", "task": "digits", "peers": [{"index": i} for i in range(3)]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(1.0, 1000)))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    section = text[text.index('<section id="costs">') :]
    assert '<data value="8000.0">' in section
    assert "fewer" not in section[: section.index("</section>")]


def test_an_axis_of_bytes_has_round_ticks_however_narrow_it_is() -> None:
    def ticks_of(low: float, high: float) -> list[str]:
        chart = line_chart("", [Series("a", (Point(low, 0, 0, 0), Point(high, 1, 1, 1)))], shares=True, axis=BYTES)
        return re.findall(r">(\d[\d.]*\u202f[kMGT]?B)<", str(chart.svg))

    assert [t.replace("\u202f", " ") for t in ticks_of(2.5, 7.2)] == ["1 kB", "10 kB", "100 kB", "1 MB", "10 MB"]
    assert [t.replace("\u202f", " ") for t in ticks_of(4.0, 5.0)] == ["10 kB", "20 kB", "50 kB", "100 kB"]
    assert len(ticks_of(4.1, 4.2)) == 2
    assert len(ticks_of(4.1, 4.1)) == 1
