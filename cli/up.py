"""`veilmesh up`: a local mesh, until its last round or Ctrl-C."""

from pathlib import Path
from typing import Annotated, Any

import typer

from veilmesh.cli.display import Display
from veilmesh.cli.log import JsonLog
from veilmesh.cli.options import assignments, completed, fields, fresh_folder, renewed
from veilmesh.cli.outcome import say
from veilmesh.core import BadInput

__all__ = ["up"]


def up(
    peers: Annotated[
        int | None, typer.Option("--peers", help="How many peers; in split mode, data owners. [default: 5]")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="See `veilmesh list tasks`. [default: digits]", autocompletion=completed("tasks")),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Where the task's data is, for tasks on disk.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="How many rounds. [default: 100]")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="See `veilmesh list strategies` and `veilmesh list splits`. [default: gossip]",
            autocompletion=completed("strategies", "splits"),
        ),
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(
            "--topology",
            help="See `veilmesh list topologies`. [default: complete]",
            autocompletion=completed("topologies"),
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            "--transport",
            help="See `veilmesh list transports`; mqtt starts a broker of its own where none is given. "
            "[default: libp2p]",
            autocompletion=completed("transports"),
        ),
    ] = None,
    malicious: Annotated[
        str | None,
        typer.Option(
            "--malicious",
            help="Whose view to keep to attack: `peer:3`, `server`, `wire`, `relay`, over MQTT `broker`; in split mode "
            "also `tail`, `body`, `middle:1`; several who collude as `peer:1+tail`.",
        ),
    ] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", help="First port; one a peer. [default: free ones]")] = None,
    scenario: Annotated[Path | None, typer.Option("--scenario", help="A scenario file (TOML) to start from.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any field of the scenario, as a.b=value; may be repeated.",
            autocompletion=fields,
        ),
    ] = None,
    door: Annotated[
        bool, typer.Option("--open", help="Let others join while it runs; see `veilmesh invite`.", show_default=False)
    ] = False,
    log: Annotated[
        bool,
        typer.Option("--log-json", help="Say what happens as JSON lines, no display.", show_default=False),
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="The seed of everything. [default: 0]")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the run. [default: a new folder in runs/]")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Go on with a broken-off run, in its folder, from its last checkpoint; only --rounds may differ.",
        ),
    ] = None,
) -> None:
    """Start a mesh of peers, each a process of its own, that train one model together with no server."""
    from veilmesh.sim.scenario import Scenario, override, read_toml

    if resume is not None:
        others = (
            peers,
            task,
            data,
            strategy,
            topology,
            transport,
            malicious,
            listen,
            port,
            scenario,
            changes,
            seed,
            out,
            door or None,
        )
        _go_on(resume, rounds, log, alone=all(option is None or option == [] for option in (*others, out)))
        return
    base = read_toml(scenario) if scenario else {}
    flags = {
        "peers": peers, "task.name": task, "task.path": data, "rounds": rounds, "strategy.name": strategy,
        "topology.name": topology, "transport.name": transport, "transport.listen": listen, "transport.port": port,
        "seed": seed, "adversary.vantage": malicious, "door.open": door or None,
    }  # fmt: skip
    given = {k: str(v) if isinstance(v, Path) else v for k, v in flags.items() if v is not None}
    if data is not None and task is None and "task" not in base:
        given = {"task.name": "image-folder" if data.is_dir() else "parquet", **given}
    wanted = Scenario.parse(override(base.get("scenario", base), {**given, **assignments(changes)}))
    _require_data(wanted)
    folder = renewed(out or fresh_folder(f"{wanted.task.name}-{wanted.strategy.name}"))
    summary, measured = _run(wanted, folder, log)
    say(summary, measured, folder)


def _go_on(folder: Path, rounds: int | None, log: bool, alone: bool) -> None:
    """Take a broken-off run up again, in its own folder."""
    from veilmesh.sim.run import run_scenario, take_up

    if not alone:
        raise BadInput("--resume goes on with a run as it was; only --rounds may be given beside it.")
    with JsonLog() if log else Display(f"{folder}, resumed") as display:
        _preload()
        cast, resumed = take_up(folder, rounds)
        title = f"{cast.scenario.task.name}, {cast.scenario.strategy.name}, from round {resumed.round}"
        display.tell(title, {"kind": "training", "members": list(cast.names), "rounds": cast.scenario.rounds})
        summary = run_scenario(cast, folder, lambda event: display.tell(title, event), resumed)
    say(summary, display.accuracy, folder)


def _require_data(scenario: Any) -> None:
    """Raises BadInput where a task reads files and was not told which."""
    from veilmesh.tasks.data.base import SOURCES

    _, options = SOURCES.describe(scenario.task.name)
    if options.get("path", None) is ... and "path" not in scenario.task.options:
        raise BadInput(f"The task {scenario.task.name!r} reads files; say where they are by --data path.")


def _run(scenario: Any, folder: Path, log: bool) -> tuple[dict[str, Any], float | None]:
    """The run's summary, and the accuracy its members measured last."""
    from veilmesh.sim.run import run_scenario

    title = f"{scenario.task.name}, {scenario.strategy.name}"
    with JsonLog() if log else Display(title) as display:
        cast = _prepared(scenario)
        display.tell(title, {"kind": "training", "members": list(cast.names), "rounds": cast.scenario.rounds})
        return run_scenario(cast, folder, lambda event: display.tell(title, event)), display.accuracy


def _prepared(scenario: Any) -> Any:
    from veilmesh.sim.cast import Cast

    _preload()
    return Cast.prepare(scenario)


def _preload() -> None:
    from veilmesh.sim.engines import preload

    preload()
