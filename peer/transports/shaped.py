"""A transport behind a slow link: its bytes all pass a shaping relay.

A transport of multiaddrs over TCP listens behind the relay and dials through it; one of a broker dials the broker
through it, and has nobody dial it. Not registered: it is an experiment's surroundings, and no way of its own.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias, runtime_checkable

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.peer.shaping_relay import Relay
from veilmesh.peer.transports.base import Arrival, Transport
from veilmesh.peer.transports.wrapped import Wrapped

__all__ = ["Brokered", "Shaped", "shaped"]

_Place: TypeAlias = tuple[str, int]


@runtime_checkable
class Brokered(Protocol):
    """A transport that connects to one place, a broker's, whoever it speaks to."""

    def reach_by(self, way: Callable[[_Place], _Place]) -> None:
        """Connect, once open, to where `way` leads from the broker's place."""
        ...


def shaped(inner: Transport, relay: Relay) -> Transport:
    """`inner`, not open yet, behind the slow link. Raises BadInput: there is no way to its broker."""
    if isinstance(inner, Brokered):
        inner.reach_by(relay.way)
        return inner
    return Shaped(inner, relay)


class Shaped(Wrapped):
    """`inner`, as others see it through `relay`, and as it sees them."""

    def __init__(self, inner: Transport, relay: Relay) -> None:
        super().__init__(inner)
        self._relay = relay
        self._address = ""

    @property
    def address(self) -> str:
        """The relay's, once open: where others reach this peer."""
        return self._address or super().address

    def open(self) -> AbstractAsyncContextManager[AsyncIterator[Arrival]]:
        """Listen, behind the relay."""
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        async with self._inner.open() as inbox:
            here, front = self._inner.address, self._relay.front(_place(self._inner.address))
            self._address = _moved(here, front)
            yield inbox

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell the transport where the others are: at the relay, each at a port of its own. Raises BadInput."""
        super().introduce({p: _moved(at, self._relay.way(_place(at))) for p, at in addresses.items()})


def _place(address: str) -> _Place:
    parts = address.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp" or not parts[4].isdigit():
        raise BadInput(
            f"{address!r} is not reached through a slow link; one that is looks like /ip4/127.0.0.1/tcp/4001."
        )
    return parts[2], int(parts[4])


def _moved(address: str, place: _Place) -> str:
    """`address` with another host and port."""
    host, port = place
    return "/".join(["", "ip6" if ":" in host else "ip4", host, "tcp", str(port), *address.split("/")[5:]])
