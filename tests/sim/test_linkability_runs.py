"""Newcomers known again by their updates: a row for a run, right for the right reasons, and claims that can read it."""

from pathlib import Path

import numpy as np
import pytest

from veilmesh.attacks.inference.base import Scores
from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import attach, audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.claims import Claim, judge
from veilmesh.sim.membership import link_figures
from veilmesh.sim.report import write_report
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.virtual import run_in_virtual_time

SCENARIO = {
    "world": "virtual", "peers": 6, "rounds": 6, "seed": 2, "task": "digits", "model": {"name": "mlp", "hidden": [16]},
    "partition": {"name": "dirichlet", "alpha": 0.3}, "training": {"batch": 32}, "adversary": {"vantage": "peer:0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linkability") / "run"
    run_in_virtual_time(Cast.prepare(Scenario.parse(SCENARIO)), folder, lambda *_: None)
    return folder


def test_peers_with_data_of_their_own_are_known_again(run: Path) -> None:
    cast, ids = open_run(run)
    row = audit(run, cast, ids, Choice(name="linkability"), "peer:0")
    assert row["infers"] == "peers"
    assert row["updates"] == 3 * 5
    assert row["top_1_floor"] == pytest.approx(1 / 5)
    assert row["top_1"] >= row["top_1_low"] > row["top_1_floor"]
    summary = attach(run, row)
    cells = [{"axes": {}, "summary": summary}]
    assert judge(Claim("x", "best(top_1, attack='linkability') > best(top_1_floor, attack='linkability')"), cells).holds
    assert write_report(run).is_file()


def _scores(*said: tuple[str, list[float]]) -> list[Scores]:
    return [Scores(PeerId(victim), "local", 1, np.array(values), 0.0) for victim, values in said]


def test_an_update_is_right_where_its_own_peer_has_the_highest_score() -> None:
    figures = link_figures(_scores(("b", [0.1, 0.9]), ("a", [0.8, 0.2]), ("b", [0.6, 0.5]), ("a", [0.3, 0.1])))
    assert figures["top_1"] == 0.75
    assert figures["top_1_floor"] == 0.5
    assert figures["top_1_low"] < 0.5  # two peers are not enough to tell, however many updates
    assert link_figures([])["top_1"] is None


def test_one_round_leaves_nobody_to_compare_with(tmp_path: Path) -> None:
    run_in_virtual_time(Cast.prepare(Scenario.parse(SCENARIO | {"rounds": 1})), tmp_path / "run", lambda *_: None)
    row = audit(tmp_path / "run", *open_run(tmp_path / "run"), Choice(name="linkability"), "peer:0")
    assert row["guesses_made"] == 0
    assert row["top_1"] is None
