"""Finding peers at rendezvous points: hosts that keep lists of who is there, by namespace (libp2p rendezvous 1.0.0).

A peer registers at every point it was told of, and asks each who else has. A registration lasts a few minutes unless it
is renewed, so that the list forgets whoever has gone; the specification's default is two hours.

The point's side is our own rather than the library's: that keeps a list for every namespace anybody has asked for, of
registrations of any size, on streams that may stay for ever.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports.libp2p_finding import ADDRESSES, Surroundings, key, repeat
from veilmesh.peer.transports.libp2p_talk import ask

if TYPE_CHECKING:
    from libp2p.discovery.rendezvous.pb.rendezvous_pb2 import Message

__all__ = ["PROTOCOL", "Lists", "find"]

PROTOCOL: Final = "/rendezvous/1.0.0"

REGISTERED_SECONDS: Final = 180  # above the library's least, 120; below, for some points, the most, 72 hours
LONGEST_SECONDS: Final = 7200
PAGE: Final = 60  # registrations in an answer, which must fit a message
PAGES: Final = 10
LONGEST_NAMESPACE: Final = 256
REGISTRATIONS: Final = 4096
NAMESPACES_A_PEER: Final = 8


async def find(around: Surroundings) -> None:
    """Register at the points, and ask them for others, until cancelled; then take the registrations back."""
    namespace = key(around.namespace, "rendezvous").hex()

    async def look() -> bool:
        answers = [await _visit(around, point, address, namespace) for point, address in around.points.items()]
        return any(answers)

    try:
        await repeat(look)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(0.5):
            for point in around.points:
                if around.host.get_network().get_connections(_id(point)):
                    await ask(around.host, point, None, PROTOCOL, _unregister(around.me, namespace), _message())


async def _visit(around: Surroundings, point: PeerId, address: str, namespace: str) -> bool:
    """Register at one point, and tell what it knows; whether it answered."""
    kind = _message()
    if here := around.addresses():
        await ask(around.host, point, address, PROTOCOL, _register(around.me, here, namespace), kind)
    cookie = b""
    for _ in range(PAGES):
        answer = await ask(around.host, point, address, PROTOCOL, _discover(namespace, cookie), kind)
        if answer is None or answer.type != kind.DISCOVER_RESPONSE:
            return False
        for one in answer.discoverResponse.registrations[:PAGE]:
            if (peer := addresses.peer_of(one.peer.id)) is not None:
                told = [addresses.from_wire(peer, octets) for octets in one.peer.addrs[:ADDRESSES]]
                around.found(peer, [address for address in told if address is not None])
        cookie = answer.discoverResponse.cookie
        if not cookie or not answer.discoverResponse.registrations:
            break
    return True


def _message() -> "type[Message]":
    from libp2p.discovery.rendezvous.pb.rendezvous_pb2 import Message

    return Message


def _id(peer: PeerId) -> Any:
    from libp2p.peer.id import ID

    return ID.from_base58(peer)


def _register(me: PeerId, here: list[str], namespace: str) -> "Message":
    question = _message()(type=_message().REGISTER)
    question.register.ns = namespace
    question.register.ttl = REGISTERED_SECONDS
    question.register.peer.id = addresses.raw(me)
    suffix = f"/p2p/{me}"  # points expect addresses without it
    question.register.peer.addrs.extend(addresses.to_wire(one.removesuffix(suffix)) for one in here[:ADDRESSES])
    return question


def _unregister(me: PeerId, namespace: str) -> "Message":
    question = _message()(type=_message().UNREGISTER)
    question.unregister.ns = namespace
    question.unregister.id = addresses.raw(me)
    return question


def _discover(namespace: str, cookie: bytes) -> "Message":
    question = _message()(type=_message().DISCOVER)
    question.discover.ns = namespace
    question.discover.limit = PAGE
    question.discover.cookie = cookie
    return question


@dataclass(frozen=True, slots=True)
class _Registration:
    addresses: tuple[bytes, ...]
    until: float


@dataclass(slots=True)
class Lists:
    """A rendezvous point: what it keeps, and what it answers. Of too many registrations the oldest is forgotten."""

    _kept: "OrderedDict[tuple[str, PeerId], _Registration]" = field(default_factory=OrderedDict)

    def answer(self, sender: PeerId, question: "Message") -> "Message | None":
        """The answer to one question; None where there is none to give."""
        match question.type:
            case question.REGISTER:
                return self._register(sender, question.register)
            case question.UNREGISTER:
                self._kept.pop((question.unregister.ns, sender), None)
                return None
            case question.DISCOVER:
                return self._discover(question.discover)
        return None

    def _register(self, sender: PeerId, asked: Any) -> "Message":
        answer = _message()(type=_message().REGISTER_RESPONSE)
        refusal = self._refusal(sender, asked)
        answer.registerResponse.status = refusal or _message().OK
        if refusal is None:
            self._kept[asked.ns, sender] = _Registration(tuple(asked.peer.addrs), anyio.current_time() + asked.ttl)
            self._kept.move_to_end((asked.ns, sender))
            if len(self._kept) > REGISTRATIONS:
                self._kept.popitem(last=False)
            answer.registerResponse.ttl = asked.ttl
        return answer

    def _refusal(self, sender: PeerId, asked: Any) -> Any:
        """The status of a registration that is not taken; None if it is."""
        kind = _message()
        others = sum(peer == sender and namespace != asked.ns for namespace, peer in self._kept)
        if not 0 < len(asked.ns) <= LONGEST_NAMESPACE or others >= NAMESPACES_A_PEER:
            return kind.E_INVALID_NAMESPACE
        if not 0 < asked.ttl <= LONGEST_SECONDS:
            return kind.E_INVALID_TTL
        if addresses.peer_of(asked.peer.id) != sender:
            return kind.E_NOT_AUTHORIZED
        if not 0 < len(asked.peer.addrs) <= ADDRESSES or any(
            addresses.from_wire(sender, octets) is None for octets in asked.peer.addrs
        ):
            return kind.E_INVALID_PEER_INFO
        return None

    def _discover(self, asked: Any) -> "Message":
        answer = _message()(type=_message().DISCOVER_RESPONSE)
        now = anyio.current_time()
        self._kept = OrderedDict((place, kept) for place, kept in self._kept.items() if kept.until > now)
        listed = [(peer, kept) for (namespace, peer), kept in self._kept.items() if namespace == asked.ns]
        begin = int.from_bytes(asked.cookie[:4], "big")
        end = begin + min(asked.limit or PAGE, PAGE)
        for peer, kept in listed[begin:end]:
            one = answer.discoverResponse.registrations.add(ns=asked.ns, ttl=int(kept.until - now))
            one.peer.id = addresses.raw(peer)
            one.peer.addrs.extend(kept.addresses)
        answer.discoverResponse.status = _message().OK
        if end < len(listed):
            answer.discoverResponse.cookie = end.to_bytes(4, "big")
        return answer
