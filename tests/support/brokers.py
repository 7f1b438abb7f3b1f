"""MQTT brokers for tests: started on a free port of this machine, restarted at will, and ended on every path."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = [
    "EMBEDDED",
    "MOSQUITTO",
    "TestBroker",
    "broker",
    "free_port",
    "needs_embedded",
    "needs_mosquitto",
    "tls_files",
]

WAIT = 30.0
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
EMBEDDED = find_spec("amqtt") is not None

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None or find_spec("aiomqtt") is None, reason="mosquitto or aiomqtt is not installed"
)
needs_embedded = pytest.mark.skipif(
    not EMBEDDED or find_spec("aiomqtt") is None, reason="amqtt or aiomqtt is not installed"
)

_EMBEDDED = """
import asyncio, logging, sys
from amqtt.broker import Broker
logging.disable(logging.CRITICAL)
async def main():
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listener = {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}
    await Broker({"listeners": {"default": listener}, "plugins": plugins}).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""


class TestBroker:
    """One broker, as a process."""

    __test__ = False

    def __init__(self, folder: Path, *, embedded: bool = False, lines: str = "", keeps: bool = True) -> None:
        self.port = free_port()
        self._embedded = embedded
        self._file = folder / f"mosquitto-{self.port}.conf"
        kept = f"persistence {'true' if keeps else 'false'}\npersistence_location {folder}/\n"
        anonymous = "" if "allow_anonymous" in lines else "allow_anonymous true\n"
        self._file.write_text(
            f"user {pwd.getpwuid(os.getuid()).pw_name}\n{kept}max_queued_messages 10000\nmax_inflight_messages 0\n"
            f"listener {self.port} 127.0.0.1\nset_tcp_nodelay true\n{anonymous}{lines}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [str(MOSQUITTO), "-c", str(self._file)]
        if self._embedded:
            command = [sys.executable, "-c", _EMBEDDED, str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "the broker ended at once"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError("the broker does not answer")

    def stop(self, *, at_once: bool = False) -> None:
        """End it: as a service is ended, or killed."""
        if self._process is not None:
            if at_once:
                self._process.kill()
            else:
                self._process.terminate()
            try:
                self._process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextlib.contextmanager
def broker(folder: Path, *, embedded: bool = False, lines: str = "", keeps: bool = True) -> Iterator[TestBroker]:
    """A broker that answers; `lines` are added to mosquitto's configuration, and `keeps` says if its disk remembers."""
    made = TestBroker(folder, embedded=embedded, lines=lines, keeps=keeps)
    try:
        made.start()
        yield made
    finally:
        made.stop(at_once=True)


def tls_files(folder: Path) -> str:
    """Lines for mosquitto: a certificate of its own, for 127.0.0.1, which is left in `cert.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a broker")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return f"certfile {folder}/cert.pem\nkeyfile {folder}/key.pem\n"


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
