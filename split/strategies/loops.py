"""What data owners do with their drivers: rounds one after the other, in turns, or as members of a swarm of heads."""

import numpy as np

from veilmesh.core import LocalError, Refusal, RemoteError, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import (
    CancelTimer,
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
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.peer.outcome import Outcome
from veilmesh.split import messages
from veilmesh.split.messages import Handover, Taken
from veilmesh.split.strategies.base import HeadEvaluate, HeadTrain, SplitKit
from veilmesh.split.strategies.driver import Driver, Quality

__all__ = ["Alone", "HeadTrained", "Swarming", "Turns"]

_RANGE = 1e6
"""The largest magnitude that another owner's parameters may have."""


class Alone:
    """One data owner: its rounds one after the other."""

    def __init__(self, kit: SplitKit, driver: Driver) -> None:
        self._kit = kit
        self._driver = driver
        self.accuracy: float | None = None
        self.rounds = 0

    def begin(self, now: float) -> list[Effect]:
        return self._driver.run(0, self._trained)

    def heard(self, event: Event, now: float) -> list[Effect] | None:
        return [] if isinstance(event, PeersChanged | TimerFired) else None

    def _trained(self, loss: float, parameters: Vector | None) -> list[Effect]:
        self.rounds += 1
        effects: list[Effect] = _noted(self.rounds - 1, loss)
        if _is_due(self._kit, self.rounds):
            effects += self._driver.question(self.rounds, self._scored)
        return [*effects, *self._next()]

    def _next(self) -> list[Effect]:
        return self._driver.run(self.rounds, self._trained) if self.rounds < self._kit.rounds else []

    def _scored(self, quality: Quality) -> list[Effect]:
        self.accuracy = quality.accuracy
        done = self._kit.rounds if self.rounds >= self._kit.rounds else self.rounds
        effects: list[Effect] = [_score(done, quality)]
        return [*effects, Stop("finished")] if self.rounds >= self._kit.rounds else effects


class Turns:
    """Data owners train in turn, a round each; each hands the head on to the next (Gupta and Raskar 2018, section 3.2).

    A round of the run is one turn of everybody. Who has handed the head on says so again until the next one has it;
    one that is gone is left out, and its predecessor's head goes to the one after it, who has no use for it if the one
    that is gone had handed its own on.
    """

    def __init__(self, kit: SplitKit, driver: Driver) -> None:
        self._kit = kit
        self._driver = driver
        self.accuracy: float | None = None
        self.rounds = 0
        self._turn = -1  # the last turn that was mine, or that I know of
        self._handed: Handover | None = None  # until the next one says that it has it
        self._last: Handover | None = None  # the last that somebody took: he may be gone before he hands on his own
        self._present: frozenset[PeerId] = frozenset()

    def begin(self, now: float) -> list[Effect]:
        self._present = frozenset(self._kit.order)
        return self._take(0, None) if self._kit.place == 0 else [self._deadline(now)]

    def heard(self, event: Event, now: float) -> list[Effect] | None:
        match event:
            case PeersChanged(present):
                self._present = present | {self._kit.me}
                last, heads = self._last, self._kit.plan.heads
                if self._handed is None and last and self._kit.order[last.round % heads] not in self._present:
                    self._handed, self._last = last, None
                if self._turn < 0 and not self._present.intersection(self._kit.order[: self._kit.place]):
                    return self._take(self._kit.place, None)  # who had the first turns is gone: it begins anew
                return self._pass_on(now) if self._handed else []
            case TimerFired("split-handover"):
                return self._pass_on(now)
            case TimerFired("split-turn"):
                return [Stop(f"no turn came within {self._patience:g} s")]
            case Received(sender, body) if sender in self._kit.order[: self._kit.plan.heads]:
                return self._received(sender, messages.decode(body), now)
        return None

    def _received(self, sender: PeerId, m: messages.Message, now: float) -> list[Effect]:
        match m:
            case Handover():
                return self._handed_over(sender, m)
            case Taken(round=turn):
                if self._handed is None or (turn, sender) != (self._handed.round, self._next_owner):
                    return []
                self._last, self._handed = self._handed, None
                return [CancelTimer("split-handover"), *self._after(now)]
        raise RemoteError(Refusal.MISMATCH, "a message of another protocol")

    def _handed_over(self, sender: PeerId, m: Handover) -> list[Effect]:
        """Somebody's head for my next turn. Raises RemoteError."""
        place, heads = self._kit.place, self._kit.plan.heads
        if m.round % heads != place or m.round >= self._kit.rounds * heads or self._kit.order.index(sender) != m.head:
            raise RemoteError(Refusal.MISMATCH, "a turn that is not mine")
        taken = Send(sender, messages.encode(Taken(place, m.round)))
        if m.round <= self._turn:
            return [taken]
        parameters = table.decode_lossless(m.blob, self._kit.size)
        if (np.abs(parameters) > _RANGE).any():
            raise RemoteError(Refusal.MISMATCH, f"parameters beyond {_RANGE:g}")
        self._last = None  # whoever had it has handed it on
        return [taken, *self._take(m.round, parameters)]

    @property
    def _next_owner(self) -> PeerId | None:
        return self._kit.order[self._handed.round % self._kit.plan.heads] if self._handed else None

    def _take(self, turn: int, parameters: Vector | None) -> list[Effect]:
        """My turn."""
        self._turn = turn
        round_ = turn // self._kit.plan.heads
        return [CancelTimer("split-turn"), *self._driver.run(round_, self._trained, parameters)]

    def _trained(self, loss: float, parameters: Vector | None) -> list[Effect]:
        self.rounds = self._turn // self._kit.plan.heads + 1
        effects: list[Effect] = _noted(self.rounds - 1, loss)
        if not _is_due(self._kit, self.rounds):
            return [*effects, *self._driver.fetch(self._hand)]
        return [*effects, *self._driver.question(self.rounds, self._scored)]

    def _scored(self, quality: Quality) -> list[Effect]:
        self.accuracy = quality.accuracy
        return [_score(self.rounds, quality), *self._driver.fetch(self._hand)]

    def _hand(self, parameters: Vector) -> list[Effect]:
        turn = self._turn + 1
        if turn >= self._kit.rounds * self._kit.plan.heads:
            return self._maybe_over()
        blob = table.encode(Dense(), parameters, generator(0, "lossless"))
        self._handed = Handover(self._kit.place, turn, blob)
        return self._pass_on(self._driver.now)

    def _pass_on(self, now: float) -> list[Effect]:
        """To whoever's turn is next, and is there."""
        if self._handed is None:
            return []
        turn, heads = self._handed.round, self._kit.plan.heads
        while turn < self._kit.rounds * heads and self._kit.order[turn % heads] not in self._present:
            turn += 1
        if turn >= self._kit.rounds * heads:
            self._handed = None
            return [CancelTimer("split-handover"), *self._after(now)]
        self._handed = Handover(self._kit.place, turn, self._handed.blob)
        if turn % heads == self._kit.place:  # nobody else is left
            parameters = table.decode_lossless(self._handed.blob, self._kit.size)
            self._handed = None
            return [CancelTimer("split-handover"), *self._take(turn, parameters)]
        to = self._kit.order[turn % heads]
        again = SetTimer("split-handover", now + self._kit.patience / 4)
        return [Send(to, messages.encode(self._handed)), again]

    def _after(self, now: float) -> list[Effect]:
        return self._maybe_over() or [self._deadline(now)]

    def _maybe_over(self) -> list[Effect]:
        return [Stop("finished")] if self.rounds >= self._kit.rounds else []

    @property
    def _patience(self) -> float:
        """A turn comes once everybody else has had theirs."""
        return self._kit.patience * self._kit.plan.heads * max(1, self._kit.steps)

    def _deadline(self, now: float) -> Effect:
        return SetTimer("split-turn", now + self._patience)


class HeadTrained:
    """What a swarm is told of a head's round: see `swarm.strategies.base.Trained`."""

    def __init__(self, update: Vector, loss: float, samples: int) -> None:
        self.update, self.loss, self.samples = update, loss, samples


class Swarming:
    """A head that is a member of a swarm: a round of split training is what the swarm's machine calls local training.

    Its messages, timers and works are its own; other data owners speak to it, and the players of stages do not.
    """

    def __init__(self, kit: SplitKit, driver: Driver) -> None:
        if kit.heads is None:
            raise LocalError("heads are to be averaged, and there is no machine that does it")
        self._kit = kit
        self._inner = kit.heads
        self._driver = driver
        self._near = frozenset(kit.order[: kit.plan.heads])
        self.accuracy: float | None = None
        self.rounds = 0

    def begin(self, now: float) -> list[Effect]:
        return self._said(self._inner.handle(Started(self._near - {self._kit.me}), now))

    def heard(self, event: Event, now: float) -> list[Effect] | None:
        match event:
            case Received(sender, _) if sender in self._near:
                return self._said(self._inner.handle(event, now))
            case PeersChanged(present):
                return self._said(self._inner.handle(PeersChanged(present & self._near), now))
            case TimerFired(name) if name.startswith("swarm/"):
                return self._said(self._inner.handle(TimerFired(name.removeprefix("swarm/")), now))
            case WorkDone(name, result) if name.startswith("swarm/"):
                return self._said(self._inner.handle(WorkDone(name.removeprefix("swarm/"), result), now))
            case WorkFailed(name, reason) if name.startswith("swarm/"):
                return self._said(self._inner.handle(WorkFailed(name.removeprefix("swarm/"), reason), now))
        return None

    def _said(self, effects: list[Effect]) -> list[Effect]:
        """The swarm machine's effects, as this member's."""
        return [e for effect in effects for e in self._one(effect)]

    def _one(self, effect: Effect) -> list[Effect]:
        match effect:
            case Work(name, HeadTrain(round=round_, parameters=parameters)):
                return self._driver.run(
                    round_, lambda loss, new: self._trained(name, parameters, loss, new), parameters
                )
            case Work(name, HeadEvaluate(parameters=parameters)):
                number = int(name.rpartition("-")[2])
                return self._driver.question(number, lambda quality: self._tell(name, quality), parameters)
            case Work(name, task):
                return [Work(f"swarm/{name}", task)]
            case SetTimer(name, at):
                return [SetTimer(f"swarm/{name}", at)]
            case CancelTimer(name):
                return [CancelTimer(f"swarm/{name}")]
            case Stop(Outcome() as outcome):
                self.accuracy, self.rounds = outcome.accuracy, outcome.rounds
                return [Stop(outcome.reason)]
        return [effect]

    def _trained(self, name: str, before: Vector, loss: float, after: Vector | None) -> list[Effect]:
        assert after is not None
        return self._tell(name, HeadTrained(after - before, loss, self._kit.samples))

    def _tell(self, name: str, result: object) -> list[Effect]:
        return self._said(self._inner.handle(WorkDone(name, result), self._driver.now))


def _noted(round_: int, loss: float) -> list[Effect]:
    return [Note("trained", {"round": round_, "loss": loss}), Note("round", {"round": round_})]


def _score(done: int, quality: Quality) -> Note:
    return Note("accuracy", {"round": done, "accuracy": quality.accuracy, "loss": quality.loss})


def _is_due(kit: SplitKit, done: int) -> bool:
    return done == kit.rounds or done % kit.evaluate_every == 0
