"""Who was trained on, read off what crosses a cut."""

from pathlib import Path
from typing import Any

from split_runs import played

from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import audit
from veilmesh.sim.scenario import Choice


def _row(folder: Path, name: str, vantage: str, **changes: Any) -> dict[str, Any]:
    run = played(folder, rounds=8, evaluate_every=8, transcript__keep="all", **changes)
    return audit(run.folder, run.cast, [PeerId(n) for n in run.cast.names], Choice(name=name), vantage)


def test_a_tail_recognises_whom_it_saw_through_the_head_as_it_began(tmp_path: Path) -> None:
    row = _row(tmp_path, "activation-match", "tail")
    assert row["victims"] == 1
    assert row["auc"] > row["auc_floor_high"]


def test_with_a_data_owner_beside_it_that_has_the_head_it_hardly_errs(tmp_path: Path) -> None:
    row = _row(tmp_path, "activation-match", "peer:1+tail", strategy="splitfed", peers=3)
    assert row["victims"] == 2
    assert row["auc"] > 0.95


def test_noise_on_activations_makes_it_harder(tmp_path: Path) -> None:
    guard = {"split__guards": [{"name": "gaussian", "std": 1.0}]}
    plain, noisy = (_row(tmp_path / name, "activation-match", "tail", **g) for name, g in (("a", {}), ("b", guard)))
    assert noisy["auc"] < plain["auc"] - 0.1


def test_a_property_is_scored_round_by_round(tmp_path: Path) -> None:
    row = _row(tmp_path, "activation-property", "tail")
    assert row["infers"] == "property"
    assert row["updates"] == 8
