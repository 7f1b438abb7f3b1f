"""`veilmesh identity`: who this machine is to a mesh."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["identity"]


def identity(
    file: Annotated[Path, typer.Argument(help="Where the key is kept; made if it is not there.", show_default=False)],
) -> None:
    """Print the peer id of a kept identity, for the list of those who may join a mesh (door.allow)."""
    from veilmesh.sim.entry import identity_in

    typer.echo(identity_in(file).peer)
