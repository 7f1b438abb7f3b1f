"""What a broker of a mesh is to be: where it listens, who may use it, and how much it takes.

A user whose name is a peer's id is held to that name: the broker lets it publish as that peer, read that peer's inbox,
and nothing else. A user of any other name may speak for any peer of the mesh, as suits one machine on which several
peers run: it says only who may connect. Without users everybody may, so such a broker listens on loopback only.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final, Self

import psutil

from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.identity import PeerId, public_key
from veilmesh.peer.transports.mqtt_chunks import LEAST_CHUNK

__all__ = ["BrokerSettings", "Limits", "is_loopback", "is_peer"]

_USER: Final = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_.@\-]{0,127}", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9.\-:_]{1,253}", re.ASCII)
_AMOUNT: Final = re.compile(r"([0-9]{1,15})(KiB|MiB|GiB)?", re.ASCII)
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_BESIDE_A_CHUNK: Final = 4096  # its head, its topic, MQTT's own
_ANYWHERE: Final = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a broker takes. What it drops beyond, a peer says again. Raises BadInput: no mesh could use it.

    Args:
        message_bytes: of one message; above a peer's `transport.chunk` by 4 KiB or more.
        inflight: messages on their way to one client that it has not acknowledged.
        queued_messages, queued_bytes: that wait for one client, besides.
        connections: at the same time.
    """

    message_bytes: int = (1 << 20) + _BESIDE_A_CHUNK
    inflight: int = 64
    queued_messages: int = 10_000
    queued_bytes: int = 256 << 20
    connections: int = 512

    def __post_init__(self) -> None:
        if low := next((part.name for part in fields(self) if getattr(self, part.name) < 1), None):
            raise BadInput(f"A broker with {low}=0 carries nothing; give it 1 or more.")
        if not LEAST_CHUNK <= self.chunk < 1 << 28:
            raise BadInput(f"message_bytes={self.message_bytes} is no use to a mesh; take 8KiB to 255MiB.")

    @classmethod
    def for_chunks(cls, chunk: int) -> Self:
        """As usual, but for messages that carry `chunk` bytes of a frame."""
        return cls(message_bytes=chunk + _BESIDE_A_CHUNK)

    @classmethod
    def asked(cls, words: Iterable[str]) -> Self:
        """From `NAME=NUMBER`, where a number may have KiB, MiB or GiB behind it. Raises BadInput."""
        names, found = [part.name for part in fields(cls)], {}
        for word in words:
            name, _, amount = word.partition("=")
            said = _AMOUNT.fullmatch(amount)
            if name not in names or not said:
                raise BadInput(
                    f"{word!r} is no limit; write NAME=NUMBER, as in {names[0]}=4MiB, of {', '.join(names)}."
                )
            found[name] = int(said[1]) * _UNITS[said[2]]
        return cls(**found)

    @property
    def chunk(self) -> int:
        """The largest `transport.chunk`, in bytes, whose messages pass."""
        return self.message_bytes - _BESIDE_A_CHUNK


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """One broker. Raises BadInput for what cannot be, or would let strangers in.

    Args:
        host: the address it listens on; 0.0.0.0 and :: are all of this machine's.
        names: what peers call this machine, for the certificate; the first is what they are told. None: found out.
        users: who may use it; none: everybody.
        prefix: the beginning of all topics of its meshes.
        keeps: whether what waits for peers survives its restart.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    tls: bool = False
    names: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    prefix: str = "veilmesh"
    limits: Limits = Limits()
    keeps: bool = True

    def __post_init__(self) -> None:
        for user in self.users:
            if not _USER.fullmatch(user):
                raise BadInput(f"{user!r} is no user name; take letters, digits and any of _ . @ -, up to 128.")
        if not _PREFIX.fullmatch(self.prefix) or len(self.prefix) > 64:
            raise BadInput(f"{self.prefix!r} cannot begin topics; take letters, digits and any of _ . -, up to 64.")
        if wrong := next((name for name in (self.host, *self.names) if not _NAME.fullmatch(name)), None):
            raise BadInput(f"{wrong!r} is no name or address of a machine; write one as 192.0.2.1 or broker.example.")
        if not 0 < self.port < 1 << 16:
            raise BadInput(f"{self.port} is no port to listen on; take one from 1 to 65535.")
        self._keep_strangers_out()

    @property
    def place(self) -> str:
        """HOST:PORT as peers are told it."""
        name = self.known_as[0]
        return f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names and addresses by which this machine is reached; the first is what peers are told."""
        if self.names:
            return self.names
        return _own_names() if self.host in _ANYWHERE else (self.host,)

    @property
    def door(self) -> str:
        """An address of this machine at which the broker answers."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def holds_sessions(self) -> bool:
        """Whether every user is one peer, so that nobody can take over another's session either."""
        return bool(self.users) and all(map(is_peer, self.users))

    def _keep_strangers_out(self) -> None:
        if is_loopback(self.host):
            return
        if not self.users:
            raise BadInput(f"At {self.host} a broker without users would serve anybody; say who may use it by --user.")
        if not self.tls:
            raise BadInput(f"Passwords would cross the network to {self.host} in the clear; add --tls.")


def is_peer(user: str) -> bool:
    """Whether a user's name is a peer's id."""
    try:
        public_key(PeerId(user))
    except RemoteError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _own_names() -> tuple[str, ...]:
    """This machine's name, and its addresses that others can dial without naming an interface."""
    addresses = [each.address for several in psutil.net_if_addrs().values() for each in several if _dialled(each)]
    return (socket.gethostname(), *dict.fromkeys(addresses))


def _dialled(address: "psutil._common.snicaddr") -> bool:
    return address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address
