"""A transport in a mesh that spans several: it takes its part of every address, and asks a bridge for the rest."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import Arrival, Traffic, Transport
from veilmesh.peer.transports.bridge_address import parts

__all__ = ["Foot"]


class Foot:
    """`inner`, a transport of the kind `way`, among peers of which some stand elsewhere.

    Frames to those it has no transport in common with go to a bridge, sealed as they are: to the first, by peer id, of
    those that were introduced and stand on both sides. Without one they are lost.
    """

    def __init__(self, inner: Transport, way: str) -> None:
        self._inner = inner
        self._way = way
        self._by: dict[PeerId, PeerId] = {}

    @property
    def traffic(self) -> Traffic:
        """The counters of the transport itself, live."""
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
        """Tell where the others are. Raises BadInput: one is not an address, or not of its peer."""
        known = {peer: parts(peer, address) for peer, address in addresses.items()}
        near = {peer: places[self._way] for peer, places in known.items() if self._way in places}
        self._by = {}
        for peer, places in known.items():
            if peer not in near and (both := [p for p in near if known[p].keys() & places.keys()]):
                self._by[peer] = min(both)
        self._inner.introduce(near)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Towards `to`: as the transport itself does, or to the bridge that carries it further."""
        await self._inner.send(self._by.get(to, to), frame)
