"""All-reduce in groups and elected leaders on real data, in virtual time: what they learn, and what a death costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario


def run(folder: Path, rounds: int, **options: Any) -> dict[str, Any]:
    settings = {"world": "virtual", "peers": 8, "rounds": rounds, "evaluate_every": rounds, "partition": "label-skew"}
    return run_scenario(Cast.prepare(Scenario.parse({**settings, **options})), folder, lambda message: None)


def groups(size: int, **options: Any) -> dict[str, Any]:
    return {"name": "group-all-reduce", "group": size, **options}


def test_one_group_and_a_leader_learn_what_a_star_learns(tmp_path: Path) -> None:
    star = run(tmp_path / "star", 30, strategy="fedavg")["accuracy"]
    assert run(tmp_path / "leader", 30, strategy="leader")["accuracy"] == star
    assert abs(run(tmp_path / "groups", 30, strategy=groups(8))["accuracy"] - star) < 0.01


@pytest.mark.parametrize("strategy", ["leader", groups(4)], ids=["leader", "groups"])
def test_two_deaths_and_the_rest_finishes_soon(tmp_path: Path, strategy: Any) -> None:
    faults = [{"at": 0.2, "kill": "peer:2"}, {"at": 0.4, "kill": "peer:5"}]
    summary = run(tmp_path, 40, strategy=strategy, faults=faults)
    assert summary["finished"] == 6
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert max(event["t"] for event in events) < 7  # a second to notice each death, and no deadline
    assert not [event for event in events if event["kind"] in ("late", "partial", "no-leader")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "codec"),
    [
        (groups(4), "dense"),
        (groups(4), "8-bit"),
        (groups(4), {"name": "top-k", "keep": 0.1}),
        (groups(4), "sign"),
        ("leader", "8-bit"),
        ("leader", {"name": "top-k", "keep": 0.1}),
    ],
)
def test_on_two_labels_each_they_come_near_the_star_with_any_codec(tmp_path: Path, strategy: Any, codec: Any) -> None:
    star = run(tmp_path / "star", 300, strategy="fedavg")["accuracy"]
    summary = run(tmp_path / "other", 300, strategy=strategy, codec=codec)
    assert summary["accuracy"] > star - 0.03
    assert summary["accuracy_lowest"] > star - 0.05
