"""Runs that share proxies: whose accuracy is whose, what is refused, and what an extraction is scored by."""

from pathlib import Path
from typing import Any

import pytest

from veilmesh.core import BadInput
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import attack_run, run_scenario
from veilmesh.sim.scenario import Choice, Scenario

BASE: dict[str, Any] = {
    "world": "virtual", "peers": 3, "rounds": 12, "evaluate_every": 12, "strategy": "fedavg",
    "task": {"name": "digits", "limit": 300}, "model": {"name": "mlp", "hidden": [24]},
    "training": {"batch": 16, "local_steps": 4, "learning_rate": 0.2}, "transcript": {"keep": "all"},
}  # fmt: skip
PROXY = {"name": "served-proxy", "hidden": 0.25, "dropped": 0.25}


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return run_scenario(Cast.prepare(Scenario.parse({**BASE, **changes})), folder, lambda message: None)


def test_a_server_keeps_the_better_model(tmp_path: Path) -> None:
    summary = run(tmp_path, sharing=PROXY)
    assert summary["finished"] == 4
    by_role = summary["accuracy_by_role"]
    assert by_role["server"] > by_role["peer"] + 0.05
    assert summary["models"] == 4  # everybody has another one
    plain = run(tmp_path / "plain")
    assert summary["bytes_received_per_peer_round"] < 0.2 * plain["bytes_received_per_peer_round"]


@pytest.mark.parametrize("strategy", ["fedavg", {"name": "fedprox", "mu": 0.1}])
def test_proxies_that_hide_nothing_change_nothing(tmp_path: Path, strategy: Any) -> None:
    nothing = {"name": "served-proxy", "hidden": 0, "dropped": 0, "bits": 0}
    summaries = [run(tmp_path / str(i), strategy=strategy, sharing=s) for i, s in enumerate([nothing, "model"])]
    assert summaries[0]["model_bits"] == summaries[1]["model_bits"] is not None


@pytest.mark.parametrize("strategy", ["gossip", "scaffold"])
def test_a_protocol_without_a_server_that_says_its_model_is_refused(strategy: str) -> None:
    with pytest.raises(BadInput, match="fedavg"):
        Cast.prepare(Scenario.parse({**BASE, "strategy": strategy, "sharing": PROXY}))


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "gossip"}, {"strategy": "gossip", "codec": "normal-float"}, {"strategy": "fedavg"}],
    ids=["gossip", "rounded", "star"],
)
def test_owners_learn_together(tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = run(tmp_path, sharing={"name": "masked-proxy", "bits": 0}, rounds=20, **changes)
    assert summary["finished"] == (4 if changes["strategy"] == "fedavg" else 3)
    assert summary["accuracy"] > 0.6


def test_an_extraction_has_its_floors_beside_it(tmp_path: Path) -> None:
    run(tmp_path, sharing=PROXY)
    row = attack_run(tmp_path, Choice(name="proxy-averaging"), "peer:0")
    assert row["guesses_made"] == 1
    assert row["accuracy_floor"] < row["accuracy_proxy"] < row["accuracy_owner"]
    assert row["accuracy_rebuilt"] > row["accuracy_proxy"]
    assert row["error_shown"] < 0.5 * row["error_shown_floor"]
    assert row["hidden_named"] == 1
    assert row["accuracy_colluders"] == pytest.approx(row["accuracy_proxy"], abs=1e-4)
    mesh = tmp_path / "mesh"
    run(mesh, strategy="gossip", sharing={"name": "masked-proxy", "bits": 0})
    among = attack_run(mesh, Choice(name="proxy-averaging"), "peer:0")
    assert among["guesses_made"] == 2
    assert among["accuracy_proxy"] < among["accuracy_owner"]
    assert "error_shown" not in among  # peers' own models are in no file


def test_an_attack_on_models_that_cannot_read_proxies_is_refused(tmp_path: Path) -> None:
    run(tmp_path, strategy="gossip", sharing="masked-proxy")
    with pytest.raises(BadInput, match="masked-proxy"):
        attack_run(tmp_path, Choice(name="dlg"), "peer:0")
    run(tmp_path / "plain")
    with pytest.raises(BadInput, match="proxies"):
        attack_run(tmp_path / "plain", Choice(name="proxy-averaging"), "peer:0")


def test_a_servers_clients_train_what_they_were_told(tmp_path: Path) -> None:
    """The server inverts a client's update from the proxy that it told that client: FedQSN hides no data from it."""
    training = {"batch": 1, "local_steps": 1, "learning_rate": 0.1}
    sharing = {"name": "served-proxy", "hidden": 0, "dropped": 0.25, "bits": 4}
    run(tmp_path, strategy="fedsgd", rounds=2, evaluate_every=2, training=training, sharing=sharing)
    row = attack_run(tmp_path, Choice(name="analytic"), "server")
    assert row["psnr_median"] > 50
