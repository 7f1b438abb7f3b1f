"""Peers in one process: frames handed over without a socket. It keeps what a transport promises, and nothing more.

Peers made by one `Memory` reach each other, and nobody else.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import anyio.lowlevel

from veilmesh.core import BadInput, LocalError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import MAX_FRAME, TRANSPORTS, Arrival, Traffic
from veilmesh.peer.transports.inbox import Inbox

__all__ = ["Exchange", "Memory", "MemoryTransport"]


class Exchange:
    """Who is open, by address. Shared by the transports that can reach each other."""

    def __init__(self) -> None:
        self._open: dict[str, MemoryTransport] = {}
        self._islands: frozenset[frozenset[PeerId]] = frozenset()

    def join(self, transport: "MemoryTransport") -> None:
        """Begin to be reachable. Raises BadInput: somebody is, under the same address."""
        if transport.address in self._open:
            raise BadInput(f"The address {transport.address} is in use; give every peer an identity of its own.")
        self._open[transport.address] = transport

    def leave(self, transport: "MemoryTransport") -> None:
        """Stop being reachable; whoever still is gets the hint."""
        del self._open[transport.address]
        for other in self._open.values():
            if self._connects(transport.peer, other.peer):
                other.lose(transport.peer)

    def cut(self, *islands: Iterable[PeerId]) -> None:
        """Part the peers: frames between islands are lost, without a hint. A peer on no island reaches everybody."""
        self._islands = frozenset(frozenset(island) for island in islands)

    def heal(self) -> None:
        """Undo `cut`."""
        self._islands = frozenset()

    def find(self, address: str, by: PeerId) -> "MemoryTransport | None":
        """Who is open under `address`, as far as `by` can reach."""
        other = self._open.get(address)
        return other if other and self._connects(by, other.peer) else None

    def _connects(self, one: PeerId, other: PeerId) -> bool:
        return not any(one in here and other in there for here in self._islands for there in self._islands - {here})


# Without slots: cached_property keeps the one exchange of a configuration in the instance's dictionary.
@TRANSPORTS.register("memory")
@dataclass(frozen=True)
class Memory:
    """Frames handed over inside one process."""

    backend: ClassVar[Literal["asyncio", "trio"]] = "trio"

    @cached_property
    def exchange(self) -> Exchange:
        """The exchange that all peers of this configuration share."""
        return Exchange()

    def prepare(self) -> None:
        """Nothing is needed."""

    def make(self, identity: Identity) -> "MemoryTransport":
        """The transport of the peer `identity`, in the exchange of this configuration."""
        return MemoryTransport(identity.peer, self.exchange)


class MemoryTransport:
    """One peer's way to the others of its exchange. Its traffic is the frames' own bytes: there is no wire."""

    def __init__(self, peer: PeerId, exchange: Exchange, max_frame: int = MAX_FRAME) -> None:
        self.peer = peer
        self._exchange = exchange
        self._max_frame = max_frame
        self._addresses: dict[PeerId, str] = {}
        self._traffic = Traffic()
        self._inbox = Inbox(self._traffic)

    @property
    def traffic(self) -> Traffic:
        """The counters, live."""
        return self._traffic

    @property
    def address(self) -> str:
        """`memory:` and the peer's id."""
        return f"memory:{self.peer}"

    @property
    def protections(self) -> dict[str, str]:
        """None: nothing leaves the process."""
        return {"channel": "none"}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        """Be reachable until the context closes."""
        self._inbox = Inbox(self._traffic)
        self._exchange.join(self)
        try:
            yield self._inbox
        finally:
            self._exchange.leave(self)
            self._inbox.close()

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are; only those are ever sent to."""
        self._addresses = dict(addresses)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Hand `frame` over, or lose it."""
        if len(frame) > self._max_frame:
            raise LocalError(f"a frame of {len(frame)} bytes, of at most {self._max_frame}")
        await anyio.lowlevel.checkpoint()
        other = self._exchange.find(self._addresses.get(to, ""), self.peer)
        if other is None:
            self._traffic.lost_frames += 1
            return
        self._traffic.sent += len(frame)
        other.take(frame, self.peer)

    def take(self, frame: bytes, sender: PeerId | None = None) -> None:
        """Called by the sender: here is a frame."""
        self._traffic.received += len(frame)
        self._inbox.offer(frame, sender)

    def lose(self, peer: PeerId) -> None:
        """Called by the exchange: `peer` has closed."""
        self._inbox.gone(peer)
