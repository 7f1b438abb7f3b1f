"""Runs with homomorphic sums, whole: what they cost in accuracy (nothing), and what their audit says."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tenseal")

from veilmesh.core import BadInput
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Choice, Scenario


def scenario(strategy: str, **changes: Any) -> Scenario:
    said: dict[str, Any] = {
        "task": "digits", "model": {"name": "mlp", "hidden": [16], "activation": "tanh"}, "peers": 4, "rounds": 3,
        "topology": "complete", "world": "virtual", "strategy": strategy, "evaluate_every": 100,
        "training": {"batch": 1, "local_steps": 1, "learning_rate": 0.1}, **changes,
    }  # fmt: skip
    return Scenario.parse(said)


def run(folder: Path, strategy: str, **changes: Any) -> dict[str, Any]:
    return run_scenario(Cast.prepare(scenario(strategy, **changes)), folder, lambda *_: None)


def seen(folder: Path, vantage: str, attack: str = "key-holder") -> dict[str, Any]:
    cast, ids = open_run(folder)
    return audit(folder, cast, ids, Choice(name=attack), vantage)


def test_homomorphic_sums_learn_what_plain_gossip_learns(tmp_path: Path) -> None:
    training = {"batch": 16, "local_steps": 4, "learning_rate": 0.2}
    plain, *hidden = (
        run(tmp_path / name, name, rounds=4, training=training) for name in ("gossip", "blind-proxy", "shared-key")
    )
    for summary in hidden:
        assert all(peer["ended"] == "finished" and not peer["refusals"] for peer in summary["peers"])
        for one, other in zip(summary["peers"], plain["peers"], strict=True):
            assert abs(one["accuracy"] - other["accuracy"]) <= 0.01


def test_one_key_for_all_is_as_good_as_none_and_a_key_of_ones_own_is_better(tmp_path: Path) -> None:
    run(tmp_path / "shared", "shared-key", adversary={"vantage": "peer:1"})
    assert seen(tmp_path / "shared", "peer:1")["psnr_median"] >= 59
    pooling = {"vantage": "peer:0", "peers": [0, 3], "tamper": "pool-keys"}
    run(tmp_path / "blind", "blind-proxy", adversary=pooling, transcript={"keep": "all"})
    assert seen(tmp_path / "blind", "peer:1")["guessed"] == 0
    alone, pooled = seen(tmp_path / "blind", "peer:0"), seen(tmp_path / "blind", "peer:0+peer:3")
    assert alone["psnr_median"] < 30  # a sum of three, of whom the luckiest may still be bare
    assert pooled["psnr_median"] >= 45  # a sum of two, less what the proxy was given


@pytest.mark.parametrize(
    "changes", [{"codec": "8-bit"}, {"topology": "ring"}, {"strategy": {"name": "blind-proxy", "fewest": 4}}]
)
def test_what_does_not_go_together_is_refused_when_it_is_read(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Cast.prepare(scenario(**{"strategy": "blind-proxy", **changes}))
