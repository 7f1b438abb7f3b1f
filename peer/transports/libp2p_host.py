"""A libp2p host cut down to what a transport needs, and the few things done with it. Only `libp2p` uses this module.

py-libp2p raises more kinds of exception than it documents, some of them chosen by remote bytes; the functions here that
touch a stream or a connection turn all of them into an answer.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.wire import HANDSHAKES

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

    from veilmesh.peer.transports.wire import Wire

__all__ = [
    "CONNECTIONS", "CONNECTIONS_A_PEER", "Handler", "attempt", "connections", "give_up", "make", "new_stream", "read",
    "running", "socket_of", "write",
]  # fmt: skip

CONNECTIONS: Final = 256
CONNECTIONS_A_PEER: Final = 4  # two peers that dial each other at once have two
READ_BYTES: Final = 1 << 20
GIVE_UP_SECONDS: Final = 1.0

Handler = Callable[["INetStream"], Awaitable[None]]
_log = logging.getLogger("veilmesh.transports.libp2p")


def make(
    identity: Identity, tcp: "Wire", handlers: dict[str, Handler], gate: Any, refused: Callable[[], None]
) -> "IHost":
    """A host that speaks Noise and Yamux over `tcp`, and serves `handlers` (protocol id to handler), nothing else.

    `gate` is told of its connections; `refused`, that a stream was ended because of what the other side did.
    """
    from libp2p import new_swarm
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
    from libp2p.custom_types import TProtocol
    from libp2p.host.basic_host import BasicHost, _IdentifyNotifee
    from libp2p.network.config import ConnectionConfig, RetryConfig
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
    from libp2p.security.noise.transport import Transport as Noise
    from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
    from libp2p.stream_muxer.yamux.yamux import Yamux

    key = create_new_key_pair(identity.seed())
    swarm = cast(Any, new_swarm(
        key_pair=key,
        sec_opt={NOISE: Noise(key, noise_privkey=create_noise_key().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        transports=[cast(Any, tcp)],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=CONNECTIONS, high_watermark=CONNECTIONS, max_connections_per_peer=CONNECTIONS_A_PEER,
            min_connections=0, low_watermark=0,
        ),
    ))  # fmt: skip
    swarm.set_resource_manager(None)  # its stream limit is one for all peers, so that one could use it up for all
    host = BasicHost(swarm, default_protocols=OrderedDict(cast(Any, handlers)), disable_identify_address_discovery=True)
    swarm.notifees[:] = [one for one in swarm.notifees if not isinstance(one, _IdentifyNotifee)]
    swarm.register_notifee(gate)
    swarm.set_stream_handler(_counting(host._swarm_stream_handler, refused))
    swarm._inbound_limiter.total_tokens = CONNECTIONS + HANDSHAKES  # `wire` bounds those that are not connections yet
    return host


def _counting(handler: Any, refused: Callable[[], None]) -> Handler:
    async def handle(stream: "INetStream") -> None:
        if await handler(stream) is False:  # says the hardening
            refused()

    return handle


@asynccontextmanager
async def running(host: "IHost", address: str, tcp: "Wire", close_seconds: float) -> AsyncIterator[None]:
    """Run the host; at the end every connection is told so, and what takes longer than `close_seconds` is cut."""
    from multiaddr import Multiaddr

    async with host.run([Multiaddr(address)]):
        try:
            yield
        finally:
            await _in_time(close_seconds, _close_all(host), tcp.abort)


async def _close_all(host: "IHost") -> None:
    async with anyio.create_task_group() as closing:  # the library closes one after the other, 0.2 s each
        for connection in host.get_network().get_connections():
            closing.start_soon(attempt, connection.close())
    await attempt(host.close())


async def new_stream(host: "IHost", peer: PeerId, address: str | None, protocol: str) -> "INetStream | None":
    """A stream to `peer`, over the connection there is or a new one to `address`; None if it cannot be had."""
    from libp2p.custom_types import TProtocol
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    book = host.get_peerstore()
    try:
        name = ID.from_base58(peer)
        if address is not None:
            book.add_addrs(name, [Multiaddr(address)], ttl=60)
        try:
            return await host.new_stream(name, [TProtocol(protocol)])
        finally:
            book.clear_addrs(name)  # the library dials whoever is in its address book, every half a minute
    except Exception as error:  # noqa: BLE001  # see the top
        _log.debug("no stream to %s: %r", peer, error)
        return None


async def attempt(operation: Awaitable[None]) -> bool:
    """Whether `operation` on a stream or a connection succeeded."""
    try:
        await operation
    except Exception as error:  # noqa: BLE001  # see the top
        _log.debug("%r", error)
        return False
    return True


async def read(stream: "INetStream") -> bytes:
    """What has arrived on `stream`, once something has; nothing when it has ended, in whatever way."""
    try:
        return await stream.read(READ_BYTES)
    except Exception as error:  # noqa: BLE001  # see the top
        _log.debug("a stream ended: %r", error)
        return b""


async def write(stream: "INetStream", data: bytes) -> bool:
    """Whether `data` was written on `stream`. Not for one that is used after a failure: the library's account of a
    stream's state, which takes a turn of the event loop, is passed by."""
    return await attempt(cast(Any, stream).muxed_stream.write(data))


async def give_up(stream: "INetStream") -> None:
    """Reset `stream`, or where even that takes too long, cut its connection. Not cancelled."""
    connection: Any = stream.muxed_conn
    await _in_time(GIVE_UP_SECONDS, attempt(stream.reset()), lambda: socket_of(connection).abort())


def connections(host: "IHost", peer: PeerId | None = None) -> list[Any]:
    """The open connections (SwarmConn), all or those to `peer`."""
    from libp2p.peer.id import ID

    return list(host.get_network().get_connections(None if peer is None else ID.from_base58(peer)))


def socket_of(connection: Any) -> Any:
    """The counted socket under a Yamux connection over Noise; under a relayed one, the circuit in its place."""
    return connection.secured_conn.conn.read_writer.read_write_closer.stream


async def _in_time(seconds: float, operation: Awaitable[object], cut: Callable[[], None]) -> None:
    """Wait for `operation`, uncancelled; from `seconds` on with the socket cut under it.

    A deadline around it would not do: the hardening shields the sending of a frame, so as never to cancel it halfway.
    """

    async def cut_late() -> None:
        await anyio.sleep(seconds)
        cut()

    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(cut_late)
            await operation
            waiting.cancel_scope.cancel()
