"""Runs that share by public step: under any protocol, without a word about the choice, and scored by the true one."""

from pathlib import Path
from typing import Any

import pytest

from veilmesh.core import BadInput
from veilmesh.peer.transcript import read_transcript
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.record import read_json
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.swarm import messages

SHARING = {"name": "public-step", "batch": 4, "steps": 2}
SCENARIO = {
    "world": "virtual", "peers": 3, "rounds": 1, "evaluate_every": 1, "seed": 3, "task": "digits",
    "model": {"name": "mlp", "hidden": [8]}, "training": {"batch": 1}, "sharing": SHARING,
    "adversary": {"vantage": "peer:1"},
}  # fmt: skip


def finished(folder: Path, **changes: Any) -> Path:
    run_in_virtual_time(Cast.prepare(Scenario.parse({**SCENARIO, **changes})), folder, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("public") / "run")


def told(folder: Path) -> list[tuple[str, int, int]]:
    """What was said to peer:1: kinds, lengths, and the number of examples behind an update."""
    bodies = [record.body for record in read_transcript(folder / "transcript", {"peer-1"}) if record.body is not None]
    return sorted(
        (type(message).__name__, len(body), getattr(message, "samples", 0))
        for body, message in ((body, messages.decode(body)) for body in bodies)
    )


def test_nothing_is_said_of_the_choice(run: Path, tmp_path: Path) -> None:
    assert told(run) == told(finished(tmp_path / "plain", sharing="model"))


def test_every_peer_chooses_for_itself_and_nothing_public_tells(run: Path) -> None:
    cast, ids = open_run(run)
    chosen = [tuple(cast.chosen(index, 0)) for index in range(3)]
    assert len(set(chosen)) == 3
    assert all(len(each) == 8 for each in chosen)
    assert cast.public(ids).sharing == SHARING


def test_whoever_is_told_the_choice_is_named_beside_the_figures(run: Path) -> None:
    cast, ids = open_run(run)
    quick = {"name": "public-step", "iterations": 1}
    easy = audit(run, cast, ids, Choice(**quick, public_batch="told"), "peer:1")
    hard = audit(run, cast, ids, Choice(**quick), "peer:1")
    assert "public batch told" in easy["easier"]
    assert not any("told" in what for what in hard["easier"])
    assert easy["guesses_made"] == hard["guesses_made"] == 2


def test_there_is_no_choice_to_tell_where_nobody_chose(tmp_path: Path) -> None:
    cast, ids = open_run(finished(tmp_path / "plain", sharing="model"))
    assert cast.public(ids).sharing == {"name": "model"}
    with pytest.raises(BadInput, match="public-step"):
        cast.chosen(0, 0)


@pytest.mark.parametrize("strategy", ["choco", "fedavg", "fedprox", "push-sum", "scaffold", "secure-groups"])
def test_it_works_under_any_protocol(strategy: str, tmp_path: Path) -> None:
    summary = read_json(finished(tmp_path / "run", strategy=strategy, adversary=None, rounds=2) / "summary.json")
    assert all(peer["ended"] == "finished" for peer in summary["peers"])
    mixed = {**SHARING, "mixing": "interleaved"}
    finished(tmp_path / "turns", strategy=strategy, adversary=None, sharing=mixed, training={"local_steps": 2})
