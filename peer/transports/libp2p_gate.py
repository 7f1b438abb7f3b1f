"""Who may stay connected: those who were introduced, and for a while, in small number, those who were not.

A peer id costs nothing, so a stranger can have as many as it likes, and each could hold a connection for ever. Here
strangers together hold a fourth of the house: when one more comes, the one that was there first goes, those that use
nothing before those that do. And a stranger's connection that nothing runs on for ten seconds is closed. Whoever is
introduced while connected is no stranger any more.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_host

if TYPE_CHECKING:
    from libp2p.abc import IHost

__all__ = ["IDLE_SECONDS", "STRANGERS", "Gate", "Watcher"]

STRANGERS: Final = 64
IDLE_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0


class Watcher(Protocol):
    """Who is told what happens to connections, and says who is known."""

    def on_refused(self) -> None:
        """A stream or connection was ended because of what the other side did."""
        ...

    def on_gone(self, peer: PeerId) -> None:
        """The last connection to `peer` has ended."""
        ...

    def knows(self, peer: PeerId) -> bool:
        """Whether `peer` was introduced, or is one whose service is used, or has a place here."""
        ...


class Gate:
    """Watches the host's connections (INotifee): lets in what is protected and has room, and tells of what is gone.

    Args:
        watcher: told, and asked.
        settled: told of the socket of every connection whose handshake is done.
    """

    def __init__(self, watcher: Watcher, settled: Callable[[Any], None]) -> None:
        self._watcher = watcher
        self._settled = settled
        self._strangers: dict[Any, float] = {}  # connection -> when it was last used, in the order they came
        self._leaving: set[Any] = set()  # connections that were sent away, and are still listed

    async def connected(self, network: Any, connection: Any) -> None:
        """End a connection that is not what this host offers, or one too many: of a peer, or of strangers."""
        self._settled(libp2p_host.socket_of(connection.muxed_conn))
        channel = connection.get_negotiated_security_protocol(), connection.get_negotiated_muxer_protocol()
        many = len(network.get_connections(connection.muxed_conn.peer_id)) > libp2p_host.CONNECTIONS_A_PEER
        if channel != ("/noise", "/yamux/1.0.0") or many:
            self._watcher.on_refused()
            await libp2p_host.attempt(connection.close())
        elif not self._watcher.knows(_peer(connection)):
            self._strangers[connection] = anyio.current_time()
            self._make_room()

    async def disconnected(self, network: Any, connection: Any) -> None:
        """Say so if it was the last one."""
        self._strangers.pop(connection, None)
        self._leaving.discard(connection)
        peer = connection.muxed_conn.peer_id
        if not network.get_connections(peer):
            self._watcher.on_gone(PeerId(str(peer)))

    async def opened_stream(self, network: Any, stream: Any) -> None: ...
    async def closed_stream(self, network: Any, stream: Any) -> None: ...
    async def listen(self, network: Any, address: Any) -> None: ...
    async def listen_close(self, network: Any, address: Any) -> None: ...

    async def watch(self, host: "IHost") -> None:
        """Close what strangers do not use, until cancelled."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            now = anyio.current_time()
            self._strangers = self._still_strangers(host, now)
            idle = [one for one, used in self._strangers.items() if now - used >= IDLE_SECONDS]
            async with anyio.create_task_group() as closing:
                for connection in idle:
                    self._send_away(connection)
                    closing.start_soon(libp2p_host.attempt, connection.close())

    def _still_strangers(self, host: "IHost", now: float) -> dict[Any, float]:
        """The strangers' connections now; one is used as long as a protocol runs on it."""
        last = self._strangers
        every_one = libp2p_host.connections(host)  # one that was introduced, and is no more, comes back in here
        self._leaving.intersection_update(every_one)
        open_now = [one for one in every_one if one not in self._leaving]
        every = [*(one for one in last if one in open_now), *(one for one in open_now if one not in last)]
        return {one: now if _used(one) else last.get(one, now) for one in every if not self._watcher.knows(_peer(one))}

    def _make_room(self) -> None:
        inbound = [one for one in self._strangers if _is_inbound(one) and not self._watcher.knows(_peer(one))]
        while len(inbound) > STRANGERS:
            first = next((one for one in inbound[:-1] if not _used(one)), inbound[0])
            inbound.remove(first)
            self._send_away(first)
            self._watcher.on_refused()
            libp2p_host.socket_of(first.muxed_conn).abort()

    def _send_away(self, connection: Any) -> None:
        del self._strangers[connection]
        self._leaving.add(connection)


def _peer(connection: Any) -> PeerId:
    return PeerId(str(connection.muxed_conn.peer_id))


def _used(connection: Any) -> bool:
    return any(stream.get_protocol() for stream in connection.get_streams())


def _is_inbound(connection: Any) -> bool:
    return str(connection.direction.name) == "INBOUND"
