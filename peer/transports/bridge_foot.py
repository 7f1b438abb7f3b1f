"""A transport in a mesh that spans several: it takes its part of every address, and asks a bridge for the rest."""

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import Transport
from veilmesh.peer.transports.bridge_address import parts
from veilmesh.peer.transports.wrapped import Wrapped

__all__ = ["Foot"]


class Foot(Wrapped):
    """`inner`, a transport of the kind `way`, among peers of which some stand elsewhere.

    Frames to those it has no transport in common with go to a bridge, sealed as they are: to the first, by peer id, of
    those that were introduced and stand on both sides. Without one they are lost.
    """

    def __init__(self, inner: Transport, way: str) -> None:
        super().__init__(inner)
        self._way = way
        self._by: dict[PeerId, PeerId] = {}

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are. Raises BadInput: one is not an address, or not of its peer."""
        known = {peer: parts(peer, address) for peer, address in addresses.items()}
        near = {peer: places[self._way] for peer, places in known.items() if self._way in places}
        self._by = {}
        for peer, places in known.items():
            if peer not in near and (both := [p for p in near if known[p].keys() & places.keys()]):
                self._by[peer] = min(both)
        super().introduce(near)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Towards `to`: as the transport itself does, or to the bridge that carries it further."""
        await super().send(self._by.get(to, to), frame)
