"""Crafted models in whole runs: what the adversary can read of them afterwards, and what the canary makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import observation
from veilmesh.sim.run import attack_run, run_scenario
from veilmesh.sim.scenario import Choice, Scenario

CRAFTED = {"name": "crafted-model", "payload": "untrained", "victims": [2], "first": 2}


def cast(**changes: Any) -> Cast:
    data: dict[str, Any] = {
        "world": "virtual", "task": "digits", "peers": 4, "rounds": 4, "evaluate_every": 100, "seed": 1,
    }  # fmt: skip
    return Cast.prepare(Scenario.parse(data | changes))


def run(folder: Path, made: Cast) -> dict[str, Any]:
    return run_scenario(made, folder, lambda message: None)


def notes(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(("strategy", "vantage"), [("gossip", "peer:0"), ("fedavg", "server"), ("scaffold", "server")])
def test_the_adversary_knows_where_each_victim_trained(tmp_path: Path, strategy: str, vantage: str) -> None:
    """Others than the victim began elsewhere, and the attacker's own word to each of them is counted in."""
    made = cast(strategy=strategy, adversary={"vantage": vantage, "tamper": CRAFTED})
    summary = run(tmp_path, made)
    assert summary["adversary"]["controls"] == ([0] if strategy == "gossip" else [4])
    ids = [PeerId(name) for name in made.names]
    view = observation(tmp_path, made, ids, vantage)
    seen = {(one.victim, one.round): one for one in observe_updates(view)}
    for round_ in range(4):
        for peer in (1, 2, 3):
            crafted = round_ >= 2 and peer == 2
            apart = np.linalg.norm(seen[ids[peer], round_].start - made.initial)
            assert (apart < 1e-4) == (crafted or round_ == 0)
            assert 0 < np.linalg.norm(seen[ids[peer], round_].update) < 1  # no step is as long as a lie


@pytest.mark.parametrize(("strategy", "vantage"), [("gossip", "peer:0"), ("fedavg", "server")])
def test_an_imprint_reads_a_victims_batch_and_a_canary_keeps_it(tmp_path: Path, strategy: str, vantage: str) -> None:
    changes: dict[str, Any] = {
        "strategy": strategy, "rounds": 3, "training": {"batch": 8}, "model": {"name": "mlp", "hidden": [128, 32]},
        "adversary": {"vantage": vantage, "tamper": {**CRAFTED, "first": 1, "payload": "imprint"}},
    }  # fmt: skip
    run(tmp_path / "open", cast(**changes))
    run(tmp_path / "kept", cast(guards=["canary"], **changes))
    open_, kept = (
        sum(
            (guess["psnr"] or 0) >= 30
            for guess in attack_run(tmp_path / name, Choice(name="imprint"), vantage)["guesses"]
        )
        for name in ("open", "kept")
    )
    assert open_ >= 12  # of two rounds of 8
    assert kept == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 50},
        {"rounds": 50, "strategy": "fedavg", "partition": {"name": "dirichlet", "alpha": 0.2}},
        {"rounds": 50, "peers": 2, "task": "faces", "model": "convnet", "training": {"batch": 2}},
        {"rounds": 20, "training": {"batch": 1}, "strategy": "secure-groups"},
        {"rounds": 20, "strategy": {"name": "choco", "step": 0.3}, "codec": "top-k"},
        {"rounds": 20, "strategy": "async-gossip"},
    ],
    ids=str,
)
def test_the_canary_is_silent_in_honest_runs(tmp_path: Path, changes: dict[str, Any]) -> None:
    loud = cast(guards=["canary"], transcript={"keep": "none"}, **changes)
    watched, plain = run(tmp_path / "a", loud), run(tmp_path / "b", cast(transcript={"keep": "none"}, **changes))
    assert notes(tmp_path / "a", "canary") == []
    assert watched["accuracy"] == plain["accuracy"]


@pytest.mark.parametrize("payload", ["imprint", "trap-weights", "suppression", "fishing"])
@pytest.mark.parametrize(("strategy", "vantage"), [("gossip", "peer:0"), ("fedavg", "server")])
def test_the_canary_says_nothing_to_a_crafted_model(tmp_path: Path, payload: str, strategy: str, vantage: str) -> None:
    made = cast(
        strategy=strategy, guards=["canary"], adversary={"vantage": vantage, "tamper": {**CRAFTED, "payload": payload}}
    )
    run(tmp_path, made)
    tripped = {(note["peer"], note["round"]) for note in notes(tmp_path, "canary")}
    assert {(2, 2), (2, 3)} <= tripped
    assert not any(round_ < 2 for _, round_ in tripped)
    ids = [PeerId(name) for name in made.names]
    view = observation(tmp_path, made, ids, vantage)
    updates = {one.round: one.update for one in observe_updates(view) if one.victim == ids[2]}
    scale = np.abs(updates[1]).max()
    for round_ in (2, 3):  # none, or what float32 leaves of a difference
        assert round_ not in updates or np.abs(updates[round_]).max() < 1e-2 * scale
