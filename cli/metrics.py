"""`veilmesh metrics`: a run's figures for Prometheus, while it runs or afterwards."""

import threading
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["metrics"]


def metrics(
    run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.", show_default=False)],
    port: Annotated[int, typer.Option("--port", help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = 9464,
    listen: Annotated[str, typer.Option("--listen", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve a run's figures at /metrics for Prometheus, until Ctrl-C."""
    from veilmesh.sim.prometheus import serve

    taken, end = serve(run, port, listen)
    typer.echo(f"metrics: http://{listen}:{taken}/metrics")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        end()
