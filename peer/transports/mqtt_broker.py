"""Where the broker is, how a peer shows it who it is, and the library that talks to it."""

import re
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from veilmesh.core import BadInput

__all__ = ["Broker", "broker_of", "library", "password_in"]

_BROKER: Final = re.compile(r"(?P<host>[\w.\-]+|\[[0-9a-fA-F:.]+\])(?::(?P<port>\d{1,5}))?", re.ASCII)
_USUAL_PORTS: Final = {False: 1883, True: 8883}


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, and how to talk to it. `ca` is a file of certificates; None: the system's."""

    host: str
    port: int
    tls: bool
    ca: str | None
    username: str | None
    password: str | None
    keepalive: int
    protocol: Literal["5", "3.1.1"]
    packet_bytes: int  # the largest packet it may send us
    name: str | None = None  # what its certificate is checked by; None: its host

    @property
    def place(self) -> tuple[str, int]:
        """Where a socket connects to."""
        return self.host.strip("[]"), self.port

    def behind(self, place: tuple[str, int]) -> "Broker":
        """The same broker, reached through a relay at `place`: its certificate is to name the broker all the same."""
        host, port = place
        return replace(self, host=f"[{host}]" if ":" in host else host, port=port, name=self.name or self.place[0])

    def context(self) -> ssl.SSLContext | None:
        """TLS 1.2 or later with the broker's name checked, or None. Raises BadInput: the certificates are no use."""
        if not self.tls:
            return None
        try:
            made = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(f"transport.ca = {self.ca!r} cannot be used: {error}.") from None
        if self.name is not None:
            made = _Named.like(made, self.name, self.ca)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        return made


class _Named(ssl.SSLContext):
    """Checks certificates by one name, wherever the connection leads: aiomqtt checks by what it connects to."""

    name: str | None = None

    @classmethod
    def like(cls, usual: ssl.SSLContext, name: str, ca: str | None) -> "_Named":
        """A context for clients that is as strict as `usual`."""
        made = cls(ssl.PROTOCOL_TLS_CLIENT)
        made.name, made.verify_flags = name, usual.verify_flags
        if ca:
            made.load_verify_locations(ca)
        else:
            made.load_default_certs()
        return made

    def wrap_socket(
        self, sock: socket.socket, server_side: bool = False, do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True, server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:  # fmt: skip
        """As usual, with the name that was given once."""
        return super().wrap_socket(sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, self.name, session)


def library() -> Any:
    """aiomqtt. Raises BadInput: it is not installed."""
    try:
        import aiomqtt
    except ImportError:
        raise BadInput("The transport 'mqtt' needs aiomqtt: pip install 'veilmesh[mqtt]'.") from None
    return aiomqtt


def broker_of(text: str, tls: bool) -> tuple[str, int]:
    """Host (as an address writes it) and port of HOST, HOST:PORT or [IPv6]:PORT. Raises BadInput."""
    found = _BROKER.fullmatch(text)
    port = int(found["port"] or _USUAL_PORTS[tls]) if found else 0
    if not found or not 0 < port < 1 << 16:
        raise BadInput(f"transport.broker = {text!r} is no broker; one looks like 127.0.0.1:1883.")
    return found["host"], port


def password_in(path: str | None) -> str | None:
    """The first line of a file. Raises BadInput: it cannot be read."""
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"transport.password_file = {path!r} cannot be read ({error}).") from None
