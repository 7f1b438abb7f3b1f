"""The brokers of `bench_transports`: processes of this machine with a certificate of their own, ended on every path."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = ["Running", "amqtt", "certificate", "mosquitto"]

WAIT = 20.0
PATHS = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin"

EMBEDDED = """
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


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that answers: its process, and HOST:PORT without and with TLS."""

    process: int
    place: str
    tls_place: str


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Running | None]:
    """mosquitto, with TCP_NODELAY and no bound on what is in flight; None where it is not installed."""
    program, port, tls_port = shutil.which("mosquitto", path=PATHS), _free_port(), _free_port()
    if program is None:
        yield None
        return
    (folder / "mosquitto.conf").write_text(
        f"user {pwd.getpwuid(os.getuid()).pw_name}\npersistence false\nallow_anonymous true\nset_tcp_nodelay true\n"
        f"max_queued_messages 10000\nmax_inflight_messages 0\nlistener {port} 127.0.0.1\n"
        f"listener {tls_port} 127.0.0.1\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem\n"
    )
    with _started([program, "-c", str(folder / "mosquitto.conf")], port) as process:
        yield Running(process, f"127.0.0.1:{port}", f"127.0.0.1:{tls_port}")


@contextlib.contextmanager
def amqtt() -> Iterator[Running | None]:
    """amqtt, which is Python; None where it is not installed."""
    if find_spec("amqtt") is None:
        yield None
        return
    port = _free_port()
    with _started([sys.executable, "-c", EMBEDDED, str(port)], port) as process:
        yield Running(process, f"127.0.0.1:{port}", "")


def certificate(folder: Path) -> None:
    """`cert.pem` and `key.pem`, for 127.0.0.1 and a day."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
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


@contextlib.contextmanager
def _started(command: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + WAIT
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"{Path(command[0]).name} does not answer")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
