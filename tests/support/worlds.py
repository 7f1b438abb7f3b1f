"""One scenario in two worlds: as a file for real processes, and in virtual time, which it must agree with."""

from pathlib import Path
from typing import Any

import tomli_w

from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time

__all__ = ["assert_same_models", "scenario_file"]


def scenario_file(folder: Path, data: dict[str, Any]) -> str:
    """`data` in a file, for `--scenario`."""
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": data}))
    return str(path)


def assert_same_models(run: Path, data: dict[str, Any]) -> None:
    """Every model that `run` ended with is, to the bit, the one of `data` in virtual time, whatever carried it."""
    plain = {key: value for key, value in data.items() if key not in ("transport", "feet")} | {"world": "virtual"}
    virtual = run.parent / "virtual"
    run_in_virtual_time(Cast.prepare(Scenario.parse(plain)), virtual, lambda *heard: None)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (virtual / "checkpoints").iterdir())
    assert names
    for name in names:
        there, here = (load_parameters(folder / "checkpoints" / name) for folder in (run, virtual))
        assert there.tobytes() == here.tobytes(), name
