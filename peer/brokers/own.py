"""A broker for one run on this machine: on a free port of loopback, without users, its files gone when it ends."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from veilmesh.core import BadInput
from veilmesh.peer.brokers.embedded import EMBEDDED_PROTOCOL
from veilmesh.peer.brokers.process import LOG, BrokerProcess, broker_command, uses_embedded
from veilmesh.peer.brokers.settings import BrokerSettings, Limits

__all__ = ["OwnBroker", "own_broker"]

_TRIES: Final = 5  # with a port that was free a moment ago


@dataclass(frozen=True, slots=True)
class OwnBroker:
    """A broker that runs: its HOST:PORT, the MQTT it speaks at most ("5" or "3.1.1"), and its process."""

    place: str
    protocol: str
    process: BrokerProcess

    def tend(self) -> None:
        """Start it again, where it was, if it has ended. Raises BadInput: that is not to be had."""
        if self.process.ended() is not None:
            self.process.stop()
            self.process.start()


@contextmanager
def own_broker(folder: Path, prefix: str = "veilmesh", limits: Limits | None = None) -> Iterator[OwnBroker]:
    """mosquitto where it is installed, else the embedded broker; its files are in `folder`, which is its own.

    Raises BadInput: there is no broker, or it cannot start.
    """
    embedded = uses_embedded()
    try:
        place, process = _somewhere(folder, prefix, limits or Limits(), embedded)
        with process:
            yield OwnBroker(place, EMBEDDED_PROTOCOL if embedded else "5", process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _somewhere(folder: Path, prefix: str, limits: Limits, embedded: bool) -> tuple[str, BrokerProcess]:
    """A broker that was started on a free port, which somebody else may take before it does."""
    for tries in range(1, _TRIES + 1):
        settings = BrokerSettings(port=_free_port(), prefix=prefix, limits=limits, keeps=False)
        command = broker_command(folder, settings, embedded=embedded)
        process = BrokerProcess(command, (settings.door, settings.port), folder / LOG)
        try:
            process.start()
        except BadInput:
            if tries == _TRIES:
                raise
        else:
            return settings.place, process
    raise AssertionError("not reached")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
