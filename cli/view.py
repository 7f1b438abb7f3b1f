"""`veilmesh view` and `veilmesh replay`: what an adversary saw in a file, and an attack on nothing but that file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from veilmesh.cli.device import Device, on_device
from veilmesh.cli.options import assignments, completed, fresh_folder

__all__ = ["replay", "view"]


def view(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    vantage: Annotated[
        str,
        typer.Option(
            "--vantage",
            help="Where it sits: `peer:3`, `server`, `tail`, `wire`, `relay`, `broker`.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write.", show_default=False)],
    told: Annotated[
        bool, typer.Option("--told", help="With the labels of everybody's pictures: an easier setting.")
    ] = False,
) -> None:
    """Write all that an adversary at one vantage of a finished run has to a file; no private picture but its own."""
    from veilmesh.sim.engines import preload
    from veilmesh.sim.stored_view import store_view

    preload()
    seen = store_view(run, vantage, out, told=told)
    typer.echo(f"view: {out} ({out.stat().st_size} bytes, {len(seen.records)} frames)")


def replay(
    file: Annotated[Path, typer.Argument(help="A view, as `veilmesh view` writes it.", show_default=False)],
    attack: Annotated[
        str,
        typer.Option(
            "--attack", help="Which attack; see `veilmesh list attacks`.", autocompletion=completed("attacks")
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the attack, as name=value; may be repeated.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where it computes; auto: what there is.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write the guesses to.")] = None,
) -> None:
    """Run an attack on a stored view alone and write what it guesses. There is no truth there to score it by."""
    from veilmesh.sim.engines import preload
    from veilmesh.sim.scenario import Choice
    from veilmesh.sim.stored_view import read_view
    from veilmesh.sim.stored_view import replay as guessed

    options = assignments(changes)
    with Console().status("attacking"):  # nothing is forked here, so it may turn in a thread of its own
        preload()
        choice = Choice(name=attack, **on_device(attack, options, device))
        folder = out or fresh_folder("replay")
        guesses = guessed(read_view(file), choice, folder)
    pictures = sum(len(guess.pictures) for guess in guesses)
    typer.echo(f"{attack} guessed {pictures} pictures of {len(guesses)} batches")
    typer.echo(f"guesses: {folder}")
