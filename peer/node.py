"""The driver: one peer's machine, run against a clock, a transport and a worker. Knows no protocol.

Life of a node: open the transport; announce a card and be told everybody's; exchange presence until every neighbour
has answered (a frame to somebody who is not listening yet would be lost); give the machine `Started`; then carry events
in and effects out until it says `Stop`; flush, say goodbye, and linger until the neighbours have said it too.

With a lobby the mesh grows: the neighbours it is given are those it begins with, and everybody the lobby lets in
becomes one (`reception`). A peer that joins later begins with none, and waits for one of its contacts instead.

Every wait has a deadline and says what it waited for. Whatever a remote peer does wrong is caught in one place
(`_open` and `_feed`), counted under its Refusal and noted; the loop never sees it.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.envelope import MAX_BODY, Mailroom, Opened
from veilmesh.peer.allowance import Allowance
from veilmesh.peer.cover import Cover, Unpacker
from veilmesh.peer.door import Announcement
from veilmesh.peer.farewell import Farewell
from veilmesh.peer.ledger import Ledger, Tally
from veilmesh.peer.limits import IN_CLEAR, Kind, Limits
from veilmesh.peer.lobby import Lobby
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Keep,
    Machine,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.peer.outbox import Outbox
from veilmesh.peer.presence import Presence
from veilmesh.peer.reception import Hands, Reception
from veilmesh.peer.timers import Timers
from veilmesh.peer.transcript import Record
from veilmesh.peer.transports.base import Arrival, Found, Frame, Gone, Transport, Windowed
from veilmesh.peer.worker import Worker

__all__ = ["Kind", "Limits", "Node", "Tally"]

_USUAL: Final = Limits()
_LOOKS: Final = 4  # in a heartbeat, for who has fallen silent: others wait for it meanwhile
_SLOTS_UNDER_WAY: Final = 8  # of cover traffic, to one neighbour
_NOBODY: Final[Mapping[PeerId, str]] = MappingProxyType({})


class Node:
    """One peer.

    Args:
        machine: the protocol.
        mailroom: this peer's envelopes.
        transport, worker: its way to the others, and where slow work runs.
        neighbours: whom it talks to; with a lobby, those it begins with (may be empty).
        note: told every Note, with the time; must not block.
        tap: told every record of the transcript; must not block.
        keep: told every checkpoint, one at a time; returns once it is on disk. None: nothing is kept.
        clock: seconds.
        lobby: lets others in while the node runs; None: the neighbours are all there will ever be.
        contacts: with a lobby, addresses of peers to join by; without neighbours, one of them must answer.
        cover: how what this peer says is covered; None: it is not. A mesh agrees on that.
        decoys: who is no neighbour, and is said as much to as if it were; with cover only.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        mailroom: Mailroom,
        transport: Transport,
        worker: Worker,
        neighbours: frozenset[PeerId],
        note: Callable[[Note, float], None],
        tap: Callable[[Record], None] | None = None,
        keep: Callable[[Keep, float], Awaitable[None]] | None = None,
        limits: Limits = _USUAL,
        clock: Callable[[], float] = anyio.current_time,
        lobby: Lobby | None = None,
        contacts: Mapping[PeerId, str] = _NOBODY,
        cover: Cover | None = None,
        decoys: frozenset[PeerId] = frozenset(),
    ) -> None:
        self._machine = machine
        self._mailroom = mailroom
        self._transport = transport
        self._worker = worker
        self._note = note
        self._tap = tap
        self._keep = keep
        self._desk = anyio.Semaphore(1)  # on which one checkpoint is written
        self._limits = limits
        self._clock = clock
        self._ledger = Ledger(lambda what: note(what, clock()))
        self._events, self._turns = anyio.create_memory_object_stream[Event](math.inf)
        self._timers = Timers(clock, self._events.send_nowait)
        self._unpackers: dict[PeerId, Unpacker] | None = {} if cover else None
        self._decoys = decoys if cover else frozenset()
        self._company = set(self._decoys)  # those of them that have not said goodbye
        allowance = Allowance(limits.outbox, limits.waiting_bytes)
        self._outbox = Outbox(allowance, self._carry, lambda: self._end.stir(), cover, clock, self._is_crowded)
        self._incoming = Allowance(limits.backlog, limits.waiting_bytes)
        self._lobby = lobby
        hello = lobby.hello if lobby else None
        self._presence = Presence(neighbours, frozenset(contacts), limits, self._outbox, self._say_who_is_here, hello)
        self._reception = self._make_reception(lobby, contacts) if lobby else None
        self._end = Farewell(self._outbox, self._presence.members, self._post, limits, self._company)
        self._knocking: set[PeerId] = set()
        self._driving: anyio.CancelScope | None = None
        self._leaving = False
        self._result: object = None

    @property
    def tally(self) -> Tally:
        """What was counted so far, live."""
        tally, outbox = self._ledger.tally, self._outbox
        tally.slots, tally.idle_slots, tally.missed_slots = outbox.slots, outbox.idle, outbox.missed
        return tally

    async def run(self, inbox: AsyncIterator[Arrival]) -> object:
        """Run the machine to its Stop; its result, or None if `leave` was called before.

        The transport is open and `inbox` is what it yields. Without a lobby, the transport is introduced and the
        mailroom has admitted everybody. Raises BadInput when the mesh does not come up in time.
        """
        if self._reception:
            self._reception.begin(self._clock())
        vain: str | None = None
        work_in, work_out = anyio.create_memory_object_stream[Work](math.inf)
        async with anyio.create_task_group() as self._tasks:
            self._outbox.start(self._presence.members.everybody | self._decoys, self._tasks)
            self._tasks.start_soon(self._receive, inbox)
            self._tasks.start_soon(self._beat)
            self._tasks.start_soon(self._work, work_out)
            with anyio.CancelScope() as self._driving:
                if self._leaving:
                    self._driving.cancel()
                vain = await self._presence.come_up(self._limits.start)
                if not vain:
                    await self._drive(work_in)
            if not vain:
                await self._desk.acquire()  # the last checkpoint is on disk
                self._reception = None  # nobody is let in any more
                await self._end.say(wait_for_others=not self._leaving)
            self._tasks.cancel_scope.cancel()
        if vain:  # said outside the task group, which would wrap it
            raise BadInput(vain)
        return self._result

    def leave(self) -> None:
        """End, whatever the machine is about: it is not asked again. What it said still leaves, then the goodbyes.

        `run` then returns None, without waiting for the others to end.
        """
        self._leaving = True
        if self._driving:
            self._driving.cancel()

    # --- in ------------------------------------------------------------------------------------------------------

    async def _receive(self, inbox: AsyncIterator[Arrival]) -> None:
        async for arrival in inbox:
            match arrival:
                case Frame(data) if self._lobby and data.startswith(Announcement.MAGIC):
                    if self._reception:
                        self._reception.announced([data], None, self._clock())
                case Frame(data):
                    self._open(data)
                case Gone(peer):
                    self._presence.broken(peer, self._clock())
                case Found() if self._reception:
                    self._reception.found(arrival, self._clock())

    def _open(self, frame: bytes) -> None:
        sender: PeerId | None = None
        try:
            opened = self._mailroom.open(frame)
            sender = opened.sender
            self._sort(opened, frame, self._clock())
        except RemoteError as error:
            self._ledger.refused(error, sender)

    def _sort(self, opened: Opened, frame: bytes, now: float) -> None:
        """An authentic body goes where its kind says. Raises RemoteError."""
        sender, body = opened.sender, opened.body
        if sender in self._decoys and opened.kind != Kind.COVER:
            if opened.kind == Kind.GOODBYE:
                self._company.discard(sender)
                self._end.stir()
            return
        if self._reception and sender not in self._presence.members and opened.kind != Kind.GOODBYE:
            self._reception.still_there(sender, now)
        if self._presence.heard(sender, now) and self._reception:
            self._reception.heard(sender, now)
        match opened.kind:
            case Kind.DATA:
                self._take(Received(sender, body), frame, now)
            case Kind.PRESENCE if sender in self._presence.members:
                self._presence.answer(sender, body)
            case Kind.GOODBYE:
                self._presence.left(sender)
                self._end.stir()
            case Kind.ASKING if self._reception:
                self._reception.asked(sender, body, now)
            case Kind.ROSTER if self._reception:
                self._reception.told(sender, body, now)
            case Kind.COVER if self._unpackers is not None:
                unpacker = self._unpackers.setdefault(sender, Unpacker(MAX_BODY))
                for kind, inner in unpacker.take(body):
                    if kind != Kind.COVER:
                        self._sort(Opened(sender, kind, inner), frame, now)

    def _take(self, said: Received, frame: bytes, now: float) -> None:
        """A body into the machine's queue, which one neighbour cannot fill: the machine is slower than the door."""
        self.tally.messages_received += 1
        if self._tap:
            me = self._mailroom.me
            self._tap(Record(now, me, said.sender, me, len(frame), frame, said.body))
        if self._incoming.take(said.sender, len(said.body)):
            self._events.send_nowait(said)
        else:
            self._ledger.flooded(said.sender)

    # --- the machine ---------------------------------------------------------------------------------------------

    async def _drive(self, work: MemoryObjectSendStream[Work]) -> None:
        event: Event = Started(self._presence.members.present)
        while True:
            if isinstance(event, Received):
                self._incoming.give_back(event.sender, len(event.body))
            if not isinstance(event, TimerFired) or self._timers.take(event):
                for effect in self._feed(event):
                    if isinstance(effect, Stop):
                        self._result = effect.result
                        return
                    if isinstance(effect, Keep):
                        await self._put_down(effect)
                    self._perform(effect, work)
            await anyio.lowlevel.checkpoint()  # a flood of events must not keep heartbeats from leaving
            event = await self._turns.receive()

    def _feed(self, event: Event) -> list[Effect]:
        try:
            return self._machine.handle(event, self._clock())
        except RemoteError as error:
            self._ledger.refused(error, event.sender if isinstance(event, Received) else None)
            return []

    def _perform(self, effect: Effect, work: MemoryObjectSendStream[Work]) -> None:
        match effect:
            case Send(to, body):
                self._say(to, body)
            case Work():
                work.send_nowait(effect)
            case SetTimer():
                self._timers.set(effect, self._tasks)
            case CancelTimer(name):
                self._timers.cancel(name)
            case Note():
                self._note(effect, self._clock())

    async def _put_down(self, kept: Keep) -> None:
        """The machine goes on while its checkpoint is written, but not beyond the next: no peer's lags by two."""
        if self._keep:
            await self._desk.acquire()
            self._tasks.start_soon(self._write, self._keep, kept, self._clock())

    async def _write(self, keep: Callable[[Keep, float], Awaitable[None]], kept: Keep, now: float) -> None:
        await keep(kept, now)
        self._desk.release()

    async def _work(self, jobs: MemoryObjectReceiveStream[Work]) -> None:
        async for job in jobs:
            try:
                [result] = await self._worker.run([job.task])
            except (BadInput, LocalError) as error:  # a training that diverged is bad input; the machine decides
                self._events.send_nowait(WorkFailed(job.name, str(error)))
            else:
                self._events.send_nowait(WorkDone(job.name, result))

    # --- out -----------------------------------------------------------------------------------------------------

    def _say(self, to: PeerId, body: bytes) -> None:
        if self._tap:
            me = self._mailroom.me
            self._tap(Record(self._clock(), me, me, to, 0, None, body))
        self.tally.messages_sent += 1
        if to not in self._outbox and self._lobby and self._lobby.remembers(to):
            return  # the machine has not heard yet that it is gone
        self._post(to, Kind.DATA, body)

    def _post(self, to: PeerId, kind: Kind, body: bytes) -> None:
        if not self._outbox.post(to, kind, body):
            self._ledger.congested(to, kind is Kind.DATA)

    async def _carry(self, to: PeerId, kind: int, body: bytes) -> None:
        await self._transport.send(to, body if kind == IN_CLEAR else self._mailroom.seal(to, kind, body))

    def _is_crowded(self, to: PeerId) -> bool:
        """Slots that a transport only piles up would delay whatever is said later, without end."""
        return isinstance(self._transport, Windowed) and self._transport.under_way(to) >= _SLOTS_UNDER_WAY

    def _knock(self, peer: PeerId, frame: bytes) -> None:
        if peer not in self._knocking and len(self._knocking) < self._limits.strangers:
            self._tasks.start_soon(self._stand_at_the_door, peer, frame)

    async def _stand_at_the_door(self, peer: PeerId, frame: bytes) -> None:
        self._knocking.add(peer)
        await self._transport.send(peer, frame)
        self._knocking.discard(peer)

    # --- who is here ---------------------------------------------------------------------------------------------

    def _make_reception(self, lobby: Lobby, contacts: Mapping[PeerId, str]) -> Reception:
        hands = Hands(
            carry_to=lambda peer: self._outbox.start([peer], self._tasks),
            introduce=self._transport.introduce,
            knock=self._knock,
            refuse=self._ledger.refused,
            note=lambda what: self._note(what, self._clock()),
        )
        return Reception(self._mailroom.me, lobby, contacts, self._presence, self._outbox, self._limits, hands)

    def _say_who_is_here(self) -> None:
        self._events.send_nowait(PeersChanged(self._presence.members.present))

    async def _beat(self) -> None:
        refused = 0
        while True:
            if self._reception:
                self._reception.beat(self._clock())
            for _ in range(_LOOKS):
                await anyio.sleep(self._limits.heartbeat / _LOOKS)
                self._look(self._clock())
            now = self._clock()
            if self._transport.traffic.refused > refused:
                refused = self._transport.traffic.refused
                what = {"why": "transport", "detail": f"{refused} streams so far", "from": "?"}
                self._note(Note("refused", what), now)
            self._presence.beat()

    def _look(self, now: float) -> None:
        """Who has fallen silent."""
        if lost := self._presence.tick(now):
            self._note(Note("silent", {"peers": [str(p) for p in lost]}), now)
            self._end.stir()
            if self._reception:
                self._reception.fell_silent(lost)
