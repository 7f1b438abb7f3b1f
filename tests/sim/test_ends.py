"""How a run ends when its surroundings fail it: late members, a full disk, a folder that is none, uneven protection."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from meshes import WAIT, alive, family, members, rounds_done, up, wait_for

from veilmesh.core import BadInput
from veilmesh.sim.cast import Cast
from veilmesh.sim.mesh import Mesh
from veilmesh.sim.record import fresh
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario

SMALL = {"peers": 2, "rounds": 2, "training": {"batch": 1}}


def under_way(folder: Path) -> bool:
    return rounds_done(folder) >= 5


@pytest.mark.slow
def test_a_member_that_is_stopped_for_ever_costs_the_others_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--rounds", "100", "--peers", "3", "--set", "timing.silence=3", "--set", "timing.run=15")
    with up(folder, *options, "--set", "training.batch=1") as process:
        wait_for(lambda: under_way(folder), "the first rounds")
        everybody = family(process.pid)
        os.kill(members(folder)[1]["pid"], signal.SIGSTOP)
        output, _ = process.communicate(timeout=WAIT)
        assert not alive(everybody)
    assert process.returncode == 0, output
    peers = json.loads((folder / "summary.json").read_text())["peers"]
    assert [p["ended"] for p in peers] == ["finished", "was not done after 15 s", "finished"]
    assert "peer:1, after" in output
    assert "was not done after 15 s" in output


def test_a_worker_that_is_killed_ends_its_member_with_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with up(folder, "--rounds", "150", "--peers", "3", "--set", "training.batch=1") as process:
        wait_for(lambda: under_way(folder), "the first rounds")
        everybody = family(process.pid)
        [worker] = psutil.Process(members(folder)[2]["pid"]).children()
        worker.kill()
        output, _ = process.communicate(timeout=WAIT)
        assert not alive(everybody)
    assert process.returncode == 0, output
    ended = [p["ended"] for p in json.loads((folder / "summary.json").read_text())["peers"]]
    assert ended[:2] == ["finished", "finished"]
    assert "the worker process has ended: killed (SIGKILL)" in ended[2]


def sentence(output: str) -> str:
    assert "Traceback" not in output, output
    [said] = [line for line in output.splitlines() if line.startswith("veilmesh: ")]
    return said


def test_a_disk_that_fills_up_in_mid_run_is_a_sentence(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    folder = tmp_path / "run"
    with up(folder, "--rounds", "400", "--peers", "2", "--set", "training.batch=1", limit=small_files) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 2, output
    assert "cannot be written" in sentence(output)


@pytest.mark.parametrize("world", ["libp2p", "memory", "virtual"])
def test_a_folder_that_is_a_file_is_refused_before_anything_starts(tmp_path: Path, world: str) -> None:
    (tmp_path / "file").write_text("mine")
    cast = Cast.prepare(Scenario.parse({**SMALL, "world": world}))
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(BadInput, match="cannot be written"):
            run_scenario(cast, place, lambda event: None)
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_of_an_earlier_run_is_taken_for_the_new_one(tmp_path: Path) -> None:
    """In virtual time peers have the same names in every run, so an old transcript would be believed."""
    first = {**SMALL, "peers": 4, "world": "virtual", "adversary": {"vantage": "peer:3"}}
    run_scenario(Cast.prepare(Scenario.parse(first)), tmp_path, lambda event: None)
    (tmp_path / "notes.txt").write_text("the user's own")
    second = {**SMALL, "world": "virtual", "adversary": {"vantage": "peer:1"}}
    run_scenario(Cast.prepare(Scenario.parse(second)), tmp_path, lambda event: None)
    assert [p.name for p in (tmp_path / "transcript").iterdir()] == ["peer-1.records"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["peer-0.safetensors", "peer-1.safetensors"]
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_of_the_users_own_loses_nothing(tmp_path: Path) -> None:
    for name in ("pictures/cat.png", "summary.json", "report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    fresh(tmp_path)
    assert (tmp_path / "pictures" / "cat.png").read_text() == "mine"
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_member_without_a_protection_stops_the_mesh_before_it_begins(tmp_path: Path) -> None:
    mesh = Mesh(Cast.prepare(Scenario.parse(SMALL)), tmp_path, lambda *heard: None)
    whole = {"channel": "noise", "hardening": "a,b"}
    mesh._hold_to("peer:0", whole)
    mesh._hold_to("peer:1", dict(whole))
    assert mesh._failure is None
    mesh._hold_to("peer:2", {"channel": "noise"})
    assert mesh._failure is not None
    assert "peer:2" in mesh._failure
    assert "hardening" in mesh._failure


SABOTAGE = """
import sys
from pathlib import Path
import libp2p
from veilmesh.core import BadInput, LocalError
from veilmesh.sim import mesh, run
from veilmesh.sim.cast import Cast
from veilmesh.sim.engines import preload
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm.strategies.gossip import GossipMachine

what, folder = sys.argv[1], Path(sys.argv[2])
preload()
cast = Cast.prepare(Scenario.parse({"peers": 3, "rounds": 40, "training": {"batch": 1}}))
if what == "version":
    libp2p.__version__ = "0.9.0"
if what == "machine":  # one member's machine breaks a rule of its own in the fifth round
    honest = GossipMachine._mix
    def mix(self):
        if self._round == 5 and self._kit.me == self._kit.order[1]:
            raise LocalError("on purpose")
        return honest(self)
    GossipMachine._mix = mix
try:
    summary = run.run_scenario(cast, folder, lambda event: None)
    print([p["ended"] for p in summary["peers"]])
except BadInput as error:
    print("BadInput:", error)
"""


def sabotaged(what: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", SABOTAGE, what, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


def test_another_version_of_libp2p_starts_no_mesh(tmp_path: Path) -> None:
    said = sabotaged("version", tmp_path / "run")
    assert said.stdout.startswith("BadInput: ")
    assert "0.9.0" in said.stdout
    assert "install libp2p 0.8.1" in said.stdout
    assert "Traceback" not in said.stderr


def test_a_member_whose_machine_breaks_a_rule_ends_alone_and_says_why(tmp_path: Path) -> None:
    said = sabotaged("machine", tmp_path / "run")
    assert said.stdout.strip() == "['finished', 'failed (on purpose)', 'finished']", said.stdout + said.stderr
    assert "Traceback" in said.stderr  # it is our own mistake, and somebody has to find it
