"""`veilmesh study`: run studies, and say of every claim whether it holds."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from veilmesh.cli.display import Display
from veilmesh.cli.options import assignments, fields, fresh_folder

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Run studies: scenarios with axes, attacks and claims.")


@app.callback()
def _group() -> None:
    """Run studies: scenarios with axes, attacks and claims."""


@app.command("run")
def run(
    path: Annotated[Path, typer.Argument(help="A study (TOML), or a folder of them.", show_default=False)],
    quick: Annotated[
        bool, typer.Option("--quick", help="The smaller form: the same claims, at a size it says.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; what is finished there is not run again.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field of the scenario in every cell, as name=value: --set task.name=cifar10 --set task.path=FILE.",
            autocompletion=fields,
        ),
    ] = None,
) -> None:
    """Run a study cell by cell, judge its claims, and write its report. Exits 1 if a claim fails."""
    from veilmesh.sim.engines import preload
    from veilmesh.sim.study import Study, find_studies

    files = find_studies(path)
    studies = {file: Study.read(file).changing(assignments(changes)) for file in files}
    preload()
    tally = [0, 0, 0]
    for file, study in studies.items():
        folder = out or fresh_folder(path.stem)
        held = _run_one(study, folder if len(files) == 1 else folder / file.stem, quick)
        tally = [a + b for a, b in zip(tally, held, strict=True)]
    typer.echo(f"claims: {tally[0]} hold, {tally[1]} fail, {tally[2]} not run")
    if tally[1]:
        raise typer.Exit(1)


def _run_one(study: Any, folder: Path, quick: bool) -> tuple[int, int, int]:
    from veilmesh.sim.report import write_report
    from veilmesh.sim.report.table import claims_table, inferred_table, scores_table, summary_table
    from veilmesh.sim.study import run_study

    cells = study.cells(quick)
    console = Console()
    there = sum(cell.is_done(folder) for cell in cells)
    console.print(Text(study.study.title, "bold"))
    console.print(f"quick form: {study.size()}" if quick else f"{len(cells)} runs", highlight=False, markup=False)
    if study.changed:
        said = ", ".join(f"{name} = {value}" for name, value in study.changed.items())
        console.print(f"changed: {said}", highlight=False, markup=False)
    if there:
        console.print(f"{there} of {len(cells)} were run before and are in {folder}", highlight=False, markup=False)
    with Display(study.study.title, len(cells), there) as display:

        def progress(job: Any, event: Mapping[str, Any]) -> None:
            display.tell(job.name, {**event, "attacks": len(job.attacks)} if event["kind"] == "training" else event)

        try:
            result = run_study(study, folder, quick=quick, progress=progress)
        except KeyboardInterrupt:
            display.say(f"What is finished is in {folder}; the same command with --out {folder} goes on from there.")
            raise
    console.print(summary_table(result.cells))
    if (scores := scores_table(result.cells)) is not None:
        console.print(scores)
    if (told := inferred_table(result.cells)) is not None:
        console.print(told)
    if result.verdicts:
        console.print(claims_table([asdict(v) for v in result.verdicts]))
    typer.echo(f"report: {write_report(folder)}")
    held: tuple[int, int, int] = result.tally
    return held
