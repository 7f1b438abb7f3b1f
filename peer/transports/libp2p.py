"""Frames over libp2p: TCP, encrypted and authenticated by Noise, multiplexed by Yamux. One process, one peer, one host.

Theory of operation. A peer keeps one outgoing stream (protocol FRAMES) to each neighbour it sends to, opened by the
first frame, and writes frames on it one after the other. A write that fails opens a new stream and tries once more;
then the frame is lost. A write that is cancelled or too slow ends the stream, since half a frame is on it. What arrives
is read at once, always, into a bounded inbox: a reader that waits would hold up every stream of the connection.

The host offers nothing else, unless an option says so (`libp2p_services`: finding peers, relays, helping others with
either, and answering identify and ping). No plaintext, no other multiplexer, no identify of others (which lets a peer
write addresses into our address book), no dialling on its own: frames go to addresses that come from `introduce` alone.
What is found is told, not dialled.

This module is listed with the other transports, so libp2p and trio are imported when a peer opens, not before.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

import anyio
import anyio.abc
from pydantic import Field

from veilmesh.core import BadInput, LocalError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import hardening, libp2p_address, libp2p_circuit, libp2p_host, wire
from veilmesh.peer.transports.base import MAX_FRAME, TRANSPORTS, Arrival, Traffic
from veilmesh.peer.transports.framing import in_pieces
from veilmesh.peer.transports.groups import only
from veilmesh.peer.transports.inbox import Inbox
from veilmesh.peer.transports.libp2p_finding import Finds
from veilmesh.peer.transports.libp2p_gate import Gate
from veilmesh.peer.transports.libp2p_incoming import Incoming
from veilmesh.peer.transports.libp2p_services import Discovery, Namespace, Reach, Service, Services

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

__all__ = ["FRAMES", "Libp2p", "Libp2pTransport"]

FRAMES: Final = "/veilmesh/frames/1"
"""The libp2p protocol id of a stream of frames."""

DIAL_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 40.0  # for each piece; above what Yamux waits for a reader, so that Yamux's error comes first
CLOSE_SECONDS: Final = 2.0
PIECE_BYTES: Final = 1 << 20  # other tasks run between pieces


@TRANSPORTS.register("libp2p")
@dataclass(frozen=True, slots=True)
class Libp2p:
    """Real sockets: libp2p over TCP, with Noise and Yamux.

    Args:
        listen, port: an IP address of this machine (0.0.0.0: all of them), and a TCP port (0: a free one).
        announce: the address to tell others, where that is another: behind a router that forwards a port.
        discovery: the ways peers of the mesh are looked for, and told who is here.
        bootstrap: addresses of rendezvous points and DHT nodes, with their peer ids.
        namespace: the id of the mesh, in hexadecimal digits; whoever is asked sees a hash of it.
        relay: addresses of relays to be reached through, with their peer ids.
        serve: what is offered to others.
    """

    listen: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    announce: str | None = None
    discovery: tuple[Discovery, ...] = ()
    bootstrap: tuple[str, ...] = ()
    namespace: Namespace = ""
    relay: tuple[str, ...] = ()
    serve: tuple[Service, ...] = ()

    backend: ClassVar[Literal["asyncio", "trio"]] = "trio"

    def prepare(self) -> None:
        """Import libp2p, and put the fixes in force. Raises BadInput: the library is another."""
        import trio  # noqa: F401  # what its event loop will ask for

        _hardened()

    def make(self, identity: Identity) -> "Libp2pTransport":
        """The transport of the peer `identity`; it listens when it is opened. Raises BadInput: an option is no use."""
        reach = Reach(self.announce, self.discovery, self.bootstrap, self.namespace, self.relay, self.serve)
        return Libp2pTransport(identity, self.listen, self.port, reach=reach)


@dataclass(slots=True)
class _Neighbour:
    """What is known of one peer frames are sent to."""

    lock: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))  # frames on a stream must not mix
    stream: "INetStream | None" = None


class Libp2pTransport:
    """One peer's libp2p host, as a transport.

    Args:
        identity: whose host it is; the libp2p peer id is the identity's own.
        listen, port: an IP address of this machine, and a TCP port (0: a free one).
        max_frame: the longest frame carried, in bytes; a stream that announces a longer one is reset and counted.
        reach: how it is found and reached; as it stands, by whoever is told where it listens.
    """

    def __init__(
        self,
        identity: Identity,
        listen: str = "127.0.0.1",
        port: int = 0,
        max_frame: int = MAX_FRAME,
        reach: Reach = Reach(),  # noqa: B008  # frozen
    ) -> None:
        self._identity = identity
        self._listen = listen
        self._port = port
        self._max_frame = max_frame
        self._traffic = Traffic()
        self._inbox = Inbox(self._traffic)
        self._address = ""
        self._in_force: tuple[str, ...] = ()
        self._addresses: dict[PeerId, str] = {}
        self._neighbours: dict[PeerId, _Neighbour] = {}
        self._host: IHost | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._services = Services(identity.peer, reach, self._introduced)

    @property
    def traffic(self) -> Traffic:
        """The counters, live: bytes on TCP, with everything Noise, Yamux and the handshakes add."""
        return self._traffic

    @property
    def address(self) -> str:
        """The multiaddr with this peer's id. Raises LocalError before the transport is open."""
        if not self._address:
            raise LocalError("a libp2p transport has an address once it is open")
        return self._address

    @property
    def protections(self) -> dict[str, str]:
        """The channel, the multiplexer, the names of the fixes to the library in force, and what else is offered."""
        said = {"channel": "noise", "muxer": "yamux", "hardening": ",".join(self._in_force)}
        return said | self._services.in_force

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        """Listen until the context closes. Raises BadInput: the port is in use, or the library is another."""
        self._in_force = _hardened()
        listening = wire.bind(self._listen, self._port)
        here = wire.multiaddress(listening)
        self._address = self._services.address(here)
        self._inbox = Inbox(self._traffic)
        tcp = wire.Wire(listening, self._traffic)
        gate = Gate(self, tcp.settled)
        incoming = Incoming(self._inbox, self._traffic, self._max_frame, self._introduced)
        handlers: dict[str, libp2p_host.Handler] = {FRAMES: incoming, **self._services.handlers}
        host = libp2p_host.make(self._identity, tcp, handlers, gate, self.on_refused)
        try:
            async with (
                anyio.create_task_group() as self._tasks,  # what may still be wanted while the host closes
                libp2p_host.running(host, here, tcp, CLOSE_SECONDS),
                anyio.create_task_group() as tasks,
            ):
                self._host = host
                tasks.start_soon(gate.watch, host)
                await self._services.start(host, tasks, Finds(self._identity.peer, self._inbox.found, self._met))
                yield self._inbox
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        finally:
            tcp.abort()
            self._host = self._tasks = None
            self._inbox.close()
            self._neighbours.clear()

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are, as multiaddrs with or without a peer id. Raises BadInput: one is not."""
        self._addresses = {peer: libp2p_address.checked(peer, address) for peer, address in addresses.items()}

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Write `frame` on the stream to `to`: opened if need be, opened again once if it turns out to be broken."""
        if len(frame) > self._max_frame:
            raise LocalError(f"a frame of {len(frame)} bytes, of at most {self._max_frame}")
        neighbour = self._neighbours.setdefault(to, _Neighbour())
        async with neighbour.lock:
            sent = neighbour.stream is not None and await self._write(neighbour, frame)
            if not sent and await self._dial(to, neighbour):
                sent = await self._write(neighbour, frame)
        if not sent:
            self._traffic.lost_frames += 1

    async def _dial(self, to: PeerId, neighbour: _Neighbour) -> bool:
        if self._host is None or self._tasks is None:
            return False
        address = self._addresses.get(to)
        with anyio.move_on_after(DIAL_SECONDS):
            if (way := libp2p_address.through(address)) is not None:
                address = None  # the host would not dial it
                if not libp2p_host.connections(self._host, to):
                    await libp2p_circuit.dial(self._host, way, to, self._tasks)
            neighbour.stream = await libp2p_host.new_stream(self._host, to, address, FRAMES)
        return neighbour.stream is not None

    async def _write(self, neighbour: _Neighbour, frame: bytes) -> bool:
        """Whether the whole frame was written; if not, the stream is given up, as half of the frame may be on it."""
        stream, neighbour.stream = neighbour.stream, None
        assert stream is not None
        whole = False
        try:
            for piece in in_pieces(frame, PIECE_BYTES):
                with anyio.move_on_after(WRITE_SECONDS) as patience:
                    whole = await libp2p_host.write(stream, piece)
                if not whole or patience.cancelled_caught:
                    return False
            neighbour.stream = stream
            return True
        finally:
            if neighbour.stream is None:
                await libp2p_host.give_up(stream)

    def knows(self, peer: PeerId) -> bool:
        """Asked by the host: whether `peer` may stay connected although it does nothing."""
        return self._introduced(peer) or self._services.knows(peer)

    def _introduced(self, peer: PeerId) -> bool:
        return peer in self._addresses

    def _met(self, peer: PeerId) -> bool:
        connected = self._host is not None and bool(libp2p_host.connections(self._host, peer))
        return connected and peer in self._addresses

    def on_refused(self) -> None:
        """Called by the host: a stream or connection was ended because of what the other side did."""
        self._traffic.refused += 1

    def on_gone(self, peer: PeerId) -> None:
        """Called by the host: the last connection to `peer` has ended."""
        self._inbox.gone(peer)


def _hardened() -> tuple[str, ...]:
    try:
        return hardening.harden()
    except LocalError as error:  # fail closed: no host without its fixes
        raise BadInput(f"{error}; install libp2p {hardening.SUPPORTED}, or take another transport.") from error
