"""Addresses of peers that can be reached in more than one way: one part for each, with a blank between.

    /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo... mqtt://127.0.0.1:1883/veilmesh/12D3Koo...?session=...

Whoever is told such an address takes the part it has a transport for.
"""

import re
from typing import Final

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["WAYS", "joined", "part", "parts"]

_BEGINNINGS: Final = {"libp2p": re.compile("/"), "mqtt": re.compile("mqtts?://")}

WAYS: Final = tuple(_BEGINNINGS)
"""The transports whose addresses can be parts of one."""


def joined(*addresses: str) -> str:
    """One address of several."""
    return " ".join(addresses)


def parts(peer: PeerId, address: str) -> dict[str, str]:
    """The parts of `address`, by transport. Raises BadInput: one belongs to none that is known, or to one twice."""
    found: dict[str, str] = {}
    for text in address.split(" "):
        way = next((name for name, begins in _BEGINNINGS.items() if begins.match(text)), None)
        if way is None or way in found:
            raise BadInput(
                f"{address!r} is no address of {peer} over {' or '.join(WAYS)}; take it as its peer says it."
            )
        found[way] = text
    return found


def part(peer: PeerId, address: str, way: str) -> str | None:
    """The part of `address` for the transport `way`; None if there is none. Raises BadInput as `parts` does."""
    return parts(peer, address).get(way)
