"""Using relays: a place at one, connections that come through it, and connections made through one.

The dial is ours, since the library's swarm never dials such an address. A relayed stream is upgraded like a socket, to
Noise and Yamux with the peer at its other end, whose id Noise proves: what the relay passes on is encrypted twice, by
that channel and by the envelopes in it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports import libp2p_host
from veilmesh.peer.transports.libp2p_relay import HOP, STOP, allow_streams
from veilmesh.peer.transports.libp2p_talk import ASK_SECONDS, ask, receive, tell

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

__all__ = ["HOP", "STOP", "Places", "dial"]

LOOK_SECONDS: Final = 0.5  # how often it is seen whether a relay is still there
RETRY_SECONDS: Final = 2.0
RENEW: Final = 0.5  # of a reservation's life
READ_BYTES: Final = 256 << 10
_log = logging.getLogger("veilmesh.transports.circuit")


@dataclass(slots=True)
class Places:
    """This peer's places at the relays it was told of: taken, renewed, taken again when a relay comes back.

    Args:
        me: this peer.
        relays: peer id to address.
    """

    me: PeerId
    relays: dict[PeerId, str]
    _until: dict[PeerId, float] = field(default_factory=dict)
    _tasks: TaskGroup | None = None
    _host: "IHost | None" = None

    @property
    def addresses(self) -> list[str]:
        """Where this peer can be reached through a relay, the first relay first; also before the place is taken."""
        return [f"{address}/p2p-circuit/p2p/{self.me}" for address in self.relays.values()]

    @property
    def taken(self) -> list[str]:
        """The addresses at relays where the place is taken now."""
        return [one for relay, one in zip(self.relays, self.addresses, strict=True) if relay in self._until]

    async def keep(self, host: "IHost", tasks: TaskGroup) -> None:
        """Take the places and keep them, in `tasks`; returns when the first is taken, or after a few seconds."""
        self._host, self._tasks = host, tasks
        for relay in self.relays:
            tasks.start_soon(self._keep, relay)
        with anyio.move_on_after(ASK_SECONDS):
            while not self._until:  # noqa: ASYNC110  # of several, whichever is first
                await anyio.sleep(0.02)

    async def _keep(self, relay: PeerId) -> None:
        assert self._host is not None
        while True:
            lasts = await self._reserve(relay)
            if lasts is None:
                await anyio.sleep(RETRY_SECONDS)
                continue
            renewal = anyio.current_time() + RENEW * lasts
            self._until[relay] = renewal
            while anyio.current_time() < renewal and libp2p_host.connections(self._host, relay):  # noqa: ASYNC110  # no event
                await anyio.sleep(LOOK_SECONDS)  # a lost connection has no event here
            if not libp2p_host.connections(self._host, relay):
                self._until.pop(relay, None)

    async def _reserve(self, relay: PeerId) -> float | None:
        """For how many seconds a place was given; None if it was not."""
        from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status

        assert self._host is not None
        question = HopMessage(type=HopMessage.RESERVE)
        answer = await ask(self._host, relay, self.relays[relay], HOP, question, HopMessage)
        if answer is None or answer.status != Status.Value("OK"):
            _log.info("no place at the relay %s: %s", relay, answer)
            self._until.pop(relay, None)
            return None
        allow_streams(self._host, relay)
        return max(2 * RETRY_SECONDS, min(answer.reservation.expire - time.time(), 24 * 3600.0))

    async def __call__(self, stream: "INetStream") -> None:
        """Handler of the STOP protocol: somebody comes through a relay; one of ours, or it is refused."""
        from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status, StopMessage
        from multiaddr import Multiaddr

        relay = PeerId(str(stream.muxed_conn.peer_id))
        if relay not in self.relays or self._host is None or self._tasks is None:
            raise RemoteError(Refusal.STRANGER, f"{relay} is no relay of ours")
        with anyio.fail_after(ASK_SECONDS):
            asked = await receive(stream, StopMessage)
        other = addresses.peer_of(asked.peer.id)
        if asked.type != StopMessage.CONNECT or other is None:
            raise RemoteError(Refusal.MALFORMED, "not a circuit")
        await tell(stream, StopMessage(type=StopMessage.STATUS, status=Status.Value("OK")))
        raw = _raw(stream, f"{self.relays[relay]}/p2p-circuit/p2p/{other}", False, self._tasks)
        await self._host.upgrade_inbound_connection(raw, Multiaddr(f"/p2p/{relay}/p2p-circuit"))
        await raw.stream.ended.wait()


async def dial(host: "IHost", way: addresses.Way, peer: PeerId, tasks: TaskGroup) -> bool:
    """Connect to `peer` through the relay of `way`; whether that succeeded. May be cancelled."""
    stream = await libp2p_host.new_stream(host, _certain(way.relay), way.relay_address, HOP)
    if stream is None:
        return False
    connected = False
    try:
        connected = await libp2p_host.attempt(_through(host, stream, way, peer, tasks))
    finally:
        if not connected:
            await libp2p_host.give_up(stream)
    return connected


async def _through(host: "IHost", stream: "INetStream", way: addresses.Way, peer: PeerId, tasks: TaskGroup) -> None:
    from libp2p.peer.id import ID
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status

    question = HopMessage(type=HopMessage.CONNECT)
    question.peer.id = addresses.raw(peer)
    await tell(stream, question)
    answer = await receive(stream, HopMessage)
    if answer.status != Status.Value("OK"):
        raise RemoteError(Refusal.MISMATCH, f"the relay answers {answer.status}")
    raw = _raw(stream, f"{way.relay_address}/p2p-circuit/p2p/{peer}", True, tasks)
    await host.upgrade_outbound_connection(raw, ID.from_base58(peer))


def _certain(relay: PeerId | None) -> PeerId:
    assert relay is not None  # a way through a relay has one
    return relay


def _raw(stream: "INetStream", address: str, initiator: bool, tasks: TaskGroup) -> Any:
    from libp2p.connection_types import ConnectionType
    from libp2p.network.connection.raw_connection import RawConnection
    from multiaddr import Multiaddr

    def reset() -> None:
        tasks.start_soon(libp2p_host.attempt, stream.reset())

    circuit: Any = _Circuit(stream, reset)
    return RawConnection(circuit, initiator, ConnectionType.RELAYED, [Multiaddr(address)])


class _Circuit:
    """A relayed stream in the place of a socket (the library's ReadWriteCloser, and `abort`)."""

    def __init__(self, stream: "INetStream", reset: Callable[[], None]) -> None:
        self._stream = stream
        self._reset = reset
        self.ended = anyio.Event()

    async def read(self, n: int | None = None) -> bytes:
        from libp2p.network.stream.exceptions import StreamError

        try:
            return await self._stream.read(READ_BYTES if n is None else min(n, READ_BYTES))
        except StreamError:
            return b""  # as a socket says that it has ended

    async def write(self, data: bytes) -> None:
        from libp2p.io.exceptions import ConnectionClosedError
        from libp2p.network.stream.exceptions import StreamError

        try:
            await self._stream.write(data)
        except StreamError as error:
            raise ConnectionClosedError(f"the circuit has ended: {error!r}", transport="p2p-circuit") from None

    async def close(self) -> None:
        self.ended.set()
        await libp2p_host.give_up(self._stream)

    def abort(self) -> None:
        """End it under whoever is reading or writing. Its relay's connection carries others', and stays."""
        if not self.ended.is_set():
            self.ended.set()
            self._reset()

    def get_remote_address(self) -> None:
        """It has none of its own."""
        return None
