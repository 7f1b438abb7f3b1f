"""What a transport promises: frames, at most once, in any order, from anybody.

A transport authenticates nothing and hides nothing (the envelope does). A frame to an absent peer is lost without an
error; one that finds the inbox full, or its sender's share of it, is dropped and counted. The inbox may carry `Gone`
hints where the transport notices a lost connection, and `Found` hints where it discovers peers; they are hints, and the
membership and the door decide.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Protocol, TypeAlias, runtime_checkable

from veilmesh.core import Registry
from veilmesh.crypto.envelope import MAX_BODY
from veilmesh.crypto.frame import frame_size
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId

__all__ = [
    "INBOX_BYTES", "INBOX_FRAMES", "INBOX_SHARE", "MAX_FRAME", "TRANSPORTS", "Arrival", "Found", "Frame", "Gone",
    "Traffic", "Transport", "TransportKind", "Windowed",
]  # fmt: skip

INBOX_FRAMES: Final = 1024
"""How many frames wait in an inbox before further ones are dropped."""

INBOX_BYTES: Final = 512 << 20
"""How many bytes wait in an inbox before further frames are dropped: four of the longest, one a sender's share."""

INBOX_SHARE: Final = 4
"""One sender may fill a fourth of an inbox: if it floods, it loses its own frames and nobody else's."""

MAX_FRAME: Final = frame_size(MAX_BODY, with_hello=True)
"""The longest frame, in bytes, a transport carries unless told otherwise: the largest body in its envelope."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes that arrived, whoever sent them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """The transport lost its connection to `peer`, as the transport knows it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Found:
    """Discovery found a peer at `address`; who it is, it must still prove."""

    peer: PeerId
    address: str


Arrival: TypeAlias = Frame | Gone | Found


@dataclass(slots=True)
class Traffic:
    """Bytes counted at the socket: everything this peer's process wrote and read, handshakes and headers included."""

    sent: int = 0
    received: int = 0
    dropped_frames: int = 0  # arrived, and found the inbox full
    lost_frames: int = 0  # were sent, and found no way to the peer
    refused: int = 0  # connections and streams ended because the other side broke the transport's own rules


class Transport(Protocol):
    """One peer's way to the others."""

    @property
    def traffic(self) -> Traffic:
        """The counters, live."""
        ...

    @property
    def address(self) -> str:
        """Where others reach this peer, once open."""
        ...

    @property
    def protections(self) -> dict[str, str]:
        """What is in force on this transport, for the run's record: e.g. {"channel": "noise", "muxer": "yamux"}."""
        ...

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Arrival]]:
        """Listen; the iterator yields what arrives until the context closes. Raises BadInput: the port is in use."""
        ...

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell the transport where the others are; replaces what it knew. Raises BadInput: not an address."""
        ...

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Carry `frame` towards `to`. Returns when it was handed on, or lost because `to` cannot be reached.

        May wait, for a dial or a slow reader, within the transport's own deadlines, and for this neighbour only: other
        sends go on. May be cancelled. Raises LocalError: the frame is longer than the transport carries.
        """
        ...


@runtime_checkable
class Windowed(Protocol):
    """A transport that hands frames on before they have left, and knows how many it still has."""

    def under_way(self, to: PeerId) -> int:
        """How many frames to `to` were handed on, and have not arrived as far as is known."""
        ...


class TransportKind(Protocol):
    """A registered transport: a frozen dataclass whose fields are its configuration, and which makes a peer's own."""

    backend: ClassVar[Literal["asyncio", "trio"]]
    """The event loop its peers run on: anyio.run(..., backend=kind.backend)."""

    def prepare(self) -> None:
        """Import what opening one needs; a parent does so once, before it forks a child for every peer.

        Raises BadInput: what is installed will not do.
        """
        ...

    def make(self, identity: Identity) -> Transport:
        """The transport of the peer `identity`, not open yet."""
        ...


TRANSPORTS: Registry[TransportKind] = Registry("transport", "veilmesh.peer.transports")
