"""A mesh over MQTT that is given no broker starts its own, for the time of its run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from veilmesh.core import BadInput
from veilmesh.peer.brokers.own import OwnBroker, own_broker
from veilmesh.peer.brokers.settings import Limits
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.peer.transports.mqtt import Mqtt
from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Choice

__all__ = ["with_broker"]

_OF_ANOTHER: Final = ("tls", "ca", "username", "password_file")


@contextmanager
def with_broker(cast: Cast, folder: Path) -> Iterator[tuple[Cast, OwnBroker | None]]:
    """`cast` as its members are to have it, and its own broker, if it is one that needs one and was given none.

    The broker's files are in the run's folder while it runs.

    Raises BadInput: there is no broker to start, or an option speaks of another one.
    """
    choice = cast.scenario.transport
    kind = choice.build(TRANSPORTS)
    if not isinstance(kind, Mqtt) or kind.broker is not None:
        yield cast, None
        return
    if given := [name for name in _OF_ANOTHER if choice.options.get(name)]:
        raise BadInput(
            f"transport.{given[0]} is for a broker that others run; say which by transport.broker, or leave it out."
        )
    with own_broker(folder / "broker", kind.prefix, Limits.for_chunks(kind.chunk)) as own:
        scenario = cast.scenario.model_copy(update={"transport": _reached(choice, own)})
        yield replace(cast, scenario=scenario), own


def _reached(choice: Choice, own: OwnBroker) -> Choice:
    """The transport's options, with what its own broker is and can."""
    if choice.options.get("protocol", own.protocol) != own.protocol == "3.1.1":
        raise BadInput(
            "The embedded broker speaks MQTT 3.1.1 only; install mosquitto, or leave transport.protocol out."
        )
    protocol = {"protocol": own.protocol} if own.protocol == "3.1.1" else {}
    return Choice.model_validate({"name": choice.name, **choice.options, **protocol, "broker": own.place})
