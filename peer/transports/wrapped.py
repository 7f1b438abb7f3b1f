"""A transport around another one: what a wrapper leaves as it is."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import Arrival, Traffic, Transport

__all__ = ["Wrapped"]


class Wrapped:
    """`inner`, in everything that a subclass does not change."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def traffic(self) -> Traffic:
        """The counters of the transport itself, live, at its own sockets."""
        return self._inner.traffic

    @property
    def address(self) -> str:
        """Of the transport itself."""
        return self._inner.address

    @property
    def protections(self) -> dict[str, str]:
        """Of the transport itself."""
        return self._inner.protections

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Arrival]]:
        """As the transport itself."""
        return self._inner.open()

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """As the transport itself. Raises BadInput: one is not an address, or not of its peer."""
        self._inner.introduce(addresses)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """As the transport itself."""
        await self._inner.send(to, frame)
