"""veilmesh's own transports, with and without envelopes: `mqtt`, `mqtt tls`, `mqtt 3.1.1`, `libp2p`; `sealed` after it.

What is carried without an envelope is a frame of a transport; with one, a body that is sealed, signed, opened and
checked, as between two peers of a mesh.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from transports_turn import Drive, Given, Words  # beside this file

from veilmesh.crypto.envelope import Card, Mailroom
from veilmesh.crypto.identity import Identity
from veilmesh.peer.confinement import keep
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import TRANSPORTS, Arrival, Frame, Transport, TransportKind

__all__ = ["receive", "run", "send"]

RUN = bytes(16)


def run(given: Given, main: Callable[[], Awaitable[None]]) -> None:
    """In the event loop of the transport, in a process that is set up as a peer's is."""
    keep()
    anyio.run(main, backend=_kind(given).backend)


async def receive(given: Given, words: Words) -> None:
    """Answer every frame."""
    me = _Peer(given, 0)
    async with me.transport.open() as inbox:
        await me.meet(words)
        while True:
            await me.next(inbox)
            await me.say(b"!")


async def send(given: Given, words: Words, drive: Drive) -> None:
    """As `receive`."""
    me = _Peer(given, 1)
    async with me.transport.open() as inbox:
        await me.meet(words)

        async def exchange(payload: bytes) -> None:
            await me.say(payload)
            await me.next(inbox)

        await drive(exchange)


class _Peer:
    """One of the two."""

    def __init__(self, given: Given, number: int) -> None:
        self._identity = Identity.generate()
        self._key = X25519PrivateKey.generate()
        self._sealed = given.variant.endswith("sealed")
        self._room = Mailroom(self._identity, self._key, RUN)
        self._other = PeerId("")
        self.transport: Transport = _kind(given).make(self._identity)

    async def meet(self, words: Words) -> None:
        """Each learns the other's address and card; where presence takes its time, that is waited for."""
        public = self._key.public_key().public_bytes_raw()
        card = Card.issue(self._identity, public, RUN, self.transport.address)
        words.tell(card.to_bytes().hex())
        other = Card.from_bytes(bytes.fromhex(words.ask()[0]))
        self._room.admit(other)
        self._other = other.peer
        self.transport.introduce({other.peer: other.address})

    async def say(self, body: bytes) -> None:
        """Send it to the other."""
        await self.transport.send(self._other, self._room.seal(self._other, 1, body) if self._sealed else body)

    async def next(self, inbox: AsyncIterator[Arrival]) -> bytes:
        """What the other says next."""
        while not isinstance(arrival := await anext(inbox), Frame):
            pass
        return self._room.open(arrival.data).body if self._sealed else arrival.data


def _kind(given: Given) -> TransportKind:
    name, _, rest = given.variant.removesuffix(" sealed").partition(" ")
    options: dict[str, Any] = {"broker": given.place} if name == "mqtt" else {}
    if rest == "tls":
        options |= {"tls": True, "ca": str(given.folder / "cert.pem")}
    elif rest:
        options["protocol"] = rest
    return TRANSPORTS.build(name, options)
