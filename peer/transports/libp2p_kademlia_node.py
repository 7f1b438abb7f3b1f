"""A node of the DHT: the others it knows, the records it keeps for them, and what it answers. See `libp2p_kademlia`."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports.libp2p_finding import ADDRESSES
from veilmesh.peer.transports.libp2p_talk import ask

if TYPE_CHECKING:
    from libp2p.abc import IHost
    from libp2p.kad_dht.pb.kademlia_pb2 import Message

__all__ = ["BUCKET", "PROTOCOL", "PROVIDERS", "RECORDS", "Node", "add", "message", "nearest", "signed_record"]

PROTOCOL: Final = "/ipfs/kad/1.0.0"

BUCKET: Final = 20  # k: nodes kept at each distance, and told in an answer
RECORD_SECONDS: Final = 1800.0  # a provider says it again every minute
RECORDS: Final = 4096
PROVIDERS: Final = 100  # of one key, in an answer
KEYS_A_PEER: Final = 8
LONGEST_KEY: Final = 80
CANDIDATES: Final = 64
TEND_SECONDS: Final = 30.0


def add(peers: Any, peer: PeerId, told: list[bytes]) -> None:
    one = peers.add()
    one.id = addresses.raw(peer)
    one.addrs.extend(told)


def nearest(wanted: bytes, peers: dict[PeerId, Any]) -> list[PeerId]:
    return sorted(peers, key=lambda peer: addresses.distance(addresses.raw(peer), wanted))


def message() -> "type[Message]":
    from libp2p.kad_dht.pb.kademlia_pb2 import Message

    return Message


@dataclass(frozen=True, slots=True)
class _Record:
    addresses: tuple[bytes, ...]
    until: float


class Node:
    """What this peer knows of the DHT; and, where it serves others, what it keeps for them and answers.

    Nodes enter the table when they have answered a question of ours, never because they say that they exist; those
    that were there first stay until they fail to answer. Of too many records the oldest is forgotten.

    Args:
        me: this peer.

    `record` is this peer's addresses, signed (a libp2p peer record), once it is a node that others may ask.
    """

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.record = b""
        self._table: OrderedDict[PeerId, str] = OrderedDict()
        self._kept: OrderedDict[tuple[bytes, PeerId], _Record] = OrderedDict()
        self._candidates: OrderedDict[PeerId, str] = OrderedDict()
        self._news = anyio.Event()

    def nodes(self) -> dict[PeerId, str]:
        """The nodes in the table, and where they are."""
        return dict(self._table)

    def add(self, peer: PeerId, address: str) -> None:
        """`peer` has answered; it is entered, if there is room at its distance."""
        near = sum(self._bucket(other) == self._bucket(peer) for other in self._table)
        if peer in self._table or near < BUCKET:
            self._table[peer] = address
            self._table.move_to_end(peer)

    def remove(self, peer: PeerId) -> None:
        """`peer` has not answered."""
        self._table.pop(peer, None)

    def keep(self, provider: PeerId, wanted: bytes, told: list[bytes]) -> None:
        """Keep a record that `provider` provides the key `wanted`."""
        self._kept[wanted, provider] = _Record(tuple(told), anyio.current_time() + RECORD_SECONDS)
        self._kept.move_to_end((wanted, provider))
        if len(self._kept) > RECORDS:
            self._kept.popitem(last=False)

    def providers(self, wanted: bytes) -> dict[PeerId, list[str]]:
        """Who provides `wanted` as far as this node knows, the latest first, and where they are."""
        found = {}
        for provider, kept in self._records(wanted):
            told = [addresses.from_wire(provider, octets) for octets in kept.addresses]
            found[provider] = [address for address in told if address is not None]
        return found

    def answer(self, sender: PeerId, question: "Message") -> "Message | None":
        """The answer to one question; None where there is none to give."""
        self._consider(sender, question)
        kind = message()
        if len(question.key) > LONGEST_KEY:
            return None
        match question.type:
            case kind.PING:
                return kind(type=kind.PING)
            case kind.FIND_NODE:
                return self._told_nearest(sender, kind(type=kind.FIND_NODE), question.key)
            case kind.GET_PROVIDERS:
                return self._told_providers(sender, question.key)
            case kind.ADD_PROVIDER:
                return self._provides(sender, question)
        return None  # values are not kept here

    async def tend(self, host: "IHost") -> None:
        """Ask back those who say that they are nodes, and from time to time those who were, until cancelled."""
        kind = message()
        while True:
            with anyio.move_on_after(TEND_SECONDS):
                while not self._candidates:
                    self._news = anyio.Event()
                    await self._news.wait()
            waiting = self._candidates or self._table
            if not waiting:
                continue
            peer, address = next(iter(waiting.items()))
            self._candidates.pop(peer, None)
            answer = await ask(host, peer, address, PROTOCOL, kind(type=kind.PING), kind)
            if answer is not None:
                self.add(peer, address)
            else:
                self.remove(peer)

    def _consider(self, sender: PeerId, question: "Message") -> None:
        """A sender that shows its signed addresses says that it is a node: it will be asked whether it is."""
        if not question.senderRecord or sender in self._table or len(self._candidates) >= CANDIDATES:
            return
        if (address := _signed_address(sender, question.senderRecord)) is not None:
            self._candidates[sender] = address
            self._news.set()

    def _told_nearest(self, sender: PeerId, answer: "Message", wanted: bytes) -> "Message":
        for peer in nearest(wanted, self._table)[:BUCKET]:
            if peer != sender:
                add(answer.closerPeers, peer, [addresses.to_wire(self._table[peer])])
        return answer

    def _told_providers(self, sender: PeerId, wanted: bytes) -> "Message":
        kind = message()
        answer = kind(type=kind.GET_PROVIDERS, key=wanted)
        for provider, kept in self._records(wanted)[:PROVIDERS]:
            add(answer.providerPeers, provider, list(kept.addresses))
        return self._told_nearest(sender, answer, wanted)

    def _provides(self, sender: PeerId, question: "Message") -> "Message | None":
        own = [told for told in question.providerPeers[:1] if addresses.peer_of(told.id) == sender]
        others = sum(peer == sender and wanted != question.key for wanted, peer in self._kept)
        if not question.key or not own or others >= KEYS_A_PEER:
            return None
        told = [octets for octets in own[0].addrs[:ADDRESSES] if addresses.from_wire(sender, octets) is not None]
        if told:
            self.keep(sender, question.key, told)
        return message()(type=question.type, key=question.key)

    def _records(self, wanted: bytes) -> list[tuple[PeerId, _Record]]:
        now = anyio.current_time()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._kept.popitem(last=False)
        return [(peer, kept) for (key, peer), kept in reversed(self._kept.items()) if key == wanted]

    def _bucket(self, peer: PeerId) -> int:
        return addresses.distance(addresses.raw(self.me), addresses.raw(peer)).bit_length()


def signed_record(me: PeerId, here: list[str], private_key: Any) -> bytes:
    """This peer's addresses, signed by it: a libp2p peer record in its envelope (RFC 0002, 0003 of libp2p)."""
    from libp2p.peer.id import ID
    from libp2p.peer.peerstore import create_signed_peer_record
    from multiaddr import Multiaddr

    envelope = create_signed_peer_record(ID.from_base58(me), [Multiaddr(one) for one in here], private_key)
    return bytes(envelope.marshal_envelope())


def _signed_address(peer: PeerId, record: bytes) -> str | None:
    """The first address in a peer record that `peer` signed; None if it is not such a record, or has none."""
    from libp2p.peer.envelope import consume_envelope

    try:
        _, signed = consume_envelope(record, "libp2p-peer-record")
        told = [addresses.from_wire(peer, one.to_bytes()) for one in signed.addrs[:ADDRESSES]]
        return next((one for one in told if one is not None), None) if str(signed.peer_id) == peer else None
    except Exception:  # noqa: BLE001  # the library raises whatever its parsers do, on remote bytes
        return None
