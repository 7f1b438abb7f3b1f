"""What several commands do alike: reading `name=value`, and choosing an output folder."""

import shutil
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from veilmesh.core import BadInput

__all__ = ["assignments", "completed", "fields", "fresh_folder", "renewed"]

_WRITTEN = (
    "transcript",
    "pictures",
    "checkpoints",
)  # what a run leaves in its folder, one file for each member or more


def assignments(changes: Sequence[str] | None) -> dict[str, Any]:
    """`name=value` pairs; values are read as TOML, and as plain text where they are none. Raises BadInput."""
    found: dict[str, Any] = {}
    for change in changes or ():
        name, sign, value = change.partition("=")
        if not sign or not name.strip():
            raise BadInput(f"{change!r} is not of the form name=value; write it as in --set rounds=50.")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def completed(*kinds: str) -> Callable[[str], list[str]]:
    """What the shell offers where a thing of one of those kinds is named."""

    def complete(text: str) -> list[str]:
        from veilmesh.cli.listing import registry

        names = sorted(name for kind in kinds for name in registry(kind).names())
        return [name for name in names if name.startswith(text)]

    return complete


def renewed(folder: Path) -> Path:
    """`folder`, without what an earlier run left in it: another run's transcript would be taken for this one's.

    Raises BadInput where it cannot hold a run.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; give a folder to write the run to.")
    if (folder / "run.json").exists():
        for name in _WRITTEN:
            shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def fresh_folder(name: str) -> Path:
    """A folder for a run of this moment, under runs/."""
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def fields(text: str) -> list[str]:
    """What the shell offers after --set: fields of a scenario, with those inside them."""
    from veilmesh.sim.scenario import Scenario

    found: list[str] = []
    for name, field in Scenario.model_fields.items():
        inside = getattr(field.annotation, "model_fields", {})
        inner = [] if "name" in inside else [f"{name}.{option}=" for option in inside]
        found += inner or [f"{name}="]
    return [name for name in found if name.startswith(text)]
