"""One run in every world: in virtual time, in memory, and over libp2p, to the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from meshes import WAIT, up
from split_runs import BASE, DEEP, played

from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Scenario, override

SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": {"split__codec": "8-bit"},
    "u-shaped": {"strategy": "u-shaped"},
    "chain": {
        "strategy": {"name": "chain", "standbys": 1, "labels": "held"}, "model": DEEP, "split__micro_batches": 4,
        "training__momentum": 0.9,
    },
    "round-robin": {"strategy": "round-robin", "peers": 3},
    "splitfed 1": {"strategy": "splitfed", "peers": 3, "split__gradients": "top-k"},
    "splitfed 2": {"strategy": {"name": "splitfed", "version": 2}, "peers": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_memory_and_virtual_time_come_to_the_same_bits(tmp_path: Path, name: str) -> None:
    changes = {**SETTINGS[name], "split__codec": "dense"}
    runs = [played(tmp_path / world, **changes, world=world) for world in ("virtual", "memory")]
    assert [[m.tobytes() for m in run.models] for run in runs][0] == [m.tobytes() for m in runs[1].models]
    assert runs[0].summary["accuracy"] == runs[1].summary["accuracy"]
    assert runs[0].ended == runs[1].ended == dict.fromkeys(runs[0].cast.names, "finished")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_libp2p_and_virtual_time_come_to_the_same_bits(tmp_path: Path, name: str) -> None:
    # Without codecs that round at random: real members draw that from the system.
    changes = {**SETTINGS[name], "split__codec": "dense", "split__gradients": "dense", "rounds": 3}
    data = override(BASE, {key.replace("__", "."): value for key, value in changes.items()})
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": {**data, "world": "libp2p"}}))
    with up(tmp_path / "libp2p", "--scenario", str(path)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "libp2p" / "summary.json").read_text())
    cast = Cast.prepare(Scenario.parse(summary["scenario"]))
    models = cast.models(tmp_path / "libp2p" / "checkpoints", cast.names)
    run = played(tmp_path / "virtual", **changes)
    assert [m.tobytes() for m in models] == [m.tobytes() for m in run.models]
    assert summary["accuracy"] == run.summary["accuracy"]
