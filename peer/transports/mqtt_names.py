"""How peers are named at a broker: topics, addresses, and signed words about who is there. Pure.

    PREFIX/to/RECEIVER/SENDER       a peer's inbox: what SENDER has to say to it
    PREFIX/presence/PEER            retained: whether it is there, in its own words

So a broker's access lists can hold every sender to its own name. An address is `mqtt://HOST:PORT/PREFIX/PEER`, with
`?session=` and the peer's present session, in hexadecimal digits. What a presence says is signed, but a broker can play
an old one again: it is a hint, as everything that a transport says of others is.
"""

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.identity import SIGNATURE_BYTES, Identity, PeerId, public_key, verify
from veilmesh.peer.transports.mqtt_chunks import SESSION_BYTES

__all__ = ["NO_SESSION", "Names", "Place", "Presence", "State"]

NO_SESSION: Final = bytes(SESSION_BYTES)
"""Not known yet; every real session is higher."""

_DOMAIN: Final = b"veilmesh mqtt presence v1"
_PRESENCE: Final = struct.Struct(f"!2sBB{SESSION_BYTES}sI")  # magic, version, state, session, connections so far
_MAGIC: Final = b"VP"
_VERSION: Final = 1
_ADDRESS: Final = re.compile(
    r"mqtts?://(?P<host>[\w.\-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})/(?P<prefix>[\w.\-]+(?:/[\w.\-]+)*)/(?P<peer>\w+)"
    r"(?:\?session=(?P<session>[0-9a-f]{32}))?",
    re.ASCII,
)


class State(IntEnum):
    """What a peer says of itself."""

    HERE = 1  # connected, and its inbox is subscribed to
    LOST = 2  # its connection broke: said by the broker, in words it was given beforehand
    CLOSED = 3  # it has ended


@dataclass(frozen=True, slots=True)
class Presence:
    """One peer's word about itself. `connections` counts the connections of its session."""

    state: State
    session: bytes
    connections: int = 0

    def to_bytes(self, identity: Identity) -> bytes:
        """As it travels: 24 bytes and a signature."""
        body = _PRESENCE.pack(_MAGIC, _VERSION, self.state, self.session, self.connections)
        return body + identity.sign(_DOMAIN + body)

    @classmethod
    def from_bytes(cls, raw: bytes, peer: PeerId) -> Self:
        """What `peer` said. Raises RemoteError(TRUNCATED, VERSION, MALFORMED or BAD_SIGNATURE)."""
        if len(raw) != _PRESENCE.size + SIGNATURE_BYTES:
            raise RemoteError(Refusal.TRUNCATED, "a presence")
        magic, version, state, session, connections = _PRESENCE.unpack_from(raw)
        if magic != _MAGIC or version != _VERSION:
            raise RemoteError(Refusal.VERSION, "not a presence of this version")
        if state not in set(State) or session == NO_SESSION:
            raise RemoteError(Refusal.MALFORMED, "a presence of no known state")
        if not verify(public_key(peer), raw[_PRESENCE.size :], _DOMAIN + raw[: _PRESENCE.size]):
            raise RemoteError(Refusal.BAD_SIGNATURE, f"a presence that {peer} did not sign")
        return cls(State(state), session, connections)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is reached, as an address says it."""

    peer: PeerId
    prefix: str
    session: bytes

    @classmethod
    def parse(cls, peer: PeerId, address: str) -> Self:
        """Raises BadInput: not an address of that peer at a broker."""
        found = _ADDRESS.fullmatch(address)
        if not found or found["peer"] != peer or not 0 < int(found["port"]) < 1 << 16:
            raise BadInput(
                f"{address!r} is no address of {peer} at a broker; one looks like mqtt://HOST:1883/veilmesh/{peer}."
            )
        return cls(peer, found["prefix"], bytes.fromhex(found["session"]) if found["session"] else NO_SESSION)


@dataclass(frozen=True, slots=True)
class Names:
    """The topics of one mesh, as `me` uses them."""

    prefix: str
    me: PeerId

    @property
    def inbox(self) -> str:
        """The filter of everything that is said to me."""
        return f"{self.prefix}/to/{self.me}/+"

    @property
    def everybody(self) -> str:
        """The filter of everybody's presence."""
        return f"{self.prefix}/presence/+"

    @property
    def presence(self) -> str:
        """Where I say that I am here."""
        return f"{self.prefix}/presence/{self.me}"

    def to(self, place: Place) -> str:
        """Where I say something to a peer."""
        return f"{place.prefix}/to/{place.peer}/{self.me}"

    def said(self, topic: str) -> tuple[bool, PeerId]:
        """Whether a topic is a presence (or else my inbox), and whose words it carries.

        Raises RemoteError(MISDIRECTED or MALFORMED): a topic that was not subscribed to, or of nobody.
        """
        head, _, who = topic.rpartition("/")
        if head not in (f"{self.prefix}/presence", f"{self.prefix}/to/{self.me}"):
            raise RemoteError(Refusal.MISDIRECTED, "a topic that was not subscribed to")
        public_key(PeerId(who))
        return head == f"{self.prefix}/presence", PeerId(who)

    def address(self, host: str, port: int, tls: bool, session: bytes) -> str:
        """Where others reach me."""
        return f"mqtt{'s' * tls}://{host}:{port}/{self.prefix}/{self.me}?session={session.hex()}"
