"""The machine of split mode: a data owner's half, stations, and what runs rounds; every protocol is put together here.

States of a data owner: what its conductor says, then CLOSING (waits for its last parameters) -> stopped. Members
without data serve until every data owner is done, or gone for longer than the patience. Where somebody who plays a
stage is gone, its data owner names a standby, and says so to everybody again whenever nothing comes.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import (
    Effect,
    Event,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    WorkDone,
    WorkFailed,
)
from veilmesh.peer.outcome import Outcome
from veilmesh.split import messages
from veilmesh.split.messages import (
    Activations,
    Answer,
    Ask,
    Diverged,
    Done,
    Gradients,
    Handover,
    Labels,
    Message,
    Replica,
    Rewire,
    Taken,
)
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.strategies.company import Company, Desk
from veilmesh.split.strategies.driver import RETRY, Driver
from veilmesh.split.strategies.gates import Free, Gate
from veilmesh.split.strategies.joined import Joined
from veilmesh.split.strategies.station import Station
from veilmesh.split.work import Fetch, StageState

__all__ = ["Conductor", "SplitMachine"]

_ABANDONED = "split-abandoned"


class Conductor(Protocol):
    """What a data owner does with its driver."""

    accuracy: float | None
    rounds: int  # done

    def begin(self, now: float) -> list[Effect]:
        """The mesh is up. Stop(reason) among the effects of this or any other call ends it."""
        ...

    def heard(self, event: Event, now: float) -> list[Effect] | None:
        """An event that is no business of stages; None if it is none of the conductor's either."""
        ...


class SplitMachine:
    """One member of a split run.

    Args:
        kit: what it knows.
        conduct: makes the conductor of a data owner.
        gate: makes what orders the examples of several data owners at a stage.
    """

    def __init__(
        self, kit: SplitKit, conduct: Callable[[SplitKit, Driver], Conductor],
        gate: Callable[[SplitKit, int], Gate] = lambda kit, stage: Free(),
    ) -> None:  # fmt: skip
        self._kit = kit
        self._company = Company(kit)
        self._desk = Desk()
        owner = kit.place < kit.plan.heads
        self._driver = Driver(kit, self._company, self._desk) if owner else None
        self._conductor = conduct(kit, self._driver) if self._driver else None
        self._stations: dict[tuple[int, int], Station] = {}
        for head, route in enumerate(kit.plan.route):
            for stage in range(1, len(route)):
                if route[stage] == kit.place:
                    self._play(head, stage)
        self._gates = {stage: gate(kit, stage) for stage in range(1, kit.plan.stages)}
        self._joined = Joined(kit)
        self._replicas: dict[tuple[int, int], dict[int, StageState]] = {}  # at a standby: the last few, by step
        self._over: dict[int, int] = {}  # data owners that are done: after how many rounds
        self._rounds = 0
        self._closing: str | None = None
        self._last: list[Vector] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self._driver:
            self._driver.now = now
        return self._ended(self._handle(event, now))

    def _handle(self, event: Event, now: float) -> list[Effect]:
        if self._closing is not None and not _is_last(event):
            return []
        match event:
            case Started(present):
                self._company.present = present
                return self._conductor.begin(now) if self._conductor else []
            case WorkFailed(name, reason) if _is_last(event):
                return [Note("failed", {"work": name, "reason": reason}), self._stop()]
            case WorkFailed(name, reason) if self._conductor is None or not name.startswith("swarm/"):
                return [Note("failed", {"work": name, "reason": reason}), Stop(reason)]
            case PeersChanged(present):
                return self._changed(present, now)
            case TimerFired(name) if name == RETRY and self._driver:
                return [*self._who_plays(), *self._driver.retry()]
            case TimerFired(name) if name == _ABANDONED:
                return [Stop(self._served() or "its data owner is gone")] if self._abandoned() else []
        heard = self._conductor.heard(event, now) if self._conductor else None
        if heard is not None:
            return heard
        match event:
            case WorkDone(name, result):
                return [] if name.startswith("average-") else self._desk.done(name, result)
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case TimerFired():
                return []  # one that was cancelled as it fired
        raise LocalError(f"nothing is to be done about a {type(event).__name__}")

    def _ended(self, effects: list[Effect]) -> list[Effect]:
        """Once rounds are counted, and turn the word that all is over into the member's own last steps."""
        kept: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Note) and effect.kind == "round":
                done = int(str(effect.data["round"])) + 1
                if done <= self._rounds:  # of one data owner after the other
                    continue
                self._rounds = done
            if not isinstance(effect, Stop) or isinstance(effect.result, Outcome):
                kept.append(effect)
            elif self._closing is None:
                kept += self._close(str(effect.result))
        return kept

    # --- what others say ---------------------------------------------------------------------------------------

    def _received(self, sender: PeerId, m: Message, now: float) -> list[Effect]:
        match m:
            case Activations(head=head, stage=stage):
                self._company.require(sender, head, stage - 1)
                return self._admitted(self._station(head, stage), m)
            case Labels(head=head, stage=stage):
                self._company.require(sender, head, 0)
                station, whole = self._station(head, stage), self._joined.labels(m)
                return [] if whole is None else station.activations(whole)
            case Gradients(head=head, stage=stage):
                self._company.require(sender, head, stage + 1)
                if stage == 0:
                    return self._own(head).gradients(m)
                return self._station(head, stage).gradients(m)
            case Ask(head=head, stage=stage):
                self._company.require(sender, head, stage - 1)
                station = self._station(head, stage)
                if head == self._kit.place:  # back where it came from
                    self._own(head).require_asked(m.number, m.part)
                return station.ask(m)
            case Answer(head=head, stage=stage):
                self._company.require(sender, head, stage + 1)
                return self._own(head).answer(m) if stage == 0 else self._station(head, stage).answer(m)
            case Replica():
                return self._replicated(sender, m)
            case Rewire():
                return self._rewired(sender, m)
            case Diverged(head=head, stage=stage, step=step):
                self._company.require(sender, head, stage)
                return self._own(head).diverged(stage, step)
            case Done(head=head, rounds=rounds):
                self._company.require(sender, head, 0)
                self._over[head] = rounds
                return self._without(now)
            case Handover() | Taken():
                raise RemoteError(Refusal.MISMATCH, "a message of another protocol")

    def _station(self, head: int, stage: int) -> Station:
        if (head, stage) not in self._stations:
            raise RemoteError(Refusal.MISMATCH, f"stage {stage} is played elsewhere")
        return self._stations[head, stage]

    def _own(self, head: int) -> Driver:
        if self._driver is None or head != self._kit.place:
            raise RemoteError(Refusal.MISMATCH, "for another data owner")
        return self._driver

    # --- stations ----------------------------------------------------------------------------------------------

    def _play(self, head: int, stage: int, copies: Mapping[int, StageState] | None = None) -> None:
        mine = head == self._kit.place and self._driver is not None
        told = self._driver.told if mine and self._driver else None
        answered = self._driver.answered if mine and self._driver else None
        station = Station(self._kit, self._company, self._desk, head, stage, told, answered, copies, self._stepped)
        self._stations[head, stage] = station

    def _admitted(self, station: Station, m: Activations) -> list[Effect]:
        station.check(m)
        if m.head == self._kit.place and not station.knows(m):  # back where they came from
            self._own(m.head).require_said(m.step, m.micro)
        if not station.knows(m) and not self._gates[m.stage].admits(m):
            return []
        if self._joined.needed and m.stage == self._kit.plan.stages - 1 and not station.knows(m):
            whole = self._joined.activations(m)
            return [] if whole is None else station.activations(whole)
        return station.activations(m)

    def _stepped(self, head: int, stage: int, step: int) -> list[Effect]:
        """A station has done a step."""
        return self._released(*self._gates[stage].stepped(head, step))

    def _released(self, effects: list[Effect], admitted: list[Activations]) -> list[Effect]:
        later = [e for m in admitted for e in self._station(m.head, m.stage).activations(m)]
        return [*effects, *later]

    # --- who comes and goes ------------------------------------------------------------------------------------

    def _changed(self, present: frozenset[PeerId], now: float) -> list[Effect]:
        self._company.present = present
        effects = self._without(now)
        if self._driver:
            effects += self._replaced()
        if self._conductor:
            effects += self._conductor.heard(PeersChanged(self._company.present), now) or []
        return effects

    def _without(self, now: float) -> list[Effect]:
        """Who is done, or gone, is not waited for; where nobody is left to serve, that is the end."""
        away = self._away()
        effects: list[Effect] = []
        for stage, gate in self._gates.items():
            if any(played == stage for _, played in self._stations):
                effects += self._released(*gate.gone(frozenset(away.union(self._over))))
        if self._driver:
            return effects
        if len(self._over) == self._kit.plan.heads:
            return [*effects, Stop(self._served() or "its data owner is gone")]
        return [*effects, SetTimer(_ABANDONED, now + self._kit.patience)] if self._abandoned() else effects

    def _away(self) -> set[int]:
        order, present = self._kit.order, self._company.present
        return {head for head in range(self._kit.plan.heads) if order[head] not in (*present, self._kit.me)}

    def _abandoned(self) -> bool:
        return self._driver is None and len(self._away().union(self._over)) == self._kit.plan.heads

    def _served(self) -> str | None:
        """How it ends for one that serves, as far as data owners have said that they are done."""
        if not self._over:
            return None
        rounds = max(self._over.values())
        return "finished" if rounds >= self._kit.rounds else f"its data owner stopped after {rounds} rounds"

    def _replaced(self) -> list[Effect]:
        """Who plays a stage for this data owner and is gone is replaced, if there is anybody."""
        effects: list[Effect] = []
        head = self._kit.place
        for stage in self._company.missing(head):
            if not self._company.standbys:
                continue
            standby, gone = self._company.standbys[0], self._company.name(head, stage)
            self._company.recast(head, stage, self._kit.order.index(standby))
            effects.append(Note("replaced", {"stage": stage, "gone": gone, "by": self._company.name(head, stage)}))
        if not effects or not self._driver:
            return effects
        return [*effects, *self._who_plays(), *self._driver.retry(soon=True)]

    def _who_plays(self) -> list[Effect]:
        """Who plays what in whose place; first of all to those who do not know it themselves."""
        others = [peer for peer in self._kit.order[self._kit.plan.heads :] if peer in self._company.present]
        effects: list[Effect] = []
        for (head, stage), player in sorted(self._company.recasts.items()):
            body = messages.encode(Rewire(head, stage, player))
            new = self._kit.order[player]
            effects += [Send(peer, body) for peer in sorted(others, key=lambda peer: (peer != new, peer))]
        return effects

    def _rewired(self, sender: PeerId, m: Rewire) -> list[Effect]:
        self._company.require(sender, m.head, 0)
        if not self._company.recast(m.head, m.stage, m.player):
            return []
        if m.player == self._kit.place:
            self._play(m.head, m.stage, self._replicas.pop((m.head, m.stage), {}))
        below = self._stations.get((m.head, m.stage - 1))
        return below.again() if below else []

    def _replicated(self, sender: PeerId, m: Replica) -> list[Effect]:
        self._company.require(sender, m.head, m.stage)
        if self._kit.place not in self._kit.plan.standbys or m.stage == 0 or (m.head, m.stage) in self._stations:
            raise RemoteError(Refusal.MISMATCH, "a copy for somebody who does not stand by")
        held = self._replicas.setdefault((m.head, m.stage), {})
        if m.step <= max(held, default=-1):
            return []
        held[m.step] = StageState(m.blob, m.start, m.state)
        for old in sorted(held)[: -1 - len(self._kit.plan.standbys)]:  # as many may die at once, each a step apart
            del held[old]
        round_, step = divmod(m.step + 1, self._kit.steps)
        return [] if step else [Note("round", {"round": round_ - 1})]

    # --- the end -----------------------------------------------------------------------------------------------

    def _close(self, reason: str) -> list[Effect]:
        """Say goodbye, and fetch what is left behind."""
        self._closing = reason
        effects: list[Effect] = []
        if self._driver:
            rounds = self._conductor.rounds if self._conductor else 0
            body = messages.encode(Done(self._kit.place, rounds))
            served = sorted({p for p in self._kit.order[self._kit.plan.heads :] if p in self._company.present})
            effects += [Send(peer, body) for peer in served]
        effects += [effect for station in self._stations.values() for effect in station.settle()]
        stages = {stage for _, stage in self._stations} | ({0} if self._driver else set())
        return [*effects, *self._fetch(tuple(sorted(stages)))]

    def _fetch(self, stages: tuple[int, ...]) -> list[Effect]:
        if not stages:
            return [self._stop()]

        def fetched(found: object) -> list[Effect]:
            self._last.append(np.asarray(found, np.float32))
            return self._fetch(stages[1:])

        head = self._kit.place if self._driver else 0
        return [self._desk.ask(f"last-{stages[0]}", Fetch(head, stages[0]), fetched)]

    def _stop(self) -> Stop:
        parameters = np.concatenate(self._last) if self._last else np.zeros(0, np.float32)
        accuracy = self._conductor.accuracy if self._conductor else None
        assert self._closing is not None
        rounds = self._conductor.rounds if self._conductor else self._rounds
        return Stop(Outcome(parameters, rounds, accuracy, self._closing))


def _is_last(event: Event) -> bool:
    """Whether it is about what a member leaves behind."""
    return isinstance(event, WorkDone | WorkFailed) and event.name.startswith("last-")
