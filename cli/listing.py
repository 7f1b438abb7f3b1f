"""`veilmesh list`: what is registered, with its options."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from veilmesh.core import BadInput, Registry
from veilmesh.core.registry import unknown

__all__ = ["KINDS", "listing", "registry"]

KINDS = {
    "aggregators": ("veilmesh.swarm.aggregators.base", "AGGREGATORS"),
    "aligners": ("veilmesh.tasks.aligners.base", "ALIGNERS"),
    "attacks": ("veilmesh.attacks.view", "ATTACKS"),
    "codecs": ("veilmesh.crypto.codecs.base", "CODECS"),
    "guards": ("veilmesh.swarm.guards.base", "GUARDS"),
    "hijacks": ("veilmesh.attacks.hijacks.base", "HIJACKS"),
    "inferences": ("veilmesh.attacks.inference.base", "INFERENCES"),
    "models": ("veilmesh.tasks.models.base", "MODELS"),
    "partitions": ("veilmesh.tasks.partition", "PARTITIONS"),
    "sharings": ("veilmesh.swarm.sharing.base", "SHARINGS"),
    "split-guards": ("veilmesh.split.guards.base", "SPLIT_GUARDS"),
    "splits": ("veilmesh.split.strategies.base", "SPLITS"),
    "strategies": ("veilmesh.swarm.strategies.base", "STRATEGIES"),
    "tampers": ("veilmesh.attacks.tampers.base", "TAMPERS"),
    "tasks": ("veilmesh.tasks.data.base", "SOURCES"),
    "topologies": ("veilmesh.swarm.topology", "TOPOLOGIES"),
    "transports": ("veilmesh.peer.transports.base", "TRANSPORTS"),
}


def registry(kind: str) -> "Registry[Any]":
    """The registry of a kind, imported when it is asked for. Raises BadInput, naming the kinds."""
    import importlib

    if kind not in KINDS:
        raise BadInput(unknown("list of", kind, list(KINDS)))
    module, name = KINDS[kind]
    found: Registry[Any] = getattr(importlib.import_module(module), name)
    return found


def _complete(text: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(text)]


def listing(
    kind: Annotated[
        str,
        typer.Argument(help=f"One of: {', '.join(KINDS)}.", autocompletion=_complete, show_default=False),
    ] = "",
) -> None:
    """List what there is of a kind, with its options and their defaults; without a kind, the kinds."""
    if not kind:
        for each in KINDS:
            typer.echo(f"veilmesh list {each:13}{', '.join(registry(each).names())}")
        return
    things = registry(kind)
    table = Table(title=f"{kind}", title_justify="left", show_lines=False, pad_edge=False, box=None)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is")
    table.add_column("options", style="dim")
    for name in things.names():
        line, options = things.describe(name)
        given = ", ".join(_option(option, default) for option, default in options.items())
        table.add_row(name, escape(line), escape(given) or "-")
    Console().print(table)


def _option(name: str, default: object) -> str:
    """An option as a scenario file would say it; in brackets where it may be left out and has no default."""
    if default is ...:
        return f"{name} (required)"
    if default is None:
        return f"[{name}]"
    shown = list(default) if isinstance(default, tuple) else default
    return f"{name} = {json.dumps(shown, default=str)}"
