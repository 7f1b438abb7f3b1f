"""Multiaddrs as far as this transport speaks them: TCP, directly or by way of a relay (/p2p-circuit).

    /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo...                                  a peer
    /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo(relay)/p2p-circuit/p2p/12D3Koo...   a peer, by way of a relay

Addresses a user gives may hold a DNS name; those a stranger tells may not: whom we ask is not theirs to choose.
"""

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Any, Final

import base58

from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.identity import PeerId, public_key

__all__ = [
    "LONGEST", "Way", "checked", "direct", "distance", "from_wire", "named", "of_mesh", "peer_of", "raw", "through",
    "to_wire", "told", "unspecified",
]  # fmt: skip

LONGEST: Final = 255
"""The longest address that is told or believed, in characters or bytes: what fits a DNS text record."""

_LONGEST_ID: Final = 64
_HOSTS: Final = ("ip4", "ip6")
_NAMES: Final = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Way:
    """An address taken apart: of whom (if it says so), and through which relay (if through one)."""

    peer: PeerId | None
    relay: PeerId | None = None
    relay_address: str = ""


def checked(peer: PeerId, address: str) -> str:
    """`address`, if it is a TCP multiaddr, direct or relayed, that can lead to `peer`. Raises BadInput."""
    way = _parse(address, _HOSTS + _NAMES)
    if way is None:
        raise BadInput(f"{address!r} is not a libp2p address of {peer}; one looks like /ip4/127.0.0.1/tcp/4001.")
    if way.peer not in (None, peer):
        raise BadInput(f"The address {address} is that of {way.peer}, not of {peer}; correct the peer list.")
    return address


def named(address: str) -> tuple[PeerId, str]:
    """Whose `address` is, and the address: for a peer that is known by its address alone. Raises BadInput."""
    way = _parse(address, _HOSTS + _NAMES)
    if way is None or way.peer is None or way.relay is not None:
        raise BadInput(
            f"{address!r} does not say how to reach whom; an address that does: /ip4/203.0.113.7/tcp/4001/p2p/12D3..."
        )
    return way.peer, address


def direct(address: str) -> str:
    """`address`, if it is a TCP multiaddr that is not a relay's. Raises BadInput."""
    way = _parse(address, _HOSTS + _NAMES)
    if way is None or way.relay is not None or unspecified(address):
        raise BadInput(f"{address!r} cannot be announced; such an address looks like /ip4/203.0.113.7/tcp/4001.")
    return address


def through(address: str | None) -> Way | None:
    """The relay an address leads through; None if it leads directly, or is none."""
    way = _parse(address, _HOSTS + _NAMES) if address else None
    return way if way is not None and way.relay is not None else None


def unspecified(address: str) -> bool:
    """Whether it is the address of every interface (0.0.0.0), and so nobody else's way to here."""
    return address.split("/")[2] in ("0.0.0.0", "::")


def raw(peer: PeerId) -> bytes:
    """A peer id as libp2p writes it in messages."""
    return base58.b58decode(peer)


def peer_of(octets: bytes) -> PeerId | None:
    """The peer id in a remote message; None if it is none."""
    return PeerId(base58.b58encode(octets).decode()) if 0 < len(octets) <= _LONGEST_ID else None


def of_mesh(peer: PeerId | None) -> bool:
    """Whether it can be the name of a peer of a mesh: one that holds an Ed25519 key."""
    try:
        return peer is not None and bool(public_key(peer))
    except RemoteError:
        return False


def to_wire(address: str) -> bytes:
    """A multiaddr as libp2p writes it in messages."""
    from multiaddr import Multiaddr

    octets: bytes = Multiaddr(address).to_bytes()
    return octets


def from_wire(peer: PeerId, octets: bytes) -> str | None:
    """The address of `peer` that a stranger told, its name at the end; None if it is one we should not dial."""
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error

    if not 0 < len(octets) <= LONGEST:
        return None
    try:
        address = str(Multiaddr(octets))
    except (Error, ValueError, LookupError):
        return None
    return told(peer, address)


def told(peer: PeerId, address: str) -> str | None:
    """As `from_wire`, for an address that was told as text."""
    if len(address) > LONGEST:
        return None
    whole = address if address.endswith(f"/p2p/{peer}") else f"{address}/p2p/{peer}"
    way = _parse(whole, _HOSTS)
    return whole if way is not None and way.peer == peer and not unspecified(whole) else None


def distance(one: bytes, other: bytes) -> int:
    """How far two keys are apart (Kademlia): the exclusive or of their hashes."""
    return int.from_bytes(_hashed(one), "big") ^ int.from_bytes(_hashed(other), "big")


def _hashed(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _parse(address: str, hosts: tuple[str, ...]) -> Way | None:
    from multiaddr import Multiaddr
    from multiaddr.exceptions import Error

    try:
        parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
    except (Error, ValueError, LookupError):
        return None
    names = [name for name, _ in parts]
    if len(parts) < 2 or names[0] not in hosts or names[1] != "tcp" or not _is_host(*parts[0]):
        return None
    match names[2:], [value for _, value in parts[2:]]:
        case [], _:
            return Way(None)
        case ["p2p"], [peer]:
            return Way(PeerId(peer))
        case ["p2p", "p2p-circuit"], [relay, _]:
            return Way(None, PeerId(relay), _up_to_relay(address))
        case ["p2p", "p2p-circuit", "p2p"], [relay, _, peer]:
            return Way(PeerId(peer), PeerId(relay), _up_to_relay(address))
    return None


def _up_to_relay(address: str) -> str:
    return address.split("/p2p-circuit", 1)[0]


def _is_host(kind: str, value: Any) -> bool:
    if kind in _NAMES:
        return True
    try:
        return ipaddress.ip_address(value).version == (6 if kind == "ip6" else 4)
    except ValueError:
        return False
