"""`veilmesh attack`: let an adversary look at a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from veilmesh.cli.device import Device, on_device
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
        typer.Option(
            "--vantage",
            help="Where it sits: `peer:3`, `server`, `tail`, `wire`, `relay`, `broker`.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the attack, as name=value; may be repeated.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where it computes; auto: what there is.")] = "auto",
) -> None:
    """Attack a finished run from one vantage, score it against the truth, and renew the run's report."""
    from veilmesh.sim.engines import preload
    from veilmesh.sim.record import read_json
    from veilmesh.sim.report import write_report
    from veilmesh.sim.report.table import inferred_table, scores_table, summary_table
    from veilmesh.sim.run import attack_run
    from veilmesh.sim.scenario import Choice

    options = assignments(changes)
    console = Console(highlight=False)
    console.print(f"{attack} from {vantage} on {run} ...", markup=False)
    with console.status("attacking and scoring"):  # nothing is forked here, so it may turn in a thread of its own
        preload()
        result = attack_run(run, Choice(name=attack, **on_device(attack, options, device)), vantage)
        page = write_report(run)
    summary = read_json(run / "summary.json")
    console.print(summary_table([summary]))
    if (scores := scores_table([summary])) is not None:
        console.print(scores)
    if (told := inferred_table([summary])) is not None:
        console.print(told)
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
    if "infers" in result:
        return _inferred(result)
    if result.get("infers"):
        auc = result.get("auc")
        known = "without a figure" if auc is None else f"AUC {auc:.2f} (without any information: 0.50)"
        return f"{result['attack']} inferred {result['infers']} from {vantage}: {known}."
    if "pictures" not in result:
        return f"{result['attack']} guessed the labels of {result['guesses_made']} batches.{labels}"
    if not result["guessed"]:
        return f"{result['attack']} could turn nothing it saw from {vantage} into a picture.{labels}"
    return f"{result['guessed']} of {result['pictures']} private pictures were guessed at.{labels}"


def _inferred(result: Mapping[str, Any]) -> str:
    """What the scores of an inference came to, in a sentence."""
    if result.get("top_1") is not None:
        return (
            f"{result['attack']} knows {result['top_1']:.0%} of {result['updates']} updates again "
            f"({result['top_1_low']:.0%} to {result['top_1_high']:.0%}; without any information "
            f"{result['top_1_floor']:.0%})."
        )
    if result["infers"] == "model":
        return (
            f"{result['attack']} put together a model of {result['accuracy_rebuilt']:.1%} accuracy (the owner's: "
            f"{result['accuracy_owner']:.1%}; one proxy as it was told: {result['accuracy_proxy']:.1%})."
        )
    what = "members from others" if result["infers"] == "members" else "who has the property from who has not"
    if result["auc"] is None:
        return f"{result['attack']} made {result['guesses_made']} scores, and there is nothing to tell {what} by."
    return (
        f"{result['attack']} tells {what} with an AUC of {result['auc']:.3f} ({result['auc_low']:.3f} to "
        f"{result['auc_high']:.3f}; without any information {result['auc_floor_low']:.3f} to "
        f"{result['auc_floor_high']:.3f})."
    )
