"""The membership game: fair candidates, figures that say what chance would, and rows that a study can read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.view import View
from veilmesh.core import BadInput, LocalError
from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import attach, audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.claims import Claim, judge
from veilmesh.sim.membership import member_figures, property_figures
from veilmesh.sim.record import read_json
from veilmesh.sim.report import write_report
from veilmesh.sim.report.table import inferred_table, summary_table
from veilmesh.sim.roc import auc, auc_floor, auc_gap_interval, auc_interval, balanced_accuracy, hits
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.study import Study
from veilmesh.sim.virtual import run_in_virtual_time

SCENARIO = {
    "world": "virtual", "peers": 4, "rounds": 3, "seed": 5, "task": {"name": "digits", "limit": 120},
    "training": {"batch": 10, "local_steps": 3, "learning_rate": 0.1}, "adversary": {"vantage": "peer:1"},
}  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """Scores what a test tells it to; remembers what it was given."""

    infers: ClassVar[str] = "members"
    seen: ClassVar[list[tuple[View, Mapping[PeerId, Candidates]]]]

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        type(self).seen.append((view, candidates))
        for victim, own in candidates.items():
            yield Scores(victim, "local", 2, rng.random(len(own.labels)), 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("membership") / "run"
    run_in_virtual_time(Cast.prepare(Scenario.parse(SCENARIO)), folder, lambda *_: None)
    return folder


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    INFERENCES.names()
    monkeypatch.setitem(INFERENCES._classes, "planted", Planted)
    Planted.seen = []
    return Planted


def inferred(run: Path, name: str, vantage: str = "peer:1", **options: Any) -> dict[str, Any]:
    cast, ids = open_run(run)
    return audit(run, cast, ids, Choice(name=name, **options), vantage)


def test_candidates_are_half_members_of_the_same_classes_and_in_no_order(run: Path, planted: type[Planted]) -> None:
    inferred(run, "planted")
    cast, ids = open_run(run)
    ((_, candidates),) = planted.seen
    assert set(candidates) == {ids[0], ids[2], ids[3]}  # of everybody but the adversary
    data, strangers = cast.dataset, []
    for victim, own in candidates.items():
        used = np.unique(np.concatenate([cast.drawn(ids.index(victim), r) for r in range(3)]))
        trained = {data.train_x[i].tobytes() for i in used}
        member = np.array([x.tobytes() in trained for x in own.pictures])
        assert len(own.labels) == 2 * member.sum() == 2 * len(used)
        assert (np.bincount(own.labels[member], minlength=10) == np.bincount(own.labels[~member], minlength=10)).all()
        assert 0 < np.flatnonzero(member).mean() < len(member)
        assert not member[: len(used)].all()
        strangers += [x.tobytes() for x in own.pictures[~member]]
    everybody = {data.train_x[i].tobytes() for shard in cast.shards for i in shard}
    assert not everybody & set(strangers)
    assert len(set(strangers)) == len(strangers)  # none is everybody's stranger
    assert not {x.tobytes() for x in data.public_x} & set(strangers)


def test_a_guesser_lies_within_the_floor(run: Path, planted: type[Planted]) -> None:
    row = inferred(run, "planted")
    assert row["auc_floor_low"] < row["auc"] < row["auc_floor_high"]
    assert row["auc_floor"] == 0.5
    assert row["auc_low"] < row["auc"] < row["auc_high"]
    assert row["tpr_1"] is None  # 90 strangers cannot tell 1 %
    assert row["candidates"] == 180
    assert row["local"] == {k: row[k] for k in row["local"]}


@pytest.mark.parametrize("name", ["loss-threshold", "lira", "rmia"])
def test_every_membership_attack_makes_a_row_for_each_kind_of_model(run: Path, name: str) -> None:
    row = inferred(run, name)
    assert row["model"] == "local"
    assert row["infers"] == "members"
    for kind in ("local", "marginalised", "consensus"):
        figures = row[kind]
        assert 0 <= figures["auc_low"] <= figures["auc"] <= figures["auc_high"] <= 1
        assert figures["auc_least"] <= figures["auc"] <= figures["auc_worst"]
        assert figures["victims"] == 3
    assert row["local_gap"]["auc"] == pytest.approx(row["local"]["auc"] - row["consensus"]["auc"], abs=1e-4)
    assert row == {**inferred(run, name), "cpu_seconds": row["cpu_seconds"]}


def test_a_row_of_scores_is_read_by_claims_and_shown_in_tables(run: Path) -> None:
    summary = attach(run, inferred(run, "rmia"))
    attach(run, inferred(run, "property", what="majority"))
    cells = [{"axes": {}, "summary": summary}]
    verdict = judge(Claim("x", "best(auc, attack='rmia') >= best(consensus.auc, attack='rmia')"), cells)
    assert verdict.holds is not None
    summary = read_json(run / "summary.json")
    assert summary_table([summary]).row_count >= 3
    table = inferred_table([summary])
    assert table is not None
    assert list(table.columns[1].cells)[:3] == ["local", "marginalised", "consensus"]
    page = write_report(run).read_text()
    assert f"{summary['attacks'][0]['consensus']['auc']:.3f}" in page
    assert "Members and properties" in page


def test_a_run_without_inferences_has_no_table_of_them() -> None:
    assert inferred_table([{"attacks": [{"attack": "analytic", "psnr_best": 60.0}]}]) is None


def test_a_property_is_scored_against_what_the_batches_were(run: Path) -> None:
    row = inferred(run, "property", what="bright", shadows=32)
    assert row["infers"] == "property"
    assert row["updates"] == 9
    assert 0 < row["share"] < 1
    assert 0 <= row["auc"] <= 1
    assert inferred(run, "property", what="class", label=3, shadows=32)["auc"] is None  # all of them had one


def test_an_unknown_attack_is_refused_with_all_that_are_known(run: Path) -> None:
    with pytest.raises(BadInput, match="analytic.*rmia"):
        inferred(run, "oracle")


def test_scores_for_other_candidates_are_refused() -> None:
    peer = PeerId("b")
    scores = [Scores(peer, "local", 0, np.zeros(3), 0.0)]
    with pytest.raises(LocalError, match="not given"):
        member_figures(scores, {peer: np.array([True, False])})
    with pytest.raises(LocalError, match="not given"):
        member_figures(scores, {})


def test_where_nothing_was_seen_there_is_no_figure() -> None:
    assert member_figures([], {})["auc"] is None
    assert property_figures([], [])["auc"] is None


def test_figures_are_of_the_victims_own_model_first() -> None:
    truth = {PeerId(p): np.arange(20) < 10 for p in "bc"}
    told, blind = np.arange(20, 0, -1.0), np.tile([0.0, 1.0], 10)
    scores = [Scores(PeerId(p), "consensus", 0, blind, 0.5) for p in "bc"]
    assert member_figures(scores, truth)["model"] == "consensus"
    scores += [Scores(PeerId(p), "local", 0, told, 10.0) for p in "bc"]
    row = member_figures(scores, truth)
    assert (row["model"], row["auc"], row["consensus"]["auc"], row["accuracy_balanced"]) == ("local", 1.0, 0.5, 1.0)
    assert row["local_gap"]["auc"] == 0.5
    assert row["local_gap"]["auc_low"] > 0.2


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([1.0])) == 1.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auc(np.array([0.0, 2.0]), np.array([1.0, np.inf])) == 0.25
    assert auc(np.array([np.inf]), np.array([np.inf])) == 0.5


def test_the_interval_holds_what_the_scores_were_drawn_from() -> None:
    """Two normals a standard deviation apart have an AUC of Phi(1 / sqrt 2), 0.76."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        splits = [(rng.normal(1, 1, 30), rng.normal(0, 1, 30)) for _ in range(3)]
        low, high = auc_interval(splits, np.random.default_rng(1))
        held += low <= 0.7602 <= high
    assert held >= 87


def test_scores_that_know_nothing_are_within_the_floor_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    sizes = [(12, 30), (25, 25)]
    low, high = auc_floor([(np.zeros(m), np.zeros(n)) for m, n in sizes])
    means = [np.mean([auc(rng.random(m), rng.random(n)) for m, n in sizes]) for _ in range(400)]
    assert 0.9 < np.mean([low <= mean <= high for mean in means]) < 0.99


def test_the_gap_of_equal_scores_is_nothing() -> None:
    splits = [(np.arange(9.0), np.arange(9.0) - 3)]
    assert auc_gap_interval(splits, splits, np.random.default_rng(0)) == (0.0, 0.0)


def test_hits_at_few_false_alarms() -> None:
    others = np.arange(100.0)
    assert hits(np.array([98.5, 99.5, 50.0]), others, 0.01) == pytest.approx(2 / 3)  # one of a hundred may be above
    assert hits(np.array([98.5]), others[1:], 0.01) is None
    assert hits(np.full(4, 7.0), np.full(1000, 7.0), 0.001) == 0.0  # what cannot be told apart is no hit


def test_balanced_accuracy_is_one_half_for_always_yes() -> None:
    assert balanced_accuracy(np.ones(3), np.ones(7), 0.0) == 0.5
    assert balanced_accuracy(np.ones(3), np.zeros(7), 0.5) == 1.0


def test_a_study_may_ask_for_inferences(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    text = '[study]\ntitle = "x"\n[scenario]\nworld = "virtual"\nadversary = { vantage = "peer:0" }\n[[attacks]]\n'
    file.write_text(text + 'name = "rmia"\nreferences = 2\n')
    (cell,) = Study.read(file).cells()
    assert [a.attack.name for a in cell.attacks] == ["rmia"]
    file.write_text(text + 'name = "rmia"\nshadows = 2\n')
    with pytest.raises(BadInput, match="no option of inference 'rmia' 'shadows'"):
        Study.read(file).cells()
