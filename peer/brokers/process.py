"""A broker as a child process: started, waited for until it answers, and ended by its id; it ends with its parent.

It leads a session of its own, so a Ctrl-C at the terminal reaches its parent alone: peers want to say goodbye first.
"""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from veilmesh.core import BadInput
from veilmesh.peer.brokers.embedded import embedded_command, has_embedded
from veilmesh.peer.brokers.mosquitto import CONFIGURATION, find_mosquitto, write_configuration
from veilmesh.peer.brokers.settings import BrokerSettings
from veilmesh.peer.processes import die_with_parent
from veilmesh.peer.store import writing

__all__ = ["LOG", "BrokerProcess", "broker_command", "uses_embedded"]

LOG: Final = "broker.log"
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0


def uses_embedded() -> bool:
    """Whether the embedded broker is the one to take here. Raises BadInput: there is none at all."""
    if find_mosquitto() is None and not has_embedded():
        raise BadInput(
            "There is no MQTT broker here: install the package mosquitto, or pip install 'veilmesh[mqtt]' for amqtt, "
            "which speaks MQTT 3.1.1 only; or name one that runs by transport.broker."
        )
    return find_mosquitto() is None


def broker_command(folder: Path, settings: BrokerSettings, *, embedded: bool) -> list[str]:
    """Write what the broker needs into `folder`; what starts it. Raises BadInput."""
    if embedded:
        if not has_embedded():
            raise BadInput("The embedded broker needs amqtt: pip install 'veilmesh[mqtt]'.")
        return embedded_command(folder, settings)
    program = find_mosquitto()
    if program is None:
        raise BadInput("mosquitto is not installed; install the package mosquitto, or take --embedded.")
    write_configuration(folder, settings)
    return [program, "-c", str(folder.resolve() / CONFIGURATION)]


class BrokerProcess:
    """One broker. A context manager: it answers inside, and has ended after.

    Args:
        command: as `broker_command` says.
        door: the address and the port at which it is to answer.
        log: where what it says goes.
    """

    def __init__(self, command: list[str], door: tuple[str, int], log: Path) -> None:
        self._command, self._door, self._log = command, door, log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "BrokerProcess":
        if self._process is None:
            self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, and wait until it answers. Raises BadInput: the port is taken, or it says why it cannot."""
        _require_free(self._door)
        parent = os.getpid()
        with writing(self._log), open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as said:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def ended(self) -> str | None:
        """Its last words, if it has ended; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        return self._last_words()

    def stop(self) -> None:
        """End it, as a service is ended; at once if it does not listen."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (words := self.ended()) is not None:
                raise BadInput(f"The broker ended at once: {words}")
            with contextlib.suppress(OSError), socket.create_connection(self._door, 1):
                return
            time.sleep(0.02)
        raise BadInput(f"The broker did not answer within {START_SECONDS:g} s; see {self._log}.")

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
        errors = [line.split("Error: ", 1)[1] for line in lines if "Error: " in line]
        words = (errors or lines or ["it said nothing"])[-1].strip().rstrip(".")
        return f"{words}."


def _require_free(door: tuple[str, int]) -> None:
    """Raises BadInput if the port is taken, or the address is none of this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in door[0] else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(door)
            tried.listen()
        except OSError as error:
            raise BadInput(
                f"Nothing can listen on {door[0]}, port {door[1]} ({error.strerror}); take another."
            ) from None
