"""`veilmesh attack`: let an adversary look at a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from veilmesh.cli.options import assignments, completed

__all__ = ["attack"]


def attack(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    attack: Annotated[
        str,
        typer.Option(
            "--attack", help="Which attack; see `veilmesh list attacks`.", autocompletion=completed("attacks")
        ),
    ],
    vantage: Annotated[
        str,
        typer.Option("--vantage", help="Where it sits: `peer:3`, `server`, `wire`, `relay`.", show_default=False),
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the attack, as name=value; may be repeated.")
    ] = None,
) -> None:
    """Attack a finished run from one vantage, score it against the truth, and renew the run's report."""
    from veilmesh.sim.engines import preload
    from veilmesh.sim.record import read_json
    from veilmesh.sim.report import write_report
    from veilmesh.sim.report.table import summary_table
    from veilmesh.sim.run import attack_run
    from veilmesh.sim.scenario import Choice

    options = assignments(changes)
    console = Console(highlight=False)
    console.print(f"{attack} from {vantage} on {run} ...", markup=False)
    with console.status("attacking and scoring"):  # nothing is forked here, so it may turn in a thread of its own
        preload()
        result = attack_run(run, Choice(name=attack, **options), vantage)
        page = write_report(run)
    console.print(summary_table([read_json(run / "summary.json")]))
    console.print(_outcome(result, vantage), markup=False)
    typer.echo(f"report: {page}")


def _outcome(result: Mapping[str, Any], vantage: str) -> str:
    """What the attack came to, in a sentence."""
    labels = ""
    if result["labels_right"] is not None:
        share, floor = result["labels_right"], result["labels_floor"]
        labels = f" Labels right: {share:.0%} (without any information: {floor:.0%})."
    if not result["guesses_made"]:
        return f"{result['attack']} saw nothing from {vantage} that it could work on."
    if "pictures" not in result:
        return f"{result['attack']} guessed the labels of {result['guesses_made']} batches.{labels}"
    if not result["guessed"]:
        return f"{result['attack']} could turn nothing it saw from {vantage} into a picture.{labels}"
    return f"{result['guessed']} of {result['pictures']} private pictures were guessed at.{labels}"
