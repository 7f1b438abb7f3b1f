"""A real mesh whose every process is killed at once goes on from its checkpoints, and ends as if nothing had been."""

import json
import random
import subprocess
from pathlib import Path

import psutil
import pytest
from meshes import WAIT, alive, family, up, veilmesh_up, wait_for

from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario, override

ROUNDS = 60
SCENARIO = {"peers": 3, "rounds": ROUNDS, "training": {"batch": 4}, "evaluate_every": 20, "checkpoints": {"every": 2}}


def options(changes: dict[str, object]) -> list[str]:
    flat = {"training.batch": 4, "evaluate_every": 20, "checkpoints.every": 2, **changes}
    settings = [word for name, value in flat.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return ["--peers", "3", "--rounds", str(ROUNDS), *settings]


def killed(process: "subprocess.Popen[str]") -> None:
    """SIGKILL for the supervisor, every member and every worker: stopped first, so that none outlives another."""
    everybody = family(process.pid)
    for one in everybody:
        one.suspend()
    for one in reversed(everybody):
        one.kill()
    process.wait(timeout=WAIT)
    psutil.wait_procs(everybody[1:], timeout=WAIT)
    assert not alive(everybody)


def checkpoints(folder: Path) -> int:
    """The last round that all three keep."""
    try:
        journals = [(folder / f"journal-peer-{i}.jsonl").read_text().splitlines() for i in range(3)]
        return min(int(json.loads(lines[-1])["round"]) for lines in journals)
    except (OSError, ValueError, IndexError):
        return 0


def models(folder: Path) -> dict[str, bytes]:
    return {p.name: load_parameters(p).tobytes() for p in sorted((folder / "checkpoints").glob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"codec": "top-k", "strategy.step": 0.2}], ids=["dense", "top-k"])
def test_a_mesh_killed_whole_goes_on_and_ends_with_the_same_models(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tmp_path / "run"
    moment = random.Random(str(changes)).randrange(4, 20)
    with up(folder, *options(changes)) as process:
        wait_for(lambda: checkpoints(folder) >= moment, "the first checkpoints")
        killed(process)
    before = json.loads((folder / "run.json").read_text())["members"]

    with veilmesh_up(tmp_path, "--resume", str(folder)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    summary = json.loads((folder / "summary.json").read_text())
    [resumed] = summary["resumed_from"]
    assert 4 <= resumed < ROUNDS
    assert summary["finished"] == 3
    after = json.loads((folder / "run.json").read_text())["members"]
    assert [m["id"] for m in before] == [m["id"] for m in after]

    same = Scenario.parse(override(SCENARIO, {**changes, "world": "virtual", "checkpoints.every": 0}))
    run_scenario(Cast.prepare(same), tmp_path / "whole", lambda event: None)
    assert models(folder) == models(tmp_path / "whole")
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = sorted((line["peer"], line["round"]) for line in rounds if line["loss"] is not None)
    assert trained == sorted(set(trained))  # nothing is counted twice
    assert {round_ for _, round_ in trained if round_ >= resumed} == set(range(resumed, ROUNDS))

    with veilmesh_up(tmp_path, "--resume", str(folder)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 2
    assert f"has finished its {ROUNDS} rounds" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "nowhere"], "There is no nowhere/run.json"),
        (["--resume", "nowhere", "--peers", "3"], "only --rounds may be given beside it"),
    ],
)
def test_a_run_that_cannot_be_taken_up_is_a_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    with veilmesh_up(tmp_path, *arguments) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 2, output
    assert said in " ".join(output.split())
    assert "Traceback" not in output
