"""What every way of finding peers needs to know, and what becomes of what it finds.

A way of finding is one file (`libp2p_mdns`, `libp2p_rendezvous`, `libp2p_kademlia`) with one function that looks for
peers until it is cancelled. Each looks under a hash of the mesh's id that is its own: whoever sees one (the machines of
a LAN, a rendezvous point, a node of the DHT) learns neither the id nor what the other ways look under.

Whatever is found is a hint by somebody who may lie: a peer id and an address, nothing proven.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address

if TYPE_CHECKING:
    from libp2p.abc import IHost

__all__ = ["ADDRESSES", "Finds", "Surroundings", "key", "repeat"]

ADDRESSES: Final = 3
"""How many addresses of one peer are told, and believed."""

FIRST_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 8.0
PERIOD_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 15.0
REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What one way of finding is given.

    Args:
        me: this peer.
        namespace: the id of its mesh, in hexadecimal digits.
        points: peers that were named beforehand, and where they are.
        addresses: where this peer can be reached now; may change, may be empty.
        found: told of every peer found, with its addresses, the best first.
        listen, port: where this peer listens; an IP address, 0.0.0.0 for all of the machine's.
    """

    host: "IHost"
    me: PeerId
    namespace: str
    points: dict[PeerId, str]
    addresses: Callable[[], list[str]]
    found: Callable[[PeerId, list[str]], None]
    listen: str
    port: int


def key(namespace: str, way: str) -> bytes:
    """What a mesh is looked for under, 32 bytes: another for every way of finding, and its id cannot be had from it."""
    return hashlib.sha256(f"veilmesh/discovery/1/{way}/".encode() + bytes.fromhex(namespace)).digest()


async def repeat(look: Callable[[], Awaitable[bool]]) -> None:
    """Look for ever: often at first, then every minute; every few seconds while nobody can be asked (`look` is False).

    Peers of a mesh start at about the same time, and whoever comes later finds those who were there before.
    """
    pause = FIRST_SECONDS
    while True:
        asked = await look()
        await anyio.sleep(pause)
        pause = min(2 * pause, PERIOD_SECONDS if asked else max(pause, RETRY_SECONDS))


@dataclass(slots=True)
class Finds:
    """Tells of each peer once in a while, however often it is found, and of one address at a time, in turns.

    Forgets the oldest when there are many.
    """

    me: PeerId
    tell: Callable[[PeerId, str], None]
    met: Callable[[PeerId], bool]
    _told: "OrderedDict[PeerId, dict[str, float]]" = field(default_factory=OrderedDict)  # peer -> address -> when

    def __call__(self, peer: PeerId, addresses: list[str]) -> None:
        """A way of finding has found `peer`; one that was met already, or cannot be of a mesh, is no news."""
        if peer == self.me or not libp2p_address.of_mesh(peer) or self.met(peer):
            return
        whole = [libp2p_address.told(peer, address) for address in addresses[:ADDRESSES]]
        if believed := [address for address in whole if address is not None]:
            self._say(peer, believed)

    def _say(self, peer: PeerId, addresses: list[str]) -> None:
        now = anyio.current_time()
        before = self._told.get(peer, {})
        if before and now - max(before.values()) < AGAIN_SECONDS:
            return
        longest_ago = min(addresses, key=lambda address: before.get(address, -1.0))
        kept = {address: when for address, when in before.items() if address in addresses}
        self._told[peer] = kept | {longest_ago: now}
        self._told.move_to_end(peer)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        self.tell(peer, longest_ago)
