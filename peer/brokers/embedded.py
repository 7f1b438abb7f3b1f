"""The broker that needs no installation of its own: amqtt, in a process of its own (this module, run as a program).

It speaks MQTT 3.1.1 and not 5, knows no users here, keeps nothing on disk, and bounds nothing but connections: for
loopback, and for tests. What it forgets or drops, peers say again.
"""

import asyncio
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from veilmesh.core import BadInput
from veilmesh.peer.brokers.certificates import BROKER_CERTIFICATE, BROKER_KEY, certify
from veilmesh.peer.brokers.mosquitto import prepare_folder
from veilmesh.peer.brokers.settings import BrokerSettings

__all__ = ["EMBEDDED_PROTOCOL", "embedded_command", "has_embedded", "main"]

EMBEDDED_PROTOCOL: Final = "3.1.1"
_MODULE: Final = "veilmesh.peer.brokers.embedded"
_ANYBODY: Final = "amqtt.plugins.authentication.AnonymousAuthPlugin"


def has_embedded() -> bool:
    """Whether amqtt is installed."""
    return find_spec("amqtt") is not None


def embedded_command(folder: Path, settings: BrokerSettings) -> list[str]:
    """What starts it. Raises BadInput for what it cannot do."""
    if settings.users:
        raise BadInput(
            "The embedded broker knows no users; install mosquitto, or leave --user out and take a new folder."
        )
    prepare_folder(folder)
    if settings.tls:
        certify(folder, settings.known_as)
    place = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    files = [str(folder / BROKER_CERTIFICATE), str(folder / BROKER_KEY)] if settings.tls else []
    return [sys.executable, "-P", "-m", _MODULE, place, str(settings.limits.connections), *files]


async def _serve(place: str, connections: int, files: list[str]) -> None:
    from amqtt.broker import Broker

    listener: dict[str, Any] = {"type": "tcp", "bind": place, "max_connections": connections}
    if files:
        listener |= {"ssl": True, "certfile": files[0], "keyfile": files[1]}
    await Broker({"listeners": {"default": listener}, "plugins": {_ANYBODY: {"allow_anonymous": True}}}).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve until ended: PLACE CONNECTIONS [CERTIFICATE KEY]."""
    place, connections, *files = sys.argv[1:]
    logging.disable(logging.ERROR)  # it would say every connection that ends
    asyncio.run(_serve(place, int(connections), files))


if __name__ == "__main__":
    main()
