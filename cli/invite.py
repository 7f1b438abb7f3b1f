"""`veilmesh invite`: the one string that lets others join a mesh."""

from pathlib import Path
from typing import Annotated

import typer

from veilmesh.core import BadInput

__all__ = ["invite"]


def invite(
    run: Annotated[Path, typer.Argument(help="The folder of a mesh that runs with --open.", show_default=False)],
) -> None:
    """Print what `veilmesh join` needs on another machine. Whoever has it can join: keep it as you keep a password."""
    from veilmesh.sim.invite import INVITE

    try:
        typer.echo((run / INVITE).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        raise BadInput(
            f"There is no invite in {run}; start the mesh with `veilmesh up --open`, and ask once it is up."
        ) from None
