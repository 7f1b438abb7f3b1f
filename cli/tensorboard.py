"""`veilmesh tensorboard`: a run's curves as TensorBoard files."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["tensorboard"]


def tensorboard(
    run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
) -> None:
    """Write a run's curves as TensorBoard files, one line a member."""
    from veilmesh.sim.tensorboard import write_tensorboard

    place = write_tensorboard(run, follow)
    typer.echo(f"tensorboard --logdir {place}")
