"""One peer's way to the others through one broker; `mqtt` says how it works."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from os import urandom
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel

from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports.base import INBOX_BYTES, MAX_FRAME, Arrival, Traffic
from veilmesh.peer.transports.groups import only
from veilmesh.peer.transports.inbox import Inbox
from veilmesh.peer.transports.mqtt_broker import Broker
from veilmesh.peer.transports.mqtt_chunks import Acks, Chunk, read
from veilmesh.peer.transports.mqtt_line import Line
from veilmesh.peer.transports.mqtt_names import NO_SESSION, Names, Place, Presence, State
from veilmesh.peer.transports.mqtt_senders import Senders
from veilmesh.peer.transports.mqtt_session import Hooks, Session

__all__ = ["MqttTransport"]

SEND_SECONDS: Final = 40.0  # for room in the window, as libp2p's writes have
MEET_SECONDS: Final = 2.0  # for the presence of a peer whose session is not known
ACKNOWLEDGE_SECONDS: Final = 0.01  # more may arrive meanwhile: each message of acknowledgements is a broker's work
DRAIN_SECONDS: Final = 5.0  # for what was said last to be acknowledged
CLOSE_SECONDS: Final = 2.0
PRESENCES: Final = 4096  # words of peers that were not introduced (yet) that are remembered


@dataclass(slots=True)
class _Open:
    """What there is while a transport is open."""

    session: Session
    tasks: anyio.abc.TaskGroup
    acks: anyio.Event = field(default_factory=anyio.Event)
    pressing: anyio.Event = field(default_factory=anyio.Event)


class MqttTransport:
    """One peer's way to the others, through one broker."""

    def __init__(
        self, identity: Identity, broker: Broker, prefix: str = "veilmesh", chunk: int = 1 << 20,
        max_frame: int = MAX_FRAME, *, find: bool = False,
    ) -> None:  # fmt: skip
        self._identity, self._broker, self._chunk, self._max_frame, self._find = (
            identity,
            broker,
            chunk,
            max_frame,
            find,
        )
        self._names = Names(prefix, identity.peer)
        self._traffic = Traffic()
        self._inbox = Inbox(self._traffic)
        self._me = NO_SESSION
        self._lines: dict[PeerId, Line] = {}
        self._senders = Senders(max_frame, INBOX_BYTES)
        self._presences: dict[PeerId, bytes] = {}
        self._here: _Open | None = None
        self._relay: tuple[str, int] | None = None
        self._watch: Callable[[str, bytes], None] = lambda topic, payload: None

    @property
    def traffic(self) -> Traffic:
        """The counters, live: bytes of MQTT messages with their headers; TLS and pings are not counted."""
        return self._traffic

    @property
    def repeated(self) -> int:
        """How many chunks were said again to the peers that are known now."""
        return sum(line.repeated for line in self._lines.values())

    @property
    def connections(self) -> int:
        """How many times this peer has connected to the broker since it was opened."""
        return self._here.session.connections if self._here else 0

    @property
    def address(self) -> str:
        """The broker, the topics, this peer and its session. Raises LocalError before the transport is open."""
        if self._me == NO_SESSION:
            raise LocalError("an MQTT transport has an address once it is open")
        return self._names.address(self._broker.host, self._broker.port, self._broker.tls, self._me)

    @property
    def protections(self) -> dict[str, str]:
        """The channel is the one to the broker, which ends there."""
        return {"channel": "tls" if self._broker.tls else "none", "relay": f"mqtt {self._broker.protocol}, untrusted"}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Arrival]]:
        """Be reachable until the context closes. Raises BadInput: no broker, or it refuses this peer."""
        self._me = time.time_ns().to_bytes(8, "big") + urandom(8)
        self._inbox = Inbox(self._traffic)
        self._senders = Senders(self._max_frame, INBOX_BYTES)
        hooks = Hooks(
            (self._names.inbox, self._names.everybody), self._names.presence, self._will, self._heard, self._say,
            self._watch,
        )  # fmt: skip
        name = f"{self._names.prefix.replace('/', '-')}-{self._identity.peer}"
        session = Session(self._broker.behind(self._relay) if self._relay else self._broker, name, hooks, self._traffic)
        try:
            async with anyio.create_task_group() as tasks:
                self._here = _Open(session, tasks)
                await tasks.start(session.run)
                tasks.start_soon(self._acknowledge, self._here)
                for peer, line in self._lines.items():
                    self._start(peer, line)
                try:
                    yield self._inbox
                finally:
                    await self._close(session)
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise self._named(only(group)) from None
        finally:
            self._here = None
            self._inbox.close()
            for line in self._lines.values():
                self._traffic.lost_frames += line.end()

    def reach_by(self, way: Callable[[tuple[str, int]], tuple[str, int]]) -> None:
        """Reach the broker, once open, through the relay that `way` knows to it. Addresses stay the broker's."""
        self._relay = way(self._broker.place)

    def watched_by(self, watch: Callable[[str, bytes], None]) -> None:
        """Tell `watch`, from the next opening on, every message that is published, and every presence that is heard."""
        self._watch = watch

    def under_way(self, to: PeerId) -> int:
        """How many frames to `to` were handed on, and have not arrived as far as is known."""
        return self._lines[to].under_way if to in self._lines else 0

    def introduce(self, addresses: dict[PeerId, str]) -> None:
        """Tell where the others are. Raises BadInput: one is no address of its peer at a broker."""
        places = {peer: Place.parse(peer, address) for peer, address in addresses.items()}
        for peer in self._lines.keys() - places.keys():
            self._traffic.lost_frames += self._lines.pop(peer).end()
        self._senders.known = frozenset(places)
        for peer, place in places.items():
            if (line := self._lines.get(peer)) is None:
                line = self._lines[peer] = Line(self._names.to(place), self._chunk)
                if self._here:
                    self._start(peer, line)
            line.topic = self._names.to(place)
            self._traffic.lost_frames += line.meet(self._me, place.session)
            if raw := self._presences.pop(peer, None):
                self._heard(f"{place.prefix}/presence/{peer}", raw)

    async def send(self, to: PeerId, frame: bytes) -> None:
        """Put `frame` into the window of `to`, where it stays until `to` has it; lost if it is not there."""
        if len(frame) > self._max_frame:
            raise LocalError(f"a frame of {len(frame)} bytes, of at most {self._max_frame}")
        await anyio.lowlevel.checkpoint()
        line = self._lines.get(to)
        if self._here is None or line is None or not await self._taken(line, frame):
            self._traffic.lost_frames += 1

    async def _taken(self, line: Line, frame: bytes) -> bool:
        with anyio.move_on_after(MEET_SECONDS):
            await line.met()
        with anyio.move_on_after(SEND_SECONDS):
            return await line.put(frame)
        return False

    # --- what arrives --------------------------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes) -> None:
        """Whatever a broker hands us; what is wrong with it is counted, and never raised."""
        try:
            presence, who = self._names.said(topic)
            if presence:
                self._watch(topic, payload)
            if who == self._identity.peer or (presence and not payload):  # my own, or one that was cleared
                return
            if presence:
                self._learn(who, payload)
            else:
                self._take(who, read(payload))
        except RemoteError:
            self._traffic.refused += 1

    def _take(self, who: PeerId, what: Chunk | Acks) -> None:
        if isinstance(what, Acks):
            if (line := self._lines.get(who)) and what.target == self._me and what.source == line.session:
                line.acknowledged(what.pieces, anyio.current_time())
            return
        if what.target != self._me:  # meant for the process that was here before
            return
        if (line := self._lines.get(who)) and what.source > line.session:
            self._traffic.lost_frames += line.meet(self._me, what.source)
        frame = self._senders.take(who, what)
        if self._here:
            self._here.acks.set()
            if self._senders.pressing:
                self._here.pressing.set()
        if frame is not None:
            self._inbox.offer(frame, who)

    def _learn(self, who: PeerId, raw: bytes) -> None:
        """A presence came. Raises RemoteError."""
        if (line := self._lines.get(who)) is None and not self._find:
            self._presences[who] = raw  # looked at if it is ever introduced
            if len(self._presences) > PRESENCES:
                del self._presences[next(iter(self._presences))]
            return
        said = Presence.from_bytes(raw, who)
        if line is None:
            if said.state is State.HERE:
                host, port, tls = self._broker.host, self._broker.port, self._broker.tls
                self._inbox.found(who, Names(self._names.prefix, who).address(host, port, tls, said.session))
                self._presences[who] = raw
            return
        lost, gone = line.hear(self._me, said)
        self._traffic.lost_frames += lost
        if gone:
            self._inbox.gone(who)

    # --- what leaves ---------------------------------------------------------------------------------------------

    def _start(self, peer: PeerId, line: Line) -> None:
        assert self._here is not None
        line.meet(self._me, line.session)
        self._here.tasks.start_soon(line.carry, self._here.session, self._here.tasks, self._give_up)

    def _give_up(self, frames: int) -> None:
        self._traffic.lost_frames += frames

    async def _acknowledge(self, here: _Open) -> None:
        """Acknowledgements leave together: those that come up in a moment, or while one message of them is leaving."""
        while True:
            await here.acks.wait()
            with anyio.move_on_after(ACKNOWLEDGE_SECONDS):
                await here.pressing.wait()
            here.acks, here.pressing = anyio.Event(), anyio.Event()
            await self._say_what_arrived(here.session)

    async def _say_what_arrived(self, here: Session) -> None:
        for who, session, pieces in self._senders.arrived():
            place = Place(who, self._names.prefix, session)
            topic = self._lines[who].topic if who in self._lines else self._names.to(place)
            await here.publish(topic, Acks(self._me, session, pieces).to_bytes(), qos=0)

    def _will(self, connection: int) -> bytes:
        return Presence(State.LOST, self._me, connection).to_bytes(self._identity)

    async def _say(self, connection: int) -> None:
        """Connected, and subscribed: say so, and say again what may have been lost."""
        here = Presence(State.HERE, self._me, connection).to_bytes(self._identity)
        assert self._here is not None
        await self._here.session.publish(self._names.presence, here, retain=True)
        if connection > 1:
            for line in self._lines.values():
                line.resume()

    def _named(self, error: BaseException) -> BaseException:
        """As it is; what says that a relay cannot be reached means the broker behind it."""
        if not self._relay or not isinstance(error, BadInput):
            return error
        broker, relay = (f"{b.host}:{b.port}" for b in (self._broker, self._broker.behind(self._relay)))
        return BadInput(str(error).replace(relay, f"{broker}, over its slow link,"))

    async def _close(self, session: Session) -> None:
        """Let what was said arrive, say that this session has ended, and leave nothing at the broker."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(DRAIN_SECONDS):
                for line in self._lines.values():
                    await line.drained()
            with anyio.move_on_after(CLOSE_SECONDS):
                await self._say_what_arrived(session)
                ended = Presence(State.CLOSED, self._me, session.connections).to_bytes(self._identity)
                await session.publish(self._names.presence, ended)
                await session.publish(self._names.presence, b"", retain=True)
                await session.unsubscribe()
