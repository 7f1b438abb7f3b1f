"""`veilmesh broker`: the MQTT broker of a mesh, configured and started."""

import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from veilmesh.core import BadInput

if TYPE_CHECKING:
    from veilmesh.peer.brokers.settings import BrokerSettings

__all__ = ["broker"]

_USUAL_PORTS = {False: 1883, True: 8883}
_LOOK_SECONDS = 0.5


def broker(
    listen: Annotated[str, typer.Option("--listen", help="Address to listen on; 0.0.0.0 takes all.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on. [default: 1883, and 8883 with TLS]")
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Encrypt, with a certificate that is made here.", show_default=False)
    ] = False,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="What peers call this machine, for its certificate; may be repeated."),
    ] = None,
    users: Annotated[
        list[str] | None,
        typer.Option(
            "--user",
            help="Who may use it, besides those who could before; a password is drawn. Named by a peer's id, it can "
            "speak for that peer only. May be repeated.",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="The beginning of all topics.")] = "veilmesh",
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            help="How much it takes: NAME=NUMBER, of message_bytes, inflight, queued_messages, queued_bytes (those "
            "for each client) and connections; 4MiB is a number too. May be repeated.",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where its files are.")] = Path("broker"),
    embedded: Annotated[
        bool, typer.Option("--embedded", help="The one in pure Python, for this machine only.", show_default=False)
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write its configuration, and start nothing.", show_default=False)
    ] = False,
) -> None:
    """Run a broker at which peers meet that cannot reach each other, until Ctrl-C. It need not be trusted."""
    from veilmesh.peer.brokers.mosquitto import known_users, write_configuration
    from veilmesh.peer.brokers.settings import BrokerSettings, Limits

    who = tuple(dict.fromkeys((*known_users(folder), *(users or ()))))
    chosen = _USUAL_PORTS[tls] if port is None else port
    settings = BrokerSettings(listen, chosen, tls, tuple(names or ()), who, prefix, Limits.asked(limits or ()))
    if not write_only:
        _run(folder, settings, embedded)
    if embedded:
        raise BadInput("The embedded broker has no configuration to write; leave out --write-only or --embedded.")
    for path in write_configuration(folder, settings):
        typer.echo(f"wrote {path}")
    _tell(folder, settings)


def _run(folder: Path, settings: "BrokerSettings", embedded: bool) -> NoReturn:
    """Start it, and watch it. Raises BadInput if it ends by itself, and typer.Exit when it is to end."""
    from veilmesh.peer.brokers.process import LOG, BrokerProcess, broker_command, uses_embedded
    from veilmesh.peer.brokers.settings import Limits

    embedded = embedded or uses_embedded()
    if embedded and settings.limits != Limits(connections=settings.limits.connections):
        raise BadInput("The embedded broker bounds connections only; install mosquitto, or leave out other limits.")
    command = broker_command(folder, settings, embedded=embedded)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service is ended by it: as by Ctrl-C
    with BrokerProcess(command, (settings.door, settings.port), folder / LOG) as running:
        typer.echo(f"{'amqtt, MQTT 3.1.1' if embedded else 'mosquitto'}, at {settings.place}; Ctrl-C ends it")
        _tell(folder, settings, "3.1.1" if embedded else "5")
        try:
            while (words := running.ended()) is None:
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None
    raise BadInput(f"The broker ended: {words}")


def _tell(folder: Path, settings: "BrokerSettings", protocol: str = "5") -> None:
    """A line for each user, or the one for everybody: what makes a peer use this broker."""
    from veilmesh.peer.brokers.certificates import AUTHORITY
    from veilmesh.peer.brokers.mosquitto import USERS

    shared = ["transport.name=mqtt", f"transport.broker={settings.place}"]
    shared += ["transport.tls=true", f"transport.ca={folder / AUTHORITY}"] if settings.tls else []
    shared += [f"transport.chunk={settings.limits.chunk}"] if settings.limits.chunk < 1 << 20 else []
    shared += [f"transport.prefix={settings.prefix}"] if settings.prefix != "veilmesh" else []
    shared += [f"transport.protocol={protocol}"] if protocol != "5" else []
    own = [[f"transport.username={u}", f"transport.password_file={folder / USERS / u}"] for u in settings.users]
    for options in own or [[]]:
        typer.echo("peers: " + " ".join(f"--set {shlex.quote(option)}" for option in shared + options))
