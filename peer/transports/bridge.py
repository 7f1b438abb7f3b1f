"""One foot on libp2p and one at an MQTT broker: a bridge, by which one mesh spans both.

Theory of operation. A bridge is a peer like any other, with two transports. Its address has a part for each
(`bridge_address`), and it speaks to every neighbour by the one that they have in common; libp2p, where it is both.
libp2p runs on trio and MQTT on asyncio, so that one has a thread of its own (`bridge_thread`). What arrives on either
side is merged, and both feet keep the bounds of their inboxes (`bridge_merge`).

Between neighbours of its own that have no transport in common it carries sealed frames (`bridge_forward`), if they ask
it to (`bridge_foot`). It sees of those what a relay sees: who, to whom, when and how long. A frame that it loses, or
keeps, is lost as on any transport, and its own death cuts the two sides apart. What a transport notices of a peer's end
it does not tell the other side, which notices the silence.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import anyio

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Frame, Traffic, Transport, TransportKind
from veilmesh.peer.transports.bridge_address import WAYS, joined, parts
from veilmesh.peer.transports.bridge_forward import Forwards
from veilmesh.peer.transports.bridge_merge import Merged
from veilmesh.peer.transports.bridge_thread import Elsewhere, added
from veilmesh.peer.transports.groups import only

__all__ = ["Bridge", "BridgeTransport"]


@TRANSPORTS.register("bridge")
@dataclass(frozen=True, slots=True)
class Bridge:
    """Libp2p and an MQTT broker at once, for one peer that joins those who have the one or the other only.

    Args:
        libp2p, mqtt: the options of each, as tables.
    """

    libp2p: Mapping[str, Any] = field(default_factory=dict)
    mqtt: Mapping[str, Any] = field(default_factory=dict)

    backend: ClassVar[Literal["asyncio", "trio"]] = "trio"

    def __post_init__(self) -> None:
        """Raises BadInput: an option of one of them is unknown, or no use."""
        self._feet()

    def prepare(self) -> None:
        """What both need. Raises BadInput: one of them is not installed, or an option is no use."""
        for kind in self._feet().values():
            kind.prepare()

    def make(self, identity: Identity) -> "BridgeTransport":
        """The transport of the peer `identity`, not open yet. Raises BadInput: an option is no use."""
        feet = {way: kind.make(identity) for way, kind in self._feet().items()}
        return BridgeTransport(identity.peer, {**feet, "mqtt": Elsewhere(feet["mqtt"])})

    def _feet(self) -> dict[str, TransportKind]:
        return {"libp2p": TRANSPORTS.build("libp2p", self.libp2p), "mqtt": TRANSPORTS.build("mqtt", self.mqtt)}


class BridgeTransport:
    """One peer's ways to the others.

    Args:
        me: whose they are.
        feet: a transport for each of WAYS, the preferred one first; all run on trio.
    """

    def __init__(self, me: PeerId, feet: Mapping[str, Transport]) -> None:
        self._feet = dict(feet)
        self._own = Traffic()
        self._way: dict[PeerId, str] = {}
        self._forwards = Forwards(me, self._own, self.send)

    @property
    def traffic(self) -> Traffic:
        """The counters of both feet together, with what was carried for others: it came in, and went out again."""
        return added(self._own, *(foot.traffic for foot in self._feet.values()))

    @property
    def forwarded(self) -> int:
        """How many frames were carried for others."""
        return self._forwards.frames

    @property
    def address(self) -> str:
        """Both addresses. Raises LocalError before the transport is open."""
        return joined(*(foot.address for foot in self._feet.values()))

    @property
    def protections(self) -> dict[str, str]:
        """Those of both feet; what is not libp2p's says whose it is."""
        first, *others = self._feet
        said = dict(self._feet[first].protections)
        return said | {f"{way} {what}": how for way in others for what, how in self._feet[way].protections.items()}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        """Listen on both sides until the context closes. Raises BadInput: one of them cannot be opened."""
        merged = Merged()
        try:
            async with AsyncExitStack() as opened:
                inboxes = {way: await opened.enter_async_context(foot.open()) for way, foot in self._feet.items()}
                async with anyio.create_task_group() as tasks:
                    self._forwards.start(tasks)
                    for way, inbox in inboxes.items():
                        tasks.start_soon(merged.pump, inbox, partial(self._ours, way))
                    try:
                        yield merged
                        merged.close()
                        await self._forwards.drained()
                    finally:
                        tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        finally:
            merged.close()

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are; each is reached by the first way that it has. Raises BadInput: by none."""
        places: dict[str, dict[PeerId, str]] = {way: {} for way in self._feet}
        for peer, address in addresses.items():
            known = parts(peer, address)
            if (way := next((way for way in self._feet if way in known), None)) is None:
                raise BadInput(f"{address!r} is no address of {peer} over {' or '.join(WAYS)}; correct the peer list.")
            places[way][peer] = known[way]
        for way, foot in self._feet.items():
            foot.introduce(places[way])
        self._way = {peer: way for way, here in places.items() for peer in here}
        self._forwards.know(self._way)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """By the way that `to` is reached; one that nobody has introduced, by the first, which loses it."""
        await self._feet[self._way.get(to, next(iter(self._feet)))].send(to, frame)

    async def _ours(self, way: str, arrival: Arrival) -> bool:
        """Whether an arrival is for this peer; what is for another is on its way."""
        return not isinstance(arrival, Frame) or not await self._forwards.takes(arrival.data, way)
