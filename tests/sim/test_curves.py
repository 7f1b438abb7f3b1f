"""How soon a run learned: the median peer's latest measurement, and what had been sent by then."""

import json
from pathlib import Path
from typing import Any

import pytest

from veilmesh.sim.cast import Cast
from veilmesh.sim.curves import LEVELS, Counted, Reached, time_and_bytes_to, typical_accuracy, who_counts
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time

ALL = Counted(frozenset({0, 1, 2}), frozenset({0, 1, 2}))


def line(t: float, peer: int, accuracy: float | None = None, sent: int = 0) -> dict[str, Any]:
    return {"t": t, "peer": peer, "round": 1, "loss": None, "accuracy": accuracy, "bytes_sent": sent}


def test_the_level_is_reached_when_half_of_the_models_have_it() -> None:
    metrics = [
        line(2.0, 0, None, 100), line(5.0, 0, 0.95, 300), line(6.0, 1, 0.5, 300), line(7.0, 1, 0.9, 400),
        line(7.5, 2, None, 800), line(9.0, 2, 0.99, 999),
    ]  # fmt: skip
    assert time_and_bytes_to(metrics, 0.9, ALL) == Reached(5.0, (300 + 400 + 0) / 3)
    assert time_and_bytes_to(reversed(metrics), 0.9, ALL) == time_and_bytes_to(metrics, 0.9, ALL)
    assert time_and_bytes_to(metrics, 0.96, ALL) is None
    assert time_and_bytes_to([], 0.5, ALL) is None


def test_a_peer_that_measures_rarely_or_died_does_not_hold_the_figure_back() -> None:
    metrics = [line(0.0, 2, 0.1), *(line(t, p, 0.1 * t) for t in range(1, 10) for p in (0, 1))]
    assert time_and_bytes_to(metrics, 0.85, ALL) == Reached(9.0, 0.0)
    assert [a for _, a in typical_accuracy(metrics, ALL.models)][-1] == pytest.approx(0.9)


def test_liars_do_not_count_and_a_server_counts_alone() -> None:
    members = [{"index": i, "name": f"peer:{i}", "role": "peer"} for i in range(3)]
    tamper = {"vantage": "peer:1", "tamper": {"name": "flip"}, "peers": []}
    named = {**tamper, "peers": [0, 2]}
    hub = {"index": 3, "name": "server", "role": "server"}
    assert who_counts({"peers": members, "scenario": {"adversary": None}}) == ALL
    assert who_counts({"peers": members, "scenario": {"adversary": tamper}}).models == {0, 2}
    assert who_counts({"peers": members, "scenario": {"adversary": named}}).models == {1}
    assert who_counts({"peers": members, "scenario": {"adversary": {**tamper, "tamper": None}}}) == ALL
    assert who_counts({"peers": [*members, hub], "scenario": {}}) == Counted(frozenset({3}), ALL.senders)


@pytest.mark.parametrize("strategy", ["gossip", "fedavg"])
def test_a_run_says_when_it_had_a_level(tmp_path: Path, strategy: str) -> None:
    scenario = Scenario.parse({
        "world": "virtual", "peers": 3, "rounds": 100, "evaluate_every": 20, "task": "digits", "strategy": strategy,
        "model": {"name": "mlp", "hidden": [16]},
    })  # fmt: skip
    summary = run_in_virtual_time(Cast.prepare(scenario), tmp_path, lambda *heard: None)
    assert {f"{what}_to_{level}" for what in ("seconds", "bytes") for level in LEVELS} <= summary.keys()
    reached = summary["seconds_to_80"], summary["bytes_to_80"]
    metrics = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = time_and_bytes_to(metrics, 0.8, who_counts(summary))
    assert found is not None
    assert reached == (found.seconds, found.bytes_per_peer)
    assert found.seconds > 0
    assert found.bytes_per_peer > 0
