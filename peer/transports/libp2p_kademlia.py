"""Finding peers in a Kademlia DHT (libp2p kad-dht 1.0.0; Maymounkov and Mazieres, IPTPS 2002): who provides a key.

A peer tells the nodes nearest to its mesh's key that it provides it, and asks them who else does: one walk towards the
key does both. It enters at the points it was told of. Only provider records are spoken: this side stores no values for
anybody, and what it keeps is bounded.

The library's own node is not used (its messages are, and the two talk to each other): it takes every peer it hears of
into the host's address book, from which the host dials by itself; it forgets the network as soon as it provides the key
itself, since it then answers from its own store; and twelve silent streams are enough to make it deaf.

Whoever walks asks hosts that strangers named, at most `ASKED` a walk.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports.libp2p_finding import ADDRESSES, Surroundings, key, repeat
from veilmesh.peer.transports.libp2p_kademlia_node import (
    BUCKET,
    PROTOCOL,
    PROVIDERS,
    Node,
    add,
    message,
    nearest,
    signed_record,
)
from veilmesh.peer.transports.libp2p_talk import ask

if TYPE_CHECKING:
    from libp2p.abc import IHost

__all__ = ["PROTOCOL", "Node", "find", "join", "signed_record"]

REPLICAS: Final = 8  # nodes that are told that we provide
ALPHA: Final = 3  # nodes asked at once
ASKED: Final = 32

_MULTIHASH: Final = bytes([0x12, 0x20])  # sha2-256, 32 bytes: as other implementations want their keys


async def find(around: Surroundings, node: Node) -> None:
    """Provide the mesh's key and look who else does, until cancelled."""
    wanted = _MULTIHASH + key(around.namespace, "kademlia")

    async def look() -> bool:
        walk = _Walk(around.host, wanted, {**around.points, **node.nodes()}, node)
        await walk.go()
        here = around.addresses()
        if here:
            await walk.provide(around.me, here)
            node.keep(around.me, wanted, [addresses.to_wire(one) for one in here[:ADDRESSES]])
        walk.providers.update(node.providers(wanted))
        for peer, told in walk.providers.items():
            around.found(peer, told)
        return bool(walk.answered)

    await repeat(look)


async def join(around: Surroundings, node: Node) -> None:
    """Make this node known to those nearest to it, and them to it, until cancelled."""

    async def look() -> bool:
        walk = _Walk(around.host, addresses.raw(around.me), {**around.points, **node.nodes()}, node)
        await walk.go()
        return bool(walk.answered) or not around.points

    await repeat(look)


@dataclass(slots=True)
class _Walk:
    """One walk towards a key: ask the nearest nodes known, be told of nearer ones, until there are none."""

    host: "IHost"
    key: bytes
    known: dict[PeerId, str]
    node: Node
    asked: set[PeerId] = field(default_factory=set)
    answered: dict[PeerId, str] = field(default_factory=dict)
    providers: dict[PeerId, list[str]] = field(default_factory=dict)

    async def go(self) -> None:
        while len(self.asked) < ASKED:
            next_ones = [peer for peer in nearest(self.key, self.known)[:BUCKET] if peer not in self.asked]
            if not next_ones:
                return
            async with anyio.create_task_group() as asking:
                for peer in next_ones[:ALPHA]:
                    self.asked.add(peer)
                    asking.start_soon(self._ask, peer)

    async def provide(self, me: PeerId, here: list[str]) -> None:
        """Tell the nearest nodes that answered that this peer provides the key."""
        kind = message()
        question = kind(type=kind.ADD_PROVIDER, key=self.key)
        add(question.providerPeers, me, [addresses.to_wire(one) for one in here[:ADDRESSES]])
        async with anyio.create_task_group() as telling:
            for peer in nearest(self.key, self.answered)[:REPLICAS]:
                telling.start_soon(ask, self.host, peer, self.answered[peer], PROTOCOL, question, kind)

    async def _ask(self, peer: PeerId) -> None:
        kind = message()
        question = kind(type=kind.GET_PROVIDERS, key=self.key)
        if self.node.record:
            question.senderRecord = self.node.record
        answer = await ask(self.host, peer, self.known[peer], PROTOCOL, question, kind)
        if answer is None or answer.type != kind.GET_PROVIDERS:
            self.node.remove(peer)
            del self.known[peer]
            return
        self.answered[peer] = self.known[peer]
        self.node.add(peer, self.known[peer])
        for other, told in _told(answer.closerPeers, BUCKET):
            if other != self.node.me:
                self.known.setdefault(other, told[0])
        self.providers.update(_told(answer.providerPeers, PROVIDERS))


def _told(peers: Any, most: int) -> list[tuple[PeerId, list[str]]]:
    """The peers in an answer, with those of their addresses that can be believed; those without one are left out."""
    found = []
    for one in peers[:most]:
        if (peer := addresses.peer_of(one.id)) is not None:
            told = [addresses.from_wire(peer, octets) for octets in one.addrs[:ADDRESSES]]
            if known := [address for address in told if address is not None]:
                found.append((peer, known))
    return found
