"""Serving as a relay: peers that nobody can reach are reached through this one (libp2p circuit relay v2, "hop").

A peer reserves a place here and stays connected; whoever wants it asks here to be connected, and the two get a stream
each whose bytes are passed on. Over them they make a connection of their own, Noise and Yamux from end to end, and what
it carries are sealed envelopes: a relay sees who talks to whom, when, and how much, and can delay or cut it.

The library's relay is not used (its messages are): a reservation there can be made in anybody's name, the second
circuit of a peer takes the place of the first, and both end when one does.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_address as addresses
from veilmesh.peer.transports import libp2p_host
from veilmesh.peer.transports.libp2p_talk import ASK_SECONDS, receive, tell

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

__all__ = ["CIRCUIT_BYTES", "CIRCUIT_SECONDS", "HOP", "STOP", "Relay", "allow_streams"]

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"

RESERVATIONS: Final = 32
RESERVATION_SECONDS: Final = 3600
CIRCUITS_A_PEER: Final = 48  # those it asked for, and those that lead to it
CIRCUITS: Final = 256
CIRCUIT_SECONDS: Final = 4 * 3600
"""How long a circuit lasts; its ends notice, and make another for the next frame."""

CIRCUIT_BYTES: Final = 16 << 30
"""How many bytes a circuit carries, both ways together."""

STREAMS: Final = 64  # on a connection between a relay and a peer with a place at it
WINDOW_BYTES: Final = 512 << 10  # what a stream of a circuit holds for a slow reader; all of them stay in UNREAD_BYTES
_log = logging.getLogger("veilmesh.transports.relay")


def allow_streams(host: "IHost", peer: PeerId) -> None:
    """Let the connections to `peer` carry as many streams as a relay's need."""
    for connection in libp2p_host.connections(host, peer):
        connection.streams_allowed = STREAMS  # read by the hardening


@dataclass(slots=True)
class Relay:
    """A relay, for peers of any mesh. Of too many reservations the oldest of a stranger makes room.

    Args:
        host: the host; None until it runs.
        known: whether a peer was introduced; such a peer's place is not taken by a stranger.
    """

    known: Callable[[PeerId], bool]
    host: "IHost | None" = None
    _reserved: "OrderedDict[PeerId, float]" = field(default_factory=OrderedDict)
    _circuits: list[tuple[PeerId, PeerId]] = field(default_factory=list)

    def holds(self, peer: PeerId) -> bool:
        """Whether `peer` has a place here."""
        return self._reserved.get(peer, 0.0) > anyio.current_time()

    async def __call__(self, stream: "INetStream") -> None:
        """Handler of the HOP protocol: one request on a stream."""
        from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage

        with anyio.fail_after(ASK_SECONDS):
            asked = await receive(stream, HopMessage)
        sender = PeerId(str(stream.muxed_conn.peer_id))
        if asked.type == HopMessage.RESERVE:
            await self._reserve(stream, sender)
        elif asked.type == HopMessage.CONNECT:
            await self._connect(stream, sender, addresses.peer_of(asked.peer.id))
        else:
            await _say(stream, "MALFORMED_MESSAGE")

    async def _reserve(self, stream: "INetStream", sender: PeerId) -> None:
        if self.host is None or relayed(stream):
            return await _say(stream, "PERMISSION_DENIED")
        if not self._room(sender):
            return await _say(stream, "RESERVATION_REFUSED")
        self._reserved[sender] = anyio.current_time() + RESERVATION_SECONDS
        self._reserved.move_to_end(sender)
        allow_streams(self.host, sender)
        await _say(stream, "OK", expire=int(time.time()) + RESERVATION_SECONDS)

    def _room(self, sender: PeerId) -> bool:
        """Make room for one more place; whether there is."""
        for peer in [peer for peer in self._reserved if not self.holds(peer)]:
            del self._reserved[peer]
        if sender in self._reserved or len(self._reserved) < RESERVATIONS:
            return True
        stranger = next((peer for peer in self._reserved if not self.known(peer)), None)
        if stranger is not None:
            del self._reserved[stranger]
        return stranger is not None

    async def _connect(self, stream: "INetStream", sender: PeerId, wanted: PeerId | None) -> None:
        if relayed(stream):
            return await _say(stream, "PERMISSION_DENIED")
        if wanted is None or not self.holds(wanted) or self.host is None:
            return await _say(stream, "NO_RESERVATION")
        if (
            max(self._circuits_of(sender), self._circuits_of(wanted)) >= CIRCUITS_A_PEER
            or len(self._circuits) >= CIRCUITS
        ):
            return await _say(stream, "RESOURCE_LIMIT_EXCEEDED")
        pair = sender, wanted
        self._circuits.append(pair)
        try:
            onward = await _knock(self.host, sender, wanted)
            if onward is None:
                return await _say(stream, "CONNECTION_FAILED")
            await _say(stream, "OK")
            await _pass_on(stream, onward)
        finally:
            self._circuits.remove(pair)

    def _circuits_of(self, peer: PeerId) -> int:
        return sum(peer in pair for pair in self._circuits)


def relayed(stream: "INetStream") -> bool:
    """Whether a stream itself came through a relay: no circuits through circuits."""
    connection: Any = stream.muxed_conn
    return any("/p2p-circuit" in str(one) for one in connection.get_transport_addresses())


async def _say(stream: "INetStream", status: str, expire: int | None = None) -> None:
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status

    answer = HopMessage(type=HopMessage.STATUS, status=Status.Value(status))
    if status == "OK":
        answer.limit.duration, answer.limit.data = CIRCUIT_SECONDS, CIRCUIT_BYTES
    if expire is not None:
        answer.reservation.expire = expire
    await tell(stream, answer)
    if status != "OK" or expire is not None:
        await libp2p_host.attempt(stream.close())


async def _knock(host: "IHost", sender: PeerId, wanted: PeerId) -> "INetStream | None":
    """A stream to `wanted`, who has been told that `sender` is behind it, and wants it."""
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status, StopMessage

    stream = None
    accepted = False
    with anyio.move_on_after(ASK_SECONDS):
        stream = await libp2p_host.new_stream(host, wanted, None, STOP)

        async def exchange(onward: "INetStream") -> None:
            nonlocal accepted
            question = StopMessage(type=StopMessage.CONNECT)
            question.peer.id = addresses.raw(sender)
            question.limit.duration, question.limit.data = CIRCUIT_SECONDS, CIRCUIT_BYTES
            await tell(onward, question)
            accepted = (await receive(onward, StopMessage)).status == Status.Value("OK")

        if stream is not None:
            await libp2p_host.attempt(exchange(stream))
    if stream is not None and not accepted:
        await libp2p_host.give_up(stream)
    return stream if accepted else None


async def _pass_on(one: "INetStream", other: "INetStream") -> None:
    """Pass bytes on both ways until either side ends, or the circuit has had its share."""
    left = CIRCUIT_BYTES

    async def carry(source: "INetStream", to: "INetStream") -> None:
        nonlocal left
        _small_window(source)
        while left > 0 and (chunk := await libp2p_host.read(source)):
            left -= len(chunk)
            if not await libp2p_host.attempt(to.write(chunk)):
                break
        both.cancel_scope.cancel()

    try:
        with anyio.move_on_after(CIRCUIT_SECONDS):
            async with anyio.create_task_group() as both:
                both.start_soon(carry, one, other)
                both.start_soon(carry, other, one)
    finally:
        await libp2p_host.give_up(other)
        await libp2p_host.give_up(one)


def _small_window(stream: "INetStream") -> None:
    """Keep the multiplexer from letting this stream's sender run far ahead of its reader."""
    muxed: Any = getattr(stream, "muxed_stream", None)
    if muxed is not None:
        muxed.target_recv_window = WINDOW_BYTES
        muxed._apply_autotune_epoch = lambda buffered: 0
