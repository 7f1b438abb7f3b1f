"""What a libp2p host does beside carrying frames: ways of finding peers, places at relays, and what it offers others.

Everything here is off unless an option says so: each protocol that a host offers is one more thing a stranger can
speak to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from anyio.abc import TaskGroup
from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import (
    libp2p_address,
    libp2p_answers,
    libp2p_circuit,
    libp2p_host,
    libp2p_kademlia,
    libp2p_mdns,
    libp2p_relay,
    libp2p_rendezvous,
)
from veilmesh.peer.transports.libp2p_finding import Finds, Surroundings
from veilmesh.peer.transports.libp2p_talk import Asked, Visits

if TYPE_CHECKING:
    from libp2p.abc import IHost

__all__ = ["Discovery", "Namespace", "Reach", "Service", "Services"]

Discovery = Literal["mdns", "kademlia", "rendezvous"]
Service = Literal["kademlia", "rendezvous", "relay", "identify", "ping"]
Namespace = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2}){0,64}$")]


@dataclass(frozen=True, slots=True)
class Reach:
    """How a peer is found and reached, as the options of the transport say."""

    announce: str | None = None
    discovery: tuple[Discovery, ...] = ()
    bootstrap: tuple[str, ...] = ()
    namespace: Namespace = ""
    relay: tuple[str, ...] = ()
    serve: tuple[Service, ...] = ()


class Services:
    """The services of one host, from before it is made until it ends.

    Args:
        me: whose host it is.
        reach: the options. Raises BadInput: one cannot be used, or they do not go together.
        introduced: whether a peer was introduced.
    """

    def __init__(self, me: PeerId, reach: Reach, introduced: Callable[[PeerId], bool]) -> None:
        _refuse(reach)
        self._me = me
        self._reach = reach
        self._points = dict(libp2p_address.named(address) for address in reach.bootstrap)
        self._announced = libp2p_address.checked(me, libp2p_address.direct(reach.announce)) if reach.announce else None
        self._node = libp2p_kademlia.Node(me)
        self._lists = libp2p_rendezvous.Lists()
        self._relay = libp2p_relay.Relay(introduced)
        self._places = libp2p_circuit.Places(me, dict(libp2p_address.named(address) for address in reach.relay))
        self._identify = libp2p_answers.Identify(self.addresses)
        self._listening = ""

    @property
    def in_force(self) -> dict[str, str]:
        """What is on, for the run's record; nothing where all of it is off."""
        on = {"discovery": self._reach.discovery, "serves": self._reach.serve, "relays": tuple(self._places.relays)}
        return {name: ",".join(what) for name, what in on.items() if what}

    @property
    def handlers(self) -> dict[str, libp2p_host.Handler]:
        """What the host must offer (protocol id to handler)."""
        found: dict[str, libp2p_host.Handler] = {}
        if "kademlia" in self._reach.serve:
            from libp2p.kad_dht.pb import kademlia_pb2

            found[libp2p_kademlia.PROTOCOL] = Asked(kademlia_pb2.Message, self._node.answer)
        if "rendezvous" in self._reach.serve:
            from libp2p.discovery.rendezvous.pb import rendezvous_pb2

            found[libp2p_rendezvous.PROTOCOL] = Asked(rendezvous_pb2.Message, self._lists.answer)
        if "relay" in self._reach.serve:
            found[libp2p_relay.HOP] = self._relay
        if "identify" in self._reach.serve:
            found[libp2p_answers.IDENTIFY] = Visits(self._identify)
        if "ping" in self._reach.serve:
            found[libp2p_answers.PING] = Visits(libp2p_answers.pong)
        if self._places.relays:
            found[libp2p_circuit.STOP] = self._places
        return found

    def knows(self, peer: PeerId) -> bool:
        """Whether this host uses `peer`'s services, or has given it a place."""
        return peer in self._points or peer in self._places.relays or self._relay.holds(peer)

    def address(self, listening: str) -> str:
        """The one address to tell others: the announced one, or that at the first relay, or where the host listens.

        Args:
            listening: where the host listens, a multiaddr without a peer id.
        """
        self._listening = listening
        relayed = self._places.addresses
        if self._announced is None and relayed:
            return relayed[0]
        return _with_name(self._announced or listening, self._me)

    def addresses(self) -> list[str]:
        """Every address at which this peer can be reached now, the best first; there may be none."""
        direct = self._announced or ("" if libp2p_address.unspecified(self._listening) else self._listening)
        found = [_with_name(direct, self._me)] if self._announced or (direct and not self._places.relays) else []
        return found + self._places.taken

    async def start(self, host: "IHost", tasks: TaskGroup, finds: Finds) -> None:
        """Begin, in `tasks`; returns when a place at a relay is taken, if one is wanted, or after a few seconds."""
        self._relay.host = self._identify.host = host
        if self._places.relays:
            await self._places.keep(host, tasks)
        _, _, ip, _, port = self._listening.split("/")
        namespace = self._reach.namespace
        around = Surroundings(host, self._me, namespace, self._points, self.addresses, finds, ip, int(port))
        if "kademlia" in self._reach.serve:
            self._node.record = libp2p_kademlia.signed_record(self._me, self.addresses(), host.get_private_key())
            tasks.start_soon(self._node.tend, host)
            tasks.start_soon(libp2p_kademlia.join, around, self._node)
        if "kademlia" in self._reach.discovery:
            tasks.start_soon(libp2p_kademlia.find, around, self._node)
        if "rendezvous" in self._reach.discovery:
            tasks.start_soon(libp2p_rendezvous.find, around)
        if "mdns" in self._reach.discovery:
            tasks.start_soon(libp2p_mdns.find, around)


def _with_name(address: str, me: PeerId) -> str:
    return address if address.endswith(f"/p2p/{me}") else f"{address}/p2p/{me}"


def _refuse(reach: Reach) -> None:
    """Raises BadInput: the options do not go together."""
    if reach.discovery and not reach.namespace:
        raise BadInput("Peers are found under the id of their mesh; give the transport its `namespace`.")
    helps = {"kademlia", "rendezvous", "relay"} & set(reach.serve)
    if {"kademlia", "rendezvous"} & set(reach.discovery) and not reach.bootstrap and not helps:
        raise BadInput(
            "Finding peers by kademlia or rendezvous begins somewhere; give the transport a `bootstrap` address."
        )
