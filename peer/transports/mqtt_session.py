"""One peer's connection to the broker: made, kept, and made again whenever it breaks.

Theory of operation. The first connection begins a session; the later ones go on with it, so that the broker keeps what
came meanwhile. Whatever was being published when a connection broke is not repeated here: the window says again what
was not acknowledged by the peer itself, which also covers a broker that forgot. After a break, the wait before each
next try doubles, with jitter: peers that lost the same broker must not come back all at once.

The inbox is subscribed to before presence says that the peer is here: what is published to an inbox nobody has
subscribed to is lost without a word.

This module is listed with the transports, so aiomqtt is imported when a peer opens, not before.
"""

import asyncio
import errno
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.abc

from veilmesh.core import BadInput
from veilmesh.peer.transports.base import Traffic
from veilmesh.peer.transports.mqtt_broker import Broker, library

if TYPE_CHECKING:
    import aiomqtt
    from paho.mqtt.properties import Properties

__all__ = ["Hooks", "Session"]

CONNECT_SECONDS: Final = 10.0
PUBLISH_SECONDS: Final = 120.0  # for a chunk to be taken over: at a megabit, a row of them takes a minute
SESSION_SECONDS: Final = 3600  # how long the broker keeps a session whose peer is away
WILL_SECONDS: Final = 2  # a peer that is back sooner was never away
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
FIRST_TRIES: Final = 5  # where a broker takes a peer in and breaks off, as an overloaded one does: some 3 s
# What is on its way to the broker, or from it, and was not acknowledged. About as much one way as the other: what
# acknowledges waits behind what goes the same way, so on a slow line the greedier direction would stop the other. To
# the broker it is counted in bytes: short messages must not take the place of chunks.
_AT_A_TIME: Final = 12  # of the longest messages
_INCOMING: Final = 12  # messages, short ones too
_QUEUED: Final = 4096  # messages that wait to be looked at; what a flood adds beyond is left to be said again
_JITTER: Final = random.SystemRandom()
_SILENT: Final = logging.Logger("veilmesh.mqtt", logging.CRITICAL)  # a broken connection is not news on a terminal


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a session asks of its user. `will` is told how many connections there were."""

    topics: tuple[str, ...]
    will_topic: str
    will: Callable[[int], bytes]
    heard: Callable[[str, bytes], None]  # topic and payload; does not raise
    connected: Callable[[int], Awaitable[None]]  # subscribed; may publish
    published: Callable[[str, bytes], None] = lambda topic, payload: None  # told of what is handed to the broker


class _Room:
    """Room for so many bytes, in order of arrival; one alone may be longer."""

    def __init__(self, octets: int) -> None:
        self._octets = octets
        self._held = 0
        self._turn = anyio.Lock(fast_acquire=True)
        self._left = anyio.Event()

    async def enter(self, size: int) -> None:
        """Wait for room for `size` bytes, and take it."""
        async with self._turn:
            while self._held and self._held + size > self._octets:
                await self._left.wait()
            self._held += size

    def leave(self, size: int) -> None:
        """Give it back."""
        self._held -= size
        self._left.set()
        self._left = anyio.Event()


class Session:
    """The connection of one opening of a transport.

    Args:
        client: the name under which the broker keeps the session.
        traffic: where the bytes of published and received messages are counted, with MQTT's own headers, without TLS.
    """

    def __init__(self, broker: Broker, client: str, hooks: Hooks, traffic: Traffic) -> None:
        self._broker, self._name, self._hooks, self._traffic = broker, client, hooks, traffic
        self._client: aiomqtt.Client | None = None
        self._outgoing = _Room(_AT_A_TIME * broker.packet_bytes)
        self._up = anyio.Event()
        self._pending: set[anyio.CancelScope] = set()
        self._tls = broker.context()
        self._accepted = False  # by the broker, once at least
        self.connections = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled. Raises BadInput: there is no connection to begin with, or none that lasts."""
        aiomqtt, wait, tries = library(), FIRST_WAIT, 0
        _pass_over_late_writers(asyncio.get_running_loop())
        while True:
            before, tries = self.connections, tries + 1
            try:
                await self._connection(task_status)
            except (aiomqtt.MqttError, OSError, ValueError) as error:  # ValueError: the broker's bytes are no MQTT
                if not self.connections and (not self._accepted or tries == FIRST_TRIES):
                    raise BadInput(self._sentence(error)) from None
            finally:
                self._down()
            wait = FIRST_WAIT if self.connections > before else min(LONGEST_WAIT, 2 * wait)
            await anyio.sleep(wait * _JITTER.uniform(0.5, 1.5))

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message to the broker; whether it took it over. False, too, if the connection breaks meanwhile."""
        aiomqtt, client = library(), self._client
        if client is None:
            return False
        self._traffic.sent += _packet_size(topic, payload, qos)
        self._hooks.published(topic, payload)
        with anyio.CancelScope() as waiting:  # aiomqtt itself would wait on when the connection breaks
            self._pending.add(waiting)
            try:
                await client.publish(topic, payload, qos=qos, retain=retain, timeout=PUBLISH_SECONDS)
            except (aiomqtt.MqttError, ValueError):
                return False
            finally:
                self._pending.discard(waiting)
        return not waiting.cancelled_caught

    async def publish_soon(self, topic: str, payload: bytes, tasks: anyio.abc.TaskGroup) -> None:
        """As `publish`, in a task of its own: returns at once while few are on their way, and else waits for one."""
        await self.connected()
        await self._outgoing.enter(len(payload))
        tasks.start_soon(self._publish_and_release, topic, payload)

    async def connected(self) -> None:
        """Wait for the connection. Where it stands, go on at once: a turn of the loop for every chunk adds up."""
        if not self._up.is_set():
            await self._up.wait()

    async def unsubscribe(self) -> None:
        """Be sent nothing any more: the broker keeps nothing for a session that waits for nothing."""
        aiomqtt = library()
        if self._client is not None:
            try:
                await self._client.unsubscribe(list(self._hooks.topics))
            except aiomqtt.MqttError:
                return

    async def _publish_and_release(self, topic: str, payload: bytes) -> None:
        try:
            await self.publish(topic, payload)
        finally:
            self._outgoing.leave(len(payload))

    async def _connection(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        """One connection, until it breaks. Raises as aiomqtt does."""
        broken: list[Exception] = []

        async def until_broken(step: Callable[[], Awaitable[None]]) -> None:
            try:
                await step()
            except (library().MqttError, OSError, ValueError) as error:
                broken.append(error)
                tasks.cancel_scope.cancel()

        async with self._make() as client:
            self._accepted = True
            async with anyio.create_task_group() as tasks:  # who subscribes would not notice that the connection broke
                tasks.start_soon(until_broken, lambda: self._listen(client))
                await until_broken(lambda: self._begin(client, task_status))
            raise broken[0]

    async def _begin(self, client: "aiomqtt.Client", task_status: anyio.abc.TaskStatus[None]) -> None:
        for topic in self._hooks.topics:
            await client.subscribe(topic, qos=1)
        self._client = client
        self.connections += 1
        await self._hooks.connected(self.connections)
        self._up.set()
        if self.connections == 1:
            task_status.started()

    async def _listen(self, client: "aiomqtt.Client") -> None:
        """Until the connection breaks. Raises as aiomqtt does."""
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            topic = str(message.topic)
            self._traffic.received += _packet_size(topic, payload, message.qos)
            self._hooks.heard(topic, payload)

    def _down(self) -> None:
        if self._client is not None:
            self._client = None
            self._up = anyio.Event()
        for waiting in tuple(self._pending):
            waiting.cancel()

    def _make(self) -> "aiomqtt.Client":
        its, broker = library(), self._broker
        will = self._hooks.will(self.connections + 1)
        made: aiomqtt.Client = its.Client(
            hostname=broker.host.strip("[]"),
            port=broker.port,
            identifier=self._name,
            username=broker.username,
            password=broker.password,
            keepalive=broker.keepalive,
            timeout=CONNECT_SECONDS,
            tls_context=self._tls,
            # Nagle's algorithm would add 90 ms to every round trip.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            max_queued_incoming_messages=_QUEUED,
            logger=_SILENT,
            will=its.Will(self._hooks.will_topic, will, 1, True, _will_properties(broker.protocol)),
            **_protocol(its, broker, first=self.connections == 0),
        )
        made.pending_calls_threshold = 1 << 10  # else it warns of what is meant to be
        return made

    def _sentence(self, error: Exception) -> str:
        broker = f"{self._broker.host}:{self._broker.port}"
        if isinstance(error, library().exceptions.MqttConnectError):
            return f"The MQTT broker at {broker} refuses this peer ({error}); see transport.username and its rules."
        return (
            f"No connection to an MQTT broker at {broker} ({error}); start one there, or see transport.broker, "
            "transport.tls and transport.ca."
        )


def _protocol(aiomqtt: Any, broker: Broker, *, first: bool) -> dict[str, Any]:
    """How a session is begun, or gone on with. A 3.1.1 broker would keep it for ever, so there every one is new."""
    if broker.protocol == "3.1.1":
        return {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": True}
    said = _properties("CONNECT")
    said.SessionExpiryInterval = SESSION_SECONDS
    said.MaximumPacketSize = broker.packet_bytes
    said.ReceiveMaximum = _INCOMING
    return {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": first, "properties": said}


def _will_properties(protocol: str) -> "Properties | None":
    if protocol != "5":
        return None
    said = _properties("WILLMESSAGE")
    said.WillDelayInterval = WILL_SECONDS
    said.MessageExpiryInterval = SESSION_SECONDS
    return said


def _properties(packet: str) -> "Properties":
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    return Properties(getattr(PacketTypes, packet))  # type: ignore[no-untyped-call]  # paho leaves its hints out here


def _packet_size(topic: str, payload: bytes, qos: int) -> int:
    """Bytes of a PUBLISH packet (MQTT 5, 3.3) and of what acknowledges it."""
    rest = 2 + len(topic.encode()) + 1 + len(payload) + (2 if qos else 0)
    length = 1 if rest < 1 << 7 else 2 if rest < 1 << 14 else 3 if rest < 1 << 21 else 4
    return 1 + length + rest + (4 if qos else 0)


def _pass_over_late_writers(loop: asyncio.AbstractEventLoop) -> None:
    """aiomqtt asks the loop to write for a socket, which may break before the loop comes to it: no news for anybody."""
    usual = loop.get_exception_handler()
    if getattr(usual, "__name__", "") == "unless_late":
        return

    def unless_late(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno == errno.EBADF and "add_writer" in repr(context.get("handle")):
            return
        if usual:
            usual(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(unless_late)
