"""`veilmesh`: puts the commands together; the one place where a mistake becomes a sentence and exit code 2."""

import sys
from importlib import metadata
from typing import Annotated

import typer

from veilmesh.cli import (
    attack,
    broker,
    doctor,
    identity,
    invite,
    join,
    listing,
    metrics,
    report,
    study,
    tensorboard,
    up,
    view,
)
from veilmesh.cli.outcome import INTERRUPTED
from veilmesh.core import BadInput

__all__ = ["app", "main"]

app = typer.Typer(
    name="veilmesh",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Peers train one model together with no server; see what a malicious one of them learns from it.",
    epilog="`veilmesh COMMAND --help` says more. Start with `veilmesh up --peers 5 --task digits`.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"veilmesh {metadata.version('veilmesh')}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is, and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Peers train one model together with no server; see what a malicious one of them learns from it."""


app.command("up")(up.up)
app.command("invite")(invite.invite)
app.command("join")(join.join)
app.command("identity")(identity.identity)
app.command("broker")(broker.broker)
app.add_typer(study.app, name="study")
app.command("attack")(attack.attack)
app.command("view")(view.view)
app.command("replay")(view.replay)
app.command("report")(report.report)
app.command("metrics")(metrics.metrics)
app.command("tensorboard")(tensorboard.tensorboard)
app.command("list")(listing.listing)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The console script."""
    try:
        app()
    except BadInput as error:
        sys.stderr.write(f"veilmesh: {error}\n")
        sys.exit(2)
    except BrokenPipeError:  # `veilmesh list tasks | head` is not an error
        sys.stderr.close()
        sys.exit(0)
    except SystemExit as ended:  # what typer makes of Ctrl-C says nothing
        if ended.code == INTERRUPTED:
            sys.stderr.write("veilmesh: interrupted; nothing was left running.\n")
        raise


if __name__ == "__main__":
    main()
