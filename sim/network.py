"""Virtual time: the same machines under one heap of events, in one process, with no socket and no key.

Order is total and repeatable: events are taken by (time, number in which they were made). Bodies travel as they are;
their bytes are counted as the envelope would make them (exactly: the header's size does not depend on the content).
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from veilmesh.attacks.view import IN_PASSING, Sighting
from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto.envelope import MAX_BODY
from veilmesh.crypto.frame import frame_size
from veilmesh.crypto.padding import Padding
from veilmesh.peer.cover import Cover, Packer, Slots
from veilmesh.peer.limits import Kind
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
from veilmesh.peer.transcript import Record
from veilmesh.peer.worker import Executor
from veilmesh.sim.faults import Fault

__all__ = ["Player", "VirtualNetwork"]


@dataclass(slots=True)
class Player:
    """One machine in virtual time, and what it counted."""

    machine: Machine
    execute: Executor
    neighbours: frozenset[PeerId]
    timers: dict[str, int] = field(default_factory=dict)
    slow: float = 1.0  # how many times as long its work takes
    result: object = None
    stopped: bool = False
    killed: bool = False
    paused: float = 0.0  # until when it takes no event
    missed: set[PeerId] = field(default_factory=set)  # neighbours that it takes for dead
    sent: int = 0
    received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    decoys: frozenset[PeerId] = frozenset()  # who is covered as neighbours are
    lines: dict[PeerId, "_Line"] = field(default_factory=dict)  # with cover traffic
    stopped_at: float = 0.0
    cover_bytes: int = 0  # of frames with nothing to say

    @property
    def waiting(self) -> bool:
        """Whether something that it said waits for a slot."""
        return not self.killed and any(line.bodies for line in self.lines.values())

    @property
    def silent(self) -> bool:
        """Whether it has stopped, and what it said has left."""
        return self.stopped and not self.waiting


@dataclass(slots=True)
class _Line:
    """What waits for slots to one other."""

    slots: Slots
    packer: Packer
    bodies: deque[tuple[int, bytes]] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _SlotDue:
    """A slot to another is due."""

    to: PeerId


@dataclass(frozen=True, slots=True)
class _Heard:
    """Whether a neighbour is still heard of, or no longer: what a membership notices."""

    peer: PeerId
    present: bool


_What = Event | Work | Fault | _Heard | _SlotDue


class VirtualNetwork:
    """Runs machines against a heap.

    Args:
        players: by peer id.
        latency: seconds a message takes.
        work_time: seconds a task takes, of a peer that is not slow.
        faults: what goes wrong, and at whom.
        grace, silence: seconds until its neighbours notice that a peer was killed, or stands still.
        note, keep, tap: told everything, with the virtual time.
        start: the virtual time at which everybody starts.
        padding: how bodies would be made longer; counted, not done.
        cover: how what is said is covered: it then waits for slots, and who has stopped goes on until its neighbours
            have, for `linger` seconds at most.
        passed, sighted: told every frame as it leaves, and who comes and goes: what a broker would see.
    """

    def __init__(
        self,
        players: dict[PeerId, Player],
        *,
        latency: float = 0.01,
        work_time: float = 0.001,
        faults: Sequence[tuple[PeerId, Fault]] = (),
        grace: float = 1.0,
        silence: float = 10.0,
        note: Callable[[PeerId, Note, float], None] = lambda peer, note, now: None,
        keep: Callable[[PeerId, Keep, float], None] = lambda peer, kept, now: None,
        tap: Callable[[Record], None] = lambda record: None,
        start: float = 0.0,
        padding: Padding = "none",
        cover: Cover | None = None,
        linger: float = 10.0,
        passed: Callable[[Record], None] = lambda record: None,
        sighted: Callable[[Sighting], None] = lambda sighting: None,
    ) -> None:
        self._players = players
        self._cover = cover
        self._linger = linger
        self._passed = passed
        self._sighted = sighted
        self._going_on = 0  # what is still to come but slots
        self._padding = padding
        self._latency = latency
        self._work_time = work_time
        self._faults = faults
        self._grace = grace
        self._silence = silence
        self._note = note
        self._keep = keep
        self._tap = tap
        self._heap: list[tuple[float, int, PeerId, _What, int]] = []
        self._number = itertools.count()
        self.now = start  # the virtual time, in seconds

    def run(self, until: float) -> float:
        """Run until everybody has stopped; the virtual time then. Raises LocalError at virtual time `until`."""
        for peer, player in self._players.items():
            self._put(self.now, peer, Started(player.neighbours))
            self._sighted(Sighting(self.now, "here", peer, number=1))
        for peer, player in self._players.items():
            self._begin_cover(peer, player)
        for peer, fault in self._faults:
            self._put(fault.at, peer, fault)
        while self._heap:
            at, _, peer, what, number = heapq.heappop(self._heap)
            self._going_on -= not isinstance(what, _SlotDue)
            if self._is_void(peer, what, number):
                continue
            if at < self._players[peer].paused and not isinstance(what, Fault):  # it waits, behind what waits already
                heapq.heappush(self._heap, (self._players[peer].paused, next(self._number), peer, what, number))
                self._going_on += not isinstance(what, _SlotDue)
                continue
            self.now = at
            if at > until:
                waiting = [p for p, player in self._players.items() if not player.stopped]
                raise LocalError(f"at {until:g} virtual seconds, {', '.join(waiting)} had not stopped")
            self._step(peer, what, at)
        return self.now

    def _is_void(self, peer: PeerId, what: _What, number: int) -> bool:
        """Whether nobody waits for it: its peer has stopped, or the timer was cancelled or set again."""
        player = self._players[peer]
        if isinstance(what, _SlotDue):
            return player.killed
        return player.stopped or (isinstance(what, TimerFired) and player.timers.get(what.name) != number)

    def _put(self, at: float, peer: PeerId, what: _What) -> int:
        number = next(self._number)
        heapq.heappush(self._heap, (at, number, peer, what, number))
        self._going_on += not isinstance(what, _SlotDue)
        return number

    def _step(self, peer: PeerId, what: _What, now: float) -> None:
        player = self._players[peer]
        if isinstance(what, Fault):
            self._befall(peer, player, what, now)
            return
        if isinstance(what, _SlotDue):
            self._fill_slot(peer, player, what.to, now)
            return
        if isinstance(what, _Heard):
            what = _noticed(player, what)
        if isinstance(what, Work):
            what = _work(player, what)
        if isinstance(what, TimerFired):
            del player.timers[what.name]
        try:
            effects = player.machine.handle(what, now)
        except RemoteError as error:
            player.refusals[error.refusal.value] = player.refusals.get(error.refusal.value, 0) + 1
            return
        for effect in effects:
            self._perform(peer, player, effect, now)

    def _perform(self, peer: PeerId, player: Player, effect: Effect, now: float) -> None:
        match effect:
            case Send(to, body):
                self._carry(peer, player, to, body, now)
            case Work():
                self._put(now + self._work_time * player.slow, peer, effect)
            case SetTimer(name, at):
                player.timers[name] = self._put(at, peer, TimerFired(name))
            case CancelTimer(name):
                player.timers.pop(name, None)
            case Note():
                self._note(peer, effect, now)
            case Keep():
                self._keep(peer, effect, now)
            case Stop(result):
                player.result, player.stopped, player.stopped_at = result, True, now
                if not self._cover:
                    self._sighted(Sighting(now, "closed", peer, number=1))

    def _carry(self, peer: PeerId, player: Player, to: PeerId, body: bytes, now: float) -> None:
        if to not in player.neighbours:
            raise LocalError(f"the machine speaks to {to}, which is not a neighbour")
        player.messages_sent += 1
        self._tap(Record(now, peer, peer, to, 0, None, body))
        if self._cover:
            player.lines[to].bodies.append((Kind.DATA, body))
            return
        size = frame_size(len(body), with_hello=False, padding=self._padding, cap=MAX_BODY)
        self._pass(peer, player, to, size, now)
        self._deliver(peer, to, size, body, now + self._latency)

    def _pass(self, peer: PeerId, player: Player, to: PeerId, size: int, now: float) -> None:
        """A frame of `size` bytes leaves, whatever it says."""
        player.sent += size
        self._passed(Record(now, IN_PASSING, peer, to, size, None, None))
        if not self._players[to].killed:
            self._players[to].received += size

    def _deliver(self, peer: PeerId, to: PeerId, size: int, body: bytes, at: float) -> None:
        """A body of `peer` arrives at `at` seconds, the last of it in a frame of `size` bytes."""
        other = self._players[to]
        if other.killed:
            return
        other.messages_received += 1
        self._tap(Record(at, to, peer, to, size, None, body))
        self._put(at, to, Received(peer, body))

    # --- cover traffic -----------------------------------------------------------------------------------------

    def _begin_cover(self, peer: PeerId, player: Player) -> None:
        if self._cover:
            for other in sorted(player.neighbours | player.decoys):
                player.lines[other] = _Line(Slots(self.now, self._cover.pace), Packer(self._cover.octets))
                self._put(self.now, peer, _SlotDue(other))

    def _fill_slot(self, peer: PeerId, player: Player, to: PeerId, now: float) -> None:
        assert self._cover is not None
        if self._ends_cover(player, now):
            del player.lines[to]
            if not player.lines:
                self._sighted(Sighting(now, "closed", peer, number=1))
            return
        line = player.lines[to]
        slot = line.packer.slot({}, line.bodies)
        size = frame_size(self._cover.octets, with_hello=False, padding=self._padding, cap=MAX_BODY)
        self._pass(peer, player, to, size, now)
        player.cover_bytes += size * slot.idle
        for _, body in slot.left:
            self._deliver(peer, to, size, body, now + self._latency)
        line.slots.taken(now)
        self._put(line.slots.due, peer, _SlotDue(to))

    def _ends_cover(self, player: Player, now: float) -> bool:
        """Whether a peer says no more: those around it have ended too, or it has waited for them; or all wait for what
        never comes."""
        if not self._going_on and not any(p.waiting for p in self._players.values()):
            return True
        around = (self._players[other] for other in player.neighbours | player.decoys)
        return player.silent and (now > player.stopped_at + self._linger or all(other.silent for other in around))

    # --- what goes wrong ---------------------------------------------------------------------------------------

    def _befall(self, peer: PeerId, player: Player, fault: Fault, now: float) -> None:
        what = {"what": "kill"} if fault.kill else {"what": "pause", "seconds": fault.seconds}
        self._note(peer, Note("fault", what), now)
        if fault.seconds is None:
            player.stopped = player.killed = True
            self._sighted(Sighting(now, "lost", peer, number=1))
            self._note(peer, Note("ended", {"how": "killed"}), now)
            self._tell(player, _Heard(peer, False), now + self._grace)
        else:
            self._pause(peer, player, now, now + fault.seconds)

    def _pause(self, peer: PeerId, player: Player, now: float, until: float) -> None:
        """What it was working on stands still as well; a clock goes on, so timers are late at most."""
        late = max(0.0, until - max(now, player.paused))
        player.paused = max(until, player.paused)
        self._heap = [
            (at + late if who == peer and isinstance(what, Work) else at, order, who, what, number)
            for at, order, who, what, number in self._heap
        ]
        heapq.heapify(self._heap)
        if until - now > self._silence:
            self._tell(player, _Heard(peer, False), now + self._silence)
            self._tell(player, _Heard(peer, True), until + self._latency)

    def _tell(self, player: Player, news: _Heard, at: float) -> None:
        for neighbour in sorted(player.neighbours):
            self._put(at, neighbour, news)


def _noticed(player: Player, news: _Heard) -> Event:
    (player.missed.discard if news.present else player.missed.add)(news.peer)
    return PeersChanged(player.neighbours - player.missed)


def _work(player: Player, work: Work) -> Event:
    try:
        [result] = player.execute([work.task])
    except (BadInput, LocalError) as error:  # as the node does: the machine decides
        return WorkFailed(work.name, str(error))
    return WorkDone(work.name, result)
