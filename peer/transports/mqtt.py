"""Frames through an MQTT broker, for peers that cannot reach each other. The broker is an untrusted relay.

Theory of operation. Every peer has one inbox, to which it is subscribed before anybody learns that it is here, and
every opening of a transport is a session of its own, named in its address. What is sent to a peer goes into its window,
is cut into chunks, published (QoS 1), put together at the other side, and acknowledged from there, chunk by chunk:
"handed on" is the window's word, and what gets lost on the way, whether dropped by the broker or in its memory when it
was restarted, is said again until the peer itself has it, its session has ended, or nothing was heard for long. What
arrives twice is known by its number. What the broker sees: who, to whom, when and how long; frames are sealed.

Presence is retained and signed. The broker says a peer's last will when its connection breaks, which is a hint (`Gone`)
and no more; nothing else here rests on the broker's good will, except that anything arrives at all.

This module is listed with the other transports, so aiomqtt is imported when a peer opens, not before.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.peer.transports.mqtt_broker import Broker, broker_of, library, password_in
from veilmesh.peer.transports.mqtt_chunks import CHUNK_OVERHEAD, LEAST_CHUNK
from veilmesh.peer.transports.mqtt_transport import MqttTransport

__all__ = ["Mqtt"]


@TRANSPORTS.register("mqtt")
@dataclass(frozen=True, slots=True)
class Mqtt:
    """Through an MQTT broker that need not be trusted.

    Args:
        broker: its host and port, HOST:PORT; where none is given, `veilmesh up` starts one for its run.
        tls, ca: encrypt the connection to the broker; the certificates to check it by, where the system's will not do.
        username, password_file: what the broker knows this peer by; the password is the file's first line.
        prefix: the beginning of all topics of the mesh.
        chunk: bytes of a frame in one message; below what the broker allows (mosquitto: message_size_limit).
        keepalive: seconds of silence before the broker thinks a peer gone.
        protocol: of MQTT; with 3.1.1 the broker keeps nothing while a peer is away, and all of it is said again.
        find: tell of peers whose presence is seen and that were not introduced.
    """

    broker: str | None = None
    tls: bool = False
    ca: str | None = None
    username: str | None = None
    password_file: str | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*$", max_length=64)] = "veilmesh"
    chunk: Annotated[int, Field(ge=LEAST_CHUNK, le=64 << 20)] = 1 << 20
    keepalive: Annotated[int, Field(ge=2, le=3600)] = 20
    protocol: Literal["5", "3.1.1"] = "5"
    find: bool = False

    backend: ClassVar[Literal["asyncio", "trio"]] = "asyncio"

    def prepare(self) -> None:
        """Import aiomqtt. Raises BadInput: it is not installed, or an option is no use."""
        library()
        self._broker().context()

    def make(self, identity: Identity) -> "MqttTransport":
        """The transport of the peer `identity`, not open yet. Raises BadInput: an option is no use."""
        return MqttTransport(identity, self._broker(), self.prefix, self.chunk, find=self.find)

    def _broker(self) -> Broker:
        if self.broker is None:
            raise BadInput("Say where the MQTT broker is, by transport.broker=HOST:PORT.")
        host, port = broker_of(self.broker, self.tls)
        password, most = password_in(self.password_file), self.chunk + CHUNK_OVERHEAD + 1024
        return Broker(
            host, port, self.tls, self.ca, self.username, password, self.keepalive, self.protocol, max(most, 1 << 16)
        )
