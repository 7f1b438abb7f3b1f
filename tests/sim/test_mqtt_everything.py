"""Everything of swarm and split mode through an MQTT broker, as processes: what virtual time comes to, comes out here.

The list of protocols is that of the registries: what is added to them is tested here too.
"""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from brokers import TestBroker, broker, needs_mosquitto
from meshes import WAIT, alive, family, rounds_done, up, veilmesh, veilmesh_up, wait_for
from PIL import Image

from veilmesh.core import generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.sim.cast import Cast
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario
from veilmesh.split.strategies.base import SPLITS
from veilmesh.swarm.strategies.base import STRATEGIES

__all__: list[str] = []

pytestmark = needs_mosquitto

SWARM: dict[str, Any] = {
    "peers": 4, "rounds": 4, "evaluate_every": 2, "guards": [{"name": "noise", "ratio": 0.5}],
    "training": {"batch": 4, "local_steps": 1, "learning_rate": 0.1},
}  # fmt: skip
SPLIT: dict[str, Any] = {
    "rounds": 3, "evaluate_every": 3, "training": {"batch": 16, "local_steps": 4, "learning_rate": 0.1},
}  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {
    "chain": {
        "strategy": {"name": "chain", "standbys": 1, "labels": "held"}, "split": {"micro_batches": 4},
        "model": {"name": "mlp", "hidden": [64, 48, 32]},
    },
    "encrypted-inference": {
        "model": {"name": "mlp", "hidden": [4], "activation": "square"}, "timing": {"round": 300},
    },
    "round-robin": {"peers": 3},
    "secure-groups": {"peers": 3, "rounds": 3, "evaluate_every": 3},  # of all the quickest; of five below
    "splitfed": {"peers": 3},
}  # fmt: skip
"""What a protocol needs, or shows more with."""

QUICK = ("vanilla",)
HOMOMORPHIC = ("blind-proxy", "encrypted", "encrypted-inference", "shared-key")
APPROXIMATE = {"shared-key": 1e-6, "encrypted": 1e-4}
"""CKKS: sums, and not the draws of its ciphertexts, are repeated, up to so much in any coordinate."""

FREE = ("async-gossip",)
"""In which the order of arrival is free to matter."""


def each(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def play(folder: Path, relay: TestBroker, data: dict[str, Any]) -> None:
    """Over MQTT, in chunks far smaller than a model."""
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": data | {"transport": through(relay)}}))
    with up(folder / "mqtt", "--scenario", str(path)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output


def through(relay: TestBroker) -> dict[str, Any]:
    return {"name": "mqtt", "broker": relay.place, "chunk": 4096}


def virtually(folder: Path, data: dict[str, Any]) -> Cast:
    cast = Cast.prepare(Scenario.parse(data | {"world": "virtual"}))
    run_scenario(cast, folder / "virtual", lambda event: None)
    return cast


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def models(cast: Cast, folder: Path) -> list[Vector]:
    found = cast.models(folder / "checkpoints", cast.names)
    assert found
    return found


def assert_nothing_went_wrong(folder: Path, members: int) -> None:
    """Nobody ended otherwise, refused anything, or waited in vain."""
    peers = summary(folder)["peers"]
    assert "untrusted" in summary(folder)["protections"]["relay"]
    assert [peer["ended"] for peer in peers] == ["finished"] * members
    assert [peer["refusals"] for peer in peers] == [{}] * members
    assert [peer["dropped"] for peer in peers] == [0] * members


def compare(name: str, cast: Cast, folder: Path) -> None:
    assert_nothing_went_wrong(folder / "mqtt", cast.size)
    there, here = (models(cast, folder / world) for world in ("mqtt", "virtual"))
    assert len(there) == len(here)
    if name in FREE:
        assert_trained_together(cast, there, here)
        return
    for one, other in zip(there, here, strict=True):
        if name in APPROXIMATE:
            np.testing.assert_allclose(one, other, rtol=0, atol=APPROXIMATE[name])
        else:
            assert one.tobytes() == other.tobytes()
            assert summary(folder / "mqtt")["accuracy"] == summary(folder / "virtual")["accuracy"]


def assert_trained_together(cast: Cast, there: list[Vector], here: list[Vector]) -> None:
    """All have one model, and have come the way that virtual time goes, if not just as far."""
    towards = here[0] - cast.initial
    for model in there:
        np.testing.assert_allclose(model, there[0], rtol=0, atol=1e-5)
        way = model - cast.initial
        assert way @ towards > 0.9 * np.linalg.norm(way) * np.linalg.norm(towards)


@pytest.mark.parametrize("name", each(STRATEGIES.names()))
def test_every_protocol_of_a_swarm(tmp_path: Path, name: str) -> None:
    if name in HOMOMORPHIC:
        pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
    data = {**SWARM, "strategy": name, **OTHERWISE.get(name, {})}
    with broker(tmp_path) as relay:
        play(tmp_path, relay, data)
    compare(name, virtually(tmp_path, data), tmp_path)


@pytest.mark.parametrize("name", each(SPLITS.names()))
def test_every_protocol_of_split_mode(tmp_path: Path, name: str) -> None:
    if name in HOMOMORPHIC:
        pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
    data = {**SPLIT, "strategy": name, **OTHERWISE.get(name, {})}
    if name == "encrypted-inference":  # which asks about every test picture
        data["task"] = {"name": "image-folder", "path": str(few_pictures(tmp_path / "pictures"))}
    with broker(tmp_path) as relay:
        play(tmp_path, relay, data)
    compare(name, virtually(tmp_path, data), tmp_path)


def few_pictures(folder: Path) -> Path:
    """Two classes of pictures of 4x2: bright above, or bright below."""
    rng = generator(0, "pictures")
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for number in range(40):
            x = rng.uniform(0, 150, (4, 2))
            x[2 * label : 2 * label + 2] += 100
            Image.fromarray(x.astype(np.uint8)).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"name": "splitfed", "version": 2}, "peers": 3},
        {"strategy": {"name": "splitfed", "heads": "secure-groups"}, "peers": 4},
    ],
    ids=["splitfed 2", "heads in secure groups"],
)
def test_heads_are_averaged_in_every_way(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = {**SPLIT, **changes}
    with broker(tmp_path) as relay:
        play(tmp_path, relay, data)
    compare("splitfed", virtually(tmp_path, data), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["top-k", "8-bit"])
def test_codecs_and_topologies_go_with_it(tmp_path: Path, codec: str) -> None:
    data = {**SWARM, "strategy": {"name": "gossip", "step": 0.2}, "codec": codec, "topology": "ring", "peers": 5}
    with broker(tmp_path) as relay:
        play(tmp_path, relay, data)
    compare("gossip", virtually(tmp_path, data), tmp_path)


@pytest.mark.slow
def test_secure_groups_go_on_without_one_that_dies(tmp_path: Path) -> None:
    """Its masks are taken out of the sum by those who are left; its last will says that it is gone."""
    data = {**SWARM, "strategy": "secure-groups", "peers": 5, "rounds": 60, "evaluate_every": 60}
    folder, path = tmp_path / "mqtt", tmp_path / "scenario.toml"
    with broker(tmp_path) as relay:
        path.write_text(tomli_w.dumps({"scenario": data | {"transport": through(relay), "timing": {"silence": 60}}}))
        with up(folder, "--scenario", str(path)) as process:
            wait_for(lambda: rounds_done(folder) >= 5, "the fifth round")
            victim = json.loads((folder / "run.json").read_text())["members"][3]["pid"]
            for one in reversed(family(victim)):
                one.kill()
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    peers = summary(folder)["peers"]
    assert [peer["ended"] for peer in peers] == ["finished"] * 3 + ["killed (SIGKILL)", "finished"]
    assert [peer["rounds"] for peer in peers if peer["index"] != 3] == [60] * 4
    cast = Cast.prepare(Scenario.parse(data))
    assert len({model.tobytes() for model in models(cast, folder)}) == 1


@pytest.mark.slow
def test_a_mesh_killed_whole_goes_on_through_the_same_broker(tmp_path: Path) -> None:
    """Members come back under the same names, in new sessions: nothing of before reaches them."""
    data = {**SWARM, "rounds": 40, "evaluate_every": 20, "checkpoints": {"every": 2}}
    folder, path = tmp_path / "mqtt", tmp_path / "scenario.toml"
    with broker(tmp_path) as relay:
        path.write_text(tomli_w.dumps({"scenario": data | {"transport": through(relay)}}))
        with up(folder, "--scenario", str(path)) as process:
            wait_for(lambda: kept(folder) >= 6, "the first checkpoints")
            everybody = family(process.pid)
            for one in everybody:
                one.suspend()
            for one in reversed(everybody):
                one.kill()
            process.wait(timeout=WAIT)
            wait_for(lambda: not alive(everybody[1:]), "every process to end")
        with veilmesh_up(tmp_path, "--resume", str(folder)) as process:
            output, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0, output
    assert summary(folder)["resumed_from"][0] >= 6
    cast = virtually(tmp_path, data)
    assert [m.tobytes() for m in models(cast, folder)] == [m.tobytes() for m in models(cast, tmp_path / "virtual")]


def kept(folder: Path) -> int:
    """The last round of which all have a checkpoint."""
    try:
        journals = [path.read_text().splitlines() for path in folder.glob("journal-*.jsonl")]
        return min(int(json.loads(lines[-1])["round"]) for lines in journals) if len(journals) == 4 else 0
    except (OSError, ValueError, IndexError):
        return 0


@pytest.mark.slow
def test_a_guest_comes_into_an_open_mesh_and_leaves_it(tmp_path: Path) -> None:
    mesh, guest, path = tmp_path / "mesh", tmp_path / "guest", tmp_path / "scenario.toml"
    long = {"peers": 2, "rounds": 100_000, "evaluate_every": 100_000, "timing": {"start": 10}, "door": {"open": True}}
    with broker(tmp_path) as relay:
        path.write_text(tomli_w.dumps({"scenario": long | {"transport": through(relay)}}))
        with up(mesh, "--scenario", str(path)):
            text = invited(mesh)
            for time in ("first", "again"):
                with veilmesh(tmp_path, "join", text, "--out", str(guest / time), "--shard", "1") as joining:
                    wait_for(lambda: rounds_done(guest / time) > 20, "a newcomer that trains")  # noqa: B023  # asked at once
                    [joined] = events(guest / time, "joined")
                    assert joined["verified"] is True
                    wait_for(lambda: groups(mesh, 4) == {3}, "three in every group")
                    joining.send_signal(signal.SIGINT)
                    output, _ = joining.communicate(timeout=WAIT)
                assert joining.returncode == 130
                assert "left" in output
                wait_for(lambda: groups(mesh, 4) == {2}, "two in every group again")
            assert not events(mesh, "late")  # it said goodbye: nobody waited for it
            assert not events(mesh, "refused")


def invited(mesh: Path) -> str:
    wait_for(lambda: rounds_done(mesh) > 5 and (mesh / "invite").exists(), "an open mesh")
    return (mesh / "invite").read_text().strip()


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["kind"] == kind]


def groups(folder: Path, last: int) -> set[int]:
    return {event["group"] for event in events(folder, "round")[-last:]}
