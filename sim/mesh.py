"""A supervised mesh: every member a process of its own, forked from this preloaded one, on a real transport.

The supervisor introduces the members to each other, writes down what they note, and notices how each one ends. It takes
no part in the protocol: once the roster is out, the members need it only to stay alive. However it ends itself, nothing
stays behind.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from veilmesh.core import BadInput, seed_number
from veilmesh.crypto.envelope import Card
from veilmesh.crypto.identity import Identity
from veilmesh.peer.brokers.own import OwnBroker
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.processes import Child, fork
from veilmesh.peer.store import write_durably
from veilmesh.sim.cast import Cast
from veilmesh.sim.edge import Laps
from veilmesh.sim.entry import Entry
from veilmesh.sim.faults import Action, actions
from veilmesh.sim.feet import in_force, kinds, require_ways, standing
from veilmesh.sim.invite import CONTACTS, INVITE, SECRET_BYTES, Invite, inviting
from veilmesh.sim.member_process import MemberProcess
from veilmesh.sim.own_broker import with_broker
from veilmesh.sim.record import Ended, Recorder, Watch
from veilmesh.sim.resume import Resumption

__all__ = ["Mesh", "run_mesh"]


def run_mesh(
    cast: Cast, folder: Path, watch: Watch, resumed: Resumption | None = None, invite: Invite | None = None,
    identity: Identity | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a scenario, go on with it, or take part in one that runs elsewhere (`invite`), as processes; its summary.

    Raises BadInput with a member's sentence if the mesh cannot start.
    """
    with Mesh(cast, folder, watch, resumed, invite, identity) as mesh:
        mesh.introduce()
        try:
            mesh.attend()
        except KeyboardInterrupt:  # the user has seen enough: what there is, is a run
            mesh.leave()
            mesh.interrupt("stopped by Ctrl-C")
        return mesh.close()


LEAVING_SECONDS = 15.0


class Mesh:
    """The members of one run, as processes. A context manager: whatever happens, leaving it ends and reaps them all."""

    def __init__(
        self, cast: Cast, folder: Path, watch: Watch, resumed: Resumption | None = None, invite: Invite | None = None,
        identity: Identity | None = None,
    ) -> None:  # fmt: skip
        self._cast = cast
        self._folder = folder
        self._watch = watch
        self._origin = time.monotonic()
        self._resumed = resumed
        self._began = self._origin - (resumed.seconds if resumed else 0.0)  # the whole run, also what went before
        self._run = invite.run if invite else os.urandom(16)
        self._entry = _first_entry(cast, invite, identity)
        self._begins = invite is None  # or it takes part in a mesh that others began
        self._protections: dict[str, dict[str, str]] = {}  # by the transport they stand on
        self._selector = selectors.DefaultSelector()
        self._recorder: Recorder | None = None
        self._failure: str | None = None
        self.children: list[Child] = []
        self.members: list[Ended] = []
        self._up: set[int] = set()  # members that have begun to train
        self._seats: list[int] = []  # whose shard each member has, by the number of a first peer
        self._cards: dict[int, bytes] = {}
        self._words: dict[int, str] = {}  # what a member that broke said of it
        self._faults: list[Action] = []  # what is still to be done to members, with times on this machine's clock
        self._paused: dict[int, list[int]] = {}  # members that stand still, and their processes
        self._laps = Laps()
        self._reached = cast  # as its members have it: with the broker that was started for it, if one was
        self._broker: OwnBroker | None = None
        self._last = contextlib.ExitStack()  # what outlives the members

    def __enter__(self) -> "Mesh":
        try:
            require_ways(self._cast.scenario, self._cast.names, self._cast.edges)
            if self._begins:
                self._reached, self._broker = self._last.enter_context(with_broker(self._cast, self._folder))
            for kind in kinds(self._reached.scenario, self._cast.names):
                kind.prepare()  # half a second that every child would spend again
            for index in range(self._cast.size):
                self._start(index)
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()

    def introduce(self) -> None:
        """Wait for every member's card, then tell everybody all of them."""
        deadline = self._origin + self._cast.scenario.timing.start
        while len(self._cards) < self._cast.size:
            self._turn(deadline, "the card of", lambda i: i not in self._cards)
        cards = [Card.from_bytes(self._cards[i]) for i in range(self._cast.size)]
        ids, pids = tuple(c.peer for c in cards), [child.pid for child in self.children]
        self._recorder = Recorder(self._folder, self._cast, ids, pids, self._resumed)
        for child, member, card in zip(self.children, self.members, cards, strict=True):
            member.id = str(card.peer)
            child.link.send({"roster": [self._cards[i] for i in range(self._cast.size)]})
        if (scenario := self._reached.scenario).door.open:
            invite = inviting(scenario, self._run, self._entry.secret, {c.peer: c.address for c in cards})
            write_durably(self._folder / INVITE, f"{invite.to_string()}\n".encode(), mode=0o600)

    def attend(self) -> None:
        """Write down what members note until all have ended, or those that have not are late. Raises BadInput."""
        seconds = self._cast.scenario.timing.run
        while any(m.ended == "running" for m in self.members):
            self._befall()
            if self._broker:
                self._broker.tend()
            late = time.monotonic() > self._origin + seconds
            if late and any(m.ended == "finished" for m in self.members):  # what they came to is not lost with the late
                self.interrupt(f"was not done after {seconds:g} s")
                return
            self._turn(self._origin + seconds, "the end of", lambda i: self.members[i].ended == "running")

    def interrupt(self, why: str) -> None:
        """End every member that still runs."""
        for child, member in zip(self.children, self.members, strict=True):
            child.kill()
            if member.ended == "running":
                self._lose(member, why)

    def leave(self) -> None:
        """Let the members of an open mesh say goodbye, for a few seconds: the others are not to wait for them."""
        if not self._cast.scenario.door.open:
            return
        for child, member in zip(self.children, self.members, strict=True):
            if member.ended == "running":
                with contextlib.suppress(OSError):  # it has ended this very moment
                    child.link.send({"leave": True})
        deadline = time.monotonic() + LEAVING_SECONDS
        while any(m.ended == "running" for m in self.members) and time.monotonic() < deadline:
            self._turn(deadline + 1, "the goodbye of", lambda i: self.members[i].ended == "running")

    def close(self) -> dict[str, Any]:
        """Write the summary."""
        assert self._recorder is not None
        seconds = time.monotonic() - self._began
        for member in self.members:
            member.round_seconds, member.round_seconds_longest = self._laps.of(member.index)
        return self._recorder.finish(self.members, seconds, in_force(self._protections), "wire")

    # --- one turn of the supervisor's loop ---------------------------------------------------------------------

    def _start(self, index: int) -> None:
        cast = self._reached
        member = MemberProcess(cast, index, self._folder, self._run, self._began, self._resumed, self._entry)
        self._fork(cast.names[index], cast.role(index), member)
        self._seats.append(index)

    def _fork(self, name: str, role: str, member: MemberProcess) -> None:
        index = len(self.children)
        child = fork(name, member.main, [child.link for child in self.children])
        self.children.append(child)
        self.members.append(Ended(index, name, "", role))
        self._selector.register(child.link.socket, selectors.EVENT_READ, index)

    def _turn(self, deadline: float, what: str, waiting: Callable[[int], bool]) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            late = [m.name for m in self.members if waiting(m.index)]
            raise BadInput(f"Waited in vain for {what} {', '.join(late)}; raise timing.start or timing.run.")
        until_fault = self._faults[0].at - time.monotonic() if self._faults else 1.0
        ready = self._selector.select(max(0.0, min(left, until_fault, 1.0)))
        if (
            not ready and until_fault > 0
        ):  # whoever watches is to see that this is alive, also while members start or compute
            self._watch(0, Note("waiting", {}), time.monotonic() - self._began, (0, 0))
        for key, _ in ready:
            self._hear(key.data)
        if self._failure:
            raise BadInput(self._failure)

    def _hear(self, index: int) -> None:
        messages, alive = self.children[index].link.drain()
        for message in messages:
            self._take(index, message)
        if not alive:
            self._bury(index)

    def _take(self, index: int, message: Mapping[str, Any]) -> None:
        member = self.members[index]
        if "note" in message and self._recorder:
            note = Note(message["note"], message["data"])
            self._recorder.note(index, note, message["t"], (message["sent"], message["received"]))
            member.bytes_sent, member.bytes_received = message["sent"], message["received"]
            self._laps.note(index, note.kind, message["t"])
            if note.kind in ("trained", "round") and not self._up.issuperset(range(self._cast.size)):
                self._come_up(index)
            if note.kind == "round":
                member.rounds = int(str(note.data["round"])) + 1
            self._watch(index, note, message["t"], (message["sent"], message["received"]))
        elif "card" in message:
            self._cards[index] = message["card"]
            self._hold_to(member.name, message["protections"])
            if self._recorder:  # it joins a mesh that is up
                member.id = str(Card.from_bytes(message["card"]).peer)
                self._recorder.joined(member.name, PeerId(member.id), self.children[index].pid)
                self.children[index].link.send({"roster": [message["card"]]})
        elif "failed" in message and index < self._cast.size:
            self._failure = message["failed"]
        elif "failed" in message:  # one that came later takes nobody with it
            self._words[index] = f"failed ({message['failed']})"
        elif "broken" in message:
            self._words[index] = f"failed ({message['broken']})"
        elif "report" in message:
            for name, value in message["report"].items():
                setattr(member, name, value)

    def _hold_to(self, name: str, protections: dict[str, str]) -> None:
        """Everybody is protected as everybody else on the same transport, or nothing begins: the record says one thing
        for all of them."""
        known = self._protections.setdefault(standing(self._reached.scenario, name)["name"], protections)
        differ = sorted(k for k in known.keys() | protections.keys() if known.get(k) != protections.get(k))
        if differ:
            said = ", ".join(f"{k} {protections.get(k, 'none')!r} instead of {known.get(k, 'none')!r}" for k in differ)
            self._failure = f"{name} is not protected as the others are ({said}); nothing was started."

    def _bury(self, index: int) -> None:
        child, member = self.children[index], self.members[index]
        self._selector.unregister(child.link.socket)
        while not child.poll():  # its socket is closed, so it is ending
            time.sleep(0.001)
        if member.ended != "running":
            return
        how = self._words.get(index) or child.ended()
        if not self._recorder and not self._failure:
            above = "" if index in self._words else "; what it said itself is above"
            self._failure = f"{member.name} {how} before the mesh was up{above}."
        self._lose(member, how)

    def _lose(self, member: Ended, how: str) -> None:
        """A member has ended without a report."""
        member.ended, index = how, member.index
        if self._recorder:
            self._note(index, Note("ended", {"how": how}))

    def _come_up(self, index: int) -> None:
        """A member has begun to train. Once all have, the time of faults begins: a start is another matter."""
        self._up.add(index)
        if self._up.issuperset(range(self._cast.size)):
            now, scenario, names = time.monotonic(), self._cast.scenario, self._cast.names
            self._faults = [replace(a, at=now + a.at) for a in actions(scenario.faults, scenario.churn, names)]

    # --- what goes wrong on purpose ----------------------------------------------------------------------------

    def _befall(self) -> None:
        """Do to members what is due; what comes after a member's end comes too late, and is not done."""
        while self._faults and self._faults[0].at <= time.monotonic():
            action = self._faults.pop(0)
            if action.what == "churn":
                self._churn()
            elif self.members[action.peer].ended == "running" and not self.children[action.peer].poll():
                self._do(action)

    def _do(self, action: Action) -> None:
        index, pid = action.peer, self.children[action.peer].pid
        if action.what == "kill":
            self._go_on(index)
            self._note(index, Note("fault", {"what": "kill"}))
            _signal([pid], signal.SIGKILL)
        elif action.what == "pause":
            self._note(index, Note("fault", {"what": "pause", "seconds": action.seconds}))
            _signal([pid], signal.SIGSTOP)  # itself first: it can start nothing any more
            self._paused[index] = [pid, *(p.pid for p in psutil.Process(pid).children(recursive=True))]
            _signal(self._paused[index][1:], signal.SIGSTOP)
        else:
            self._go_on(index)

    def _churn(self) -> None:
        """One member is killed, whoever the run's seed says, and another joins in its place, with its shard."""
        running = [m.index for m in self.members if m.ended == "running" and m.index in self._cards]
        if len(running) < 2:
            return
        number = len(self.members)
        victim = running[seed_number(self._cast.scenario.seed, "churn", number) % len(running)]
        self._do(Action(0.0, victim, "kill"))
        cards = [Card.from_bytes(self._cards[i]) for i in running if i != victim][-CONTACTS:]
        entry = Entry(self._entry.secret, {c.peer: c.address for c in cards})
        name, seat = f"peer:{number}", self._seats[victim]
        cast = self._reached.alone(seat, name)
        self._fork(name, "peer", MemberProcess(cast, 0, self._folder, self._run, self._began, entry=entry))
        self._seats.append(seat)
        self._note(number, Note("fault", {"what": "join", "seat": seat}))

    def _go_on(self, index: int) -> None:
        _signal(reversed(self._paused.pop(index, [])), signal.SIGCONT)

    def _note(self, index: int, note: Note) -> None:
        now, member = time.monotonic() - self._began, self.members[index]
        traffic = (member.bytes_sent, member.bytes_received)
        if self._recorder:
            self._recorder.note(index, note, now, traffic)
        self._watch(index, note, now, traffic)

    def _end_all(self) -> None:
        for index in list(self._paused):  # a worker ends by itself once its peer has, but not while it stands still
            self._go_on(index)
        with self._last:  # the broker last: it ends whatever happens to the others
            for child in self.children:
                child.kill()
            self._selector.close()


def _first_entry(cast: Cast, invite: Invite | None, identity: Identity | None) -> Entry:
    if invite:
        return Entry(invite.secret, invite.contacts, identity)
    return Entry(None if cast.scenario.door.allow else os.urandom(SECRET_BYTES))


def _signal(pids: Iterable[int], what: signal.Signals) -> None:
    """Send a signal to processes; one that has just ended needs none."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
