"""A run that is broken off at any moment and taken up again leaves behind what one in one piece leaves."""

import contextlib
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transcript import Record, read_transcript
from veilmesh.sim.cast import Cast
from veilmesh.sim.continuation import claimed
from veilmesh.sim.resume import last_cut, scenario_digest, spread
from veilmesh.sim.run import attack_run, run_scenario, take_up
from veilmesh.sim.scenario import Choice, Scenario

BASE = {
    "world": "virtual", "peers": 4, "rounds": 7, "evaluate_every": 3, "model": {"name": "mlp", "hidden": [8]},
    "guards": ["clip", {"name": "noise", "ratio": 0.3}], "checkpoints": {"every": 1},
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "gossip": {"strategy": "gossip", "topology": "ring"},
    "choco, lossy": {"strategy": "choco", "codec": "top-k"},
    "push-sum": {"strategy": "push-sum", "codec": "8-bit"},
    "epidemic": {"strategy": {"name": "epidemic", "s": 2}},
    "fedavg, error feedback": {"strategy": "fedavg", "codec": "top-k", "training": {"local_steps": 2}},
    "fedsgd": {"strategy": "fedsgd", "codec": "8-bit"},
    "robust gossip": {"strategy": "gossip", "aggregator": "median", "topology": "complete"},
    "members far apart": {"topology": "ring", "peers": 6, "links": {"slow": {"peer:0": 30}}},
    "alone": {"strategy": "alone", "links": {"slow": {"peer:0": 3}}},
    "every third round": {"strategy": "gossip", "checkpoints": {"every": 3}},
}


class Crash(Exception):
    """Somebody pulled the plug."""


def scenario(**changes: Any) -> Scenario:
    return Scenario.parse({**BASE, **changes})


def run(folder: Path, wanted: Scenario) -> dict[str, Any]:
    return run_scenario(Cast.prepare(wanted), folder, lambda event: None)


def broken_off(folder: Path, wanted: Scenario, notes: int) -> None:
    """Run until so many notes were noted, and then no further."""
    go_on(folder, Cast.prepare(wanted), None, notes)


def go_on(folder: Path, cast: Cast, resumed: Any, notes: int) -> None:
    left = [notes]

    def progress(event: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    with contextlib.suppress(Crash):
        run_scenario(cast, folder, progress, resumed)
    gc.collect()  # open files of the broken-off run end here, as they do with a process


def taken_up(folder: Path, rounds: int | None = None) -> dict[str, Any]:
    cast, resumed = take_up(folder, rounds)
    return run_scenario(cast, folder, lambda event: None, resumed)


def models(folder: Path) -> dict[str, bytes]:
    return {p.name: load_parameters(p).tobytes() for p in sorted((folder / "checkpoints").glob("*.safetensors"))}


def figures(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what depends on when things happened."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in ("t", "bytes_sent", "bytes_received")} for line in lines]
    return sorted(kept, key=lambda line: (line["peer"], line["round"], line["loss"] is None))


def outcome(summary: dict[str, Any]) -> dict[str, Any]:
    timed = ("seconds", "seconds_per_round", "cpu_seconds", "resumed_from", "peers")
    timed += ("bytes_received_per_peer_round",)  # what was on its way at the cut is said, and received, once more
    return {k: v for k, v in summary.items() if k not in timed and not k.startswith(("seconds_to", "bytes_to"))}


def ends(summary: dict[str, Any]) -> list[Any]:
    return [(p["ended"], p["rounds"], p["accuracy"], p["bytes_sent"], p["messages_sent"]) for p in summary["peers"]]


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_equals_one_in_one_piece_to_the_bit(tmp_path: Path, way: str) -> None:
    wanted = scenario(**WAYS[way])
    whole = run(tmp_path / "whole", wanted)
    notes = len((tmp_path / "whole" / "events.jsonl").read_text().splitlines())
    for at in (notes // 2, notes - 3):
        folder = tmp_path / f"at-{at}"
        broken_off(folder, wanted, at)
        assert not (folder / "summary.json").exists()
        resumed = taken_up(folder)
        assert 0 < resumed["resumed_from"][0] <= wanted.rounds
        assert models(folder) == models(tmp_path / "whole")
        assert figures(folder) == figures(tmp_path / "whole")
        assert outcome(resumed) == outcome(whole)
        assert ends(resumed) == ends(whole)


def test_checkpoints_change_nothing_in_a_run(tmp_path: Path) -> None:
    run(tmp_path / "with", scenario())
    run(tmp_path / "without", scenario(checkpoints={}))
    assert models(tmp_path / "with") == models(tmp_path / "without")
    assert figures(tmp_path / "with") == figures(tmp_path / "without")
    assert not [p for p in (tmp_path / "without").rglob("*") if "round-" in p.name or "journal" in p.name]


def test_a_run_is_broken_off_and_taken_up_twice(tmp_path: Path) -> None:
    run(tmp_path / "whole", scenario())
    folder = tmp_path / "run"
    broken_off(folder, scenario(), 45)
    cast, first = take_up(folder)
    go_on(folder, cast, first, 30)
    summary = taken_up(folder)
    assert summary["resumed_from"][0] == first.round < summary["resumed_from"][1]
    assert models(folder) == models(tmp_path / "whole")
    assert figures(folder) == figures(tmp_path / "whole")


@pytest.mark.parametrize("way", ["gossip", "fedavg, error feedback"])
def test_a_finished_run_goes_on_for_more_rounds(tmp_path: Path, way: str) -> None:
    run(tmp_path / "whole", scenario(**WAYS[way], rounds=9))
    folder = tmp_path / "run"
    run(folder, scenario(**WAYS[way], rounds=5))
    with pytest.raises(BadInput, match="has finished its 5 rounds; to go on with it, give --rounds with more"):
        take_up(folder)
    with pytest.raises(BadInput, match="has finished|has done 5 rounds already"):
        take_up(folder, 4)
    assert taken_up(folder, 9)["resumed_from"] == [5]
    assert models(folder) == models(tmp_path / "whole")
    assert figures(folder) == figures(tmp_path / "whole")


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints" / "peer-1").iterdir(), key=lambda p: int(p.stem.removeprefix("round-")))


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "another's"])
def test_a_checkpoint_that_is_not_whole_is_found_out_and_the_one_before_taken(tmp_path: Path, harm: str) -> None:
    run(tmp_path / "whole", scenario())
    folder = tmp_path / "run"
    broken_off(folder, scenario(), 80)
    _, before = take_up(folder)
    file = newest(folder)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    if harm == "gone":
        file.unlink()
    elif harm == "another's":
        shutil.copy(folder / "checkpoints" / "peer-2" / file.name, file)
    else:
        file.write_bytes(raw[: len(raw) // 2] if harm == "cut" else raw)
    cast, resumed = take_up(folder)
    assert resumed.round == before.round - 1 or before.round < int(file.stem.removeprefix("round-"))
    run_scenario(cast, folder, lambda event: None, resumed)
    assert models(folder) == models(tmp_path / "whole")


def test_lines_that_are_torn_are_no_lines(tmp_path: Path) -> None:
    run(tmp_path / "whole", scenario())
    folder = tmp_path / "run"
    broken_off(folder, scenario(), 80)
    for name in ("events.jsonl", "metrics.jsonl", "journal-peer-0.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"round": 3, "pe')
    taken_up(folder)
    assert models(folder) == models(tmp_path / "whole")
    assert figures(folder) == figures(tmp_path / "whole")
    for path in folder.glob("*.jsonl"):
        assert [json.loads(line) for line in path.read_text().splitlines()]


def test_disk_use_and_journals_are_bounded(tmp_path: Path) -> None:
    wanted = scenario(rounds=150, evaluate_every=150, peers=3, training={"batch": 1}, guards=[])
    run(tmp_path, wanted)
    for name in ("peer-0", "peer-1", "peer-2"):
        kept = sorted(int(p.stem.removeprefix("round-")) for p in (tmp_path / "checkpoints" / name).iterdir())
        assert kept == [146, 147, 148, 149, 150]
        assert len((tmp_path / f"journal-{name}.jsonl").read_text().splitlines()) <= 40


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "async-gossip"}, "'async-gossip' cannot go on from a checkpoint"),
        ({"checkpoints": {"every": 1, "keep": 2}}, "checkpoints.keep = 2 is too few: .* set at least 5"),
        ({"adversary": {"vantage": "peer:1", "tamper": "sign-flip"}}, "What a tampering peer remembers is not kept"),
        ({"faults": [{"at": 1.0, "kill": "peer:1"}]}, "leave out faults or checkpoints"),
    ],
)
def test_checkpoints_that_nobody_could_go_on_from_are_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "run", scenario(**changes))
    assert not (tmp_path / "run").exists()


def test_a_run_without_checkpoints_is_refused_with_what_to_do(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", scenario(checkpoints={}), 40)
    with pytest.raises(BadInput, match=r"has no checkpoint to go on from; run with --set checkpoints\.every=10"):
        take_up(tmp_path / "run")
    with pytest.raises(BadInput, match="There is no .*run.json"):
        take_up(tmp_path / "nowhere")


def test_a_scenario_that_means_something_else_now_is_refused(tmp_path: Path) -> None:
    broken_off(tmp_path, scenario(), 60)
    said = json.loads((tmp_path / "run.json").read_text())
    said["scenario"]["training"]["learning_rate"] = 0.2
    (tmp_path / "run.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="means something else here"):
        take_up(tmp_path)


def test_a_mesh_without_a_round_in_common_is_refused(tmp_path: Path) -> None:
    broken_off(tmp_path, scenario(), 60)
    shutil.rmtree(tmp_path / "checkpoints" / "peer-3")
    with pytest.raises(BadInput, match="no round of which every member has a whole checkpoint.*peer:3 none"):
        take_up(tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(BadInput, match="A run is still going on in"):
        run(tmp_path, scenario())
    run(tmp_path, scenario())  # and the lock is free again


def test_the_digest_is_of_what_a_scenario_means() -> None:
    assert scenario_digest(scenario()) == scenario_digest(scenario(rounds=99, title="longer"))
    assert scenario_digest(scenario()) != scenario_digest(scenario(seed=2))


@pytest.mark.parametrize(
    ("changes", "apart"),
    [
        ({"topology": "complete"}, 1),
        ({"topology": "ring", "peers": 9}, 4),
        ({"strategy": "fedavg"}, 2),
        ({"strategy": "push-sum", "peers": 9}, 8),
    ],
)
def test_how_far_apart_members_can_be(changes: Any, apart: int) -> None:
    assert spread(Cast.prepare(scenario(**changes))) == apart


# --- the rest of a run's folder ------------------------------------------------------------------------------------


def test_the_audit_of_a_resumed_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    """What was said twice stands in the transcript twice, and is read once."""
    wanted = scenario(adversary={"vantage": "peer:3"}, guards=[], rounds=6)
    run(tmp_path / "whole", wanted)
    broken_off(tmp_path / "run", wanted, 70)
    taken_up(tmp_path / "run")
    first, second = (heard(tmp_path / name) for name in ("whole", "run"))
    assert {body(r) for r in first} == {body(r) for r in second}
    assert len(second) >= len(first)
    rows = [attack_run(tmp_path / name, Choice(name="label-recovery"), "peer:3") for name in ("whole", "run")]
    assert len({json.dumps({k: v for k, v in row.items() if k != "cpu_seconds"}) for row in rows}) == 1


def heard(folder: Path) -> list[Record]:
    return list(read_transcript(folder / "transcript"))


def body(record: Record) -> tuple[PeerId, PeerId, bytes | None]:
    return record.sender, record.to, record.body


def test_members_over_memory_are_who_they_were(tmp_path: Path) -> None:
    wanted = scenario(world="memory", guards=[])
    run(tmp_path / "whole", wanted)
    folder = tmp_path / "run"
    run(folder, scenario(world="memory", guards=[], rounds=4))
    keys = sorted((folder / "identities").iterdir())
    assert [p.name for p in keys] == [f"peer-{i}.key" for i in range(4)]
    assert {p.stat().st_mode & 0o777 for p in keys} == {0o600}
    before = json.loads((folder / "run.json").read_text())["members"]
    summary = taken_up(folder, 7)
    assert json.loads((folder / "run.json").read_text())["members"] == before
    assert summary["resumed_from"] == [4]
    assert models(folder) == models(tmp_path / "whole")
    times = [json.loads(line)["t"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert times.index(max(times)) > len(times) // 2  # the clock goes on


def test_members_whose_keys_are_gone_are_refused(tmp_path: Path) -> None:
    run(tmp_path, scenario(world="memory", rounds=3))
    (tmp_path / "identities" / "peer-2.key").unlink()
    with pytest.raises(BadInput, match="does not hold the keys of this run's members"):
        take_up(tmp_path, 5)


def test_a_new_run_in_the_folder_begins_with_nothing_of_the_old(tmp_path: Path) -> None:
    run(tmp_path, scenario(world="memory", rounds=3))
    old = (tmp_path / "identities" / "peer-0.key").read_bytes()
    wanted = scenario(world="memory", rounds=2)
    run(tmp_path, wanted)
    assert (tmp_path / "identities" / "peer-0.key").read_bytes() != old
    assert sorted(os.listdir(tmp_path / "checkpoints" / "peer-0")) == ["round-1.safetensors", "round-2.safetensors"]
    ids = [PeerId(m["id"]) for m in json.loads((tmp_path / "run.json").read_text())["members"]]
    assert last_cut(tmp_path, Cast.prepare(wanted), ids, ()).round == 2
