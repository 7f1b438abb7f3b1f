"""`veilmesh join`: take part in a mesh that runs elsewhere."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from veilmesh.cli.display import Display
from veilmesh.cli.options import assignments, fresh_folder, renewed
from veilmesh.cli.outcome import say
from veilmesh.core import BadInput

__all__ = ["join"]


def join(
    invite: Annotated[str, typer.Argument(help="What `veilmesh invite` printed; - reads it from standard input.")],
    data: Annotated[Path | None, typer.Option("--data", help="Where the task's data is, for tasks on disk.")] = None,
    shard: Annotated[
        int | None,
        typer.Option("--shard", help="Which peer's part of the task's data is yours. [default: a random one]", min=0),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--identity", help="Who you are; see `veilmesh identity`. [default: somebody new]")
    ] = None,
    listen: Annotated[str, typer.Option("--listen", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="An option of your own transport, as transport.name=value.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write your own record. [default: a new folder in runs/]")
    ] = None,
) -> None:
    """Join a mesh with the one string that its members gave you, until its last round or Ctrl-C."""
    import sys

    from veilmesh.sim.entry import identity_in
    from veilmesh.sim.invite import Invite
    from veilmesh.sim.scenario import Scenario, override

    told = Invite.parse(sys.stdin.read() if invite == "-" else invite)
    own = _own_transport(changes) | _listening(told.scenario, listen, port)
    own |= {"task.path": str(data)} if data is not None else {}
    scenario = Scenario.parse(override(told.scenario, own), "invite")
    identity = identity_in(keys) if keys else None
    folder = renewed(out or fresh_folder(f"{scenario.task.name}-joined"))
    summary, measured = _run(scenario, folder, shard, told, identity)
    say(summary, measured, folder)


def _listening(scenario: Mapping[str, Any], listen: str, port: int) -> dict[str, Any]:
    """Where to listen, as far as the mesh's transport listens anywhere: through a broker nobody does."""
    from veilmesh.peer.transports.base import TRANSPORTS

    transport = scenario.get("transport", "libp2p")
    name = transport if isinstance(transport, str) else transport.get("name", "libp2p")
    has = {field.name for field in fields(TRANSPORTS.get(name))}  # type: ignore[arg-type]  # a registry holds dataclasses
    return {f"transport.{key}": value for key, value in (("listen", listen), ("port", port)) if key in has}


def _own_transport(changes: list[str] | None) -> dict[str, Any]:
    found = assignments(changes)
    for name in found:
        if not name.startswith("transport."):
            raise BadInput(f"{name} is the mesh's to say, not a newcomer's; only transport.* can be set here.")
    return found


def _run(
    scenario: Any, folder: Path, shard: int | None, told: Any, identity: Any
) -> tuple[dict[str, Any], float | None]:
    """This member's summary, and the accuracy it measured last."""
    import secrets

    from veilmesh.sim.cast import Cast
    from veilmesh.sim.engines import preload
    from veilmesh.sim.run import join_run

    title = f"{scenario.task.name}, {scenario.strategy.name}, joined"
    with Display(title) as display:
        preload()
        whole = Cast.prepare(scenario)
        seat = secrets.randbelow(scenario.peers) if shard is None else shard
        if seat >= scenario.peers:
            raise BadInput(f"The data of this mesh is in {scenario.peers} parts; --shard counts from 0.")
        cast = whole.alone(seat)
        display.tell(title, {"kind": "training", "members": list(cast.names), "rounds": scenario.rounds})
        return join_run(cast, folder, lambda event: display.tell(title, event), told, identity), display.accuracy
