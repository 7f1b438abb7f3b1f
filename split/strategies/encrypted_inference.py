"""Encrypted inference: a network that one member trained by itself answers another's pictures without seeing them."""

from dataclasses import dataclass, replace
from typing import ClassVar

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto import encrypted_inference
from veilmesh.peer.machine import (
    Effect,
    Event,
    Machine,
    Note,
    PeersChanged,
    Received,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
)
from veilmesh.peer.outcome import Outcome
from veilmesh.split import messages
from veilmesh.split.messages import Ask
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.driver import Driver, Quality
from veilmesh.split.strategies.pipeline import SplitMachine
from veilmesh.split.strategies.vanilla import one_owner
from veilmesh.split.work import Returned, TrainRound

__all__ = ["EncryptedInference"]

_OWN = "own-"
_KEPT = 4
"""Parts of a question that are kept while training goes on; a data owner sends no more at a time."""


@SPLITS.register("encrypted-inference")
@dataclass(frozen=True, slots=True)
class EncryptedInference:
    """The tail trains the whole network on public pictures; the data owner asks it about its own, on ciphertexts.

    Nothing is cut. The tail learns how many pictures it is asked about, the data owner the answers
    (`crypto/encrypted_inference`). The model is an mlp with one hidden layer and the activation "square". Needs
    TenSEAL. The data owner asks whenever `evaluate_every` says so, about all of its test pictures; an answer takes
    seconds to minutes, and `timing.round` has to be longer.
    """

    owners: ClassVar[int | None] = 1
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        """As `SplitStrategy.plan`. Raises BadInput also where TenSEAL is not installed."""
        one_owner("encrypted-inference", peers)
        encrypted_inference.sizes(1, 1, 1)  # made of TenSEAL's parameters
        seats = (Seat("peer:0", "peer"), Seat("tail", "stage"))
        return Plan(seats, ((0, 1),), connected(seats, [(0, 1)]), "own", answers=True)

    def machine(self, kit: SplitKit) -> Machine:
        serves = SplitMachine(kit, Asking)
        return serves if kit.place == 0 else Training(kit, serves)


class Asking:
    """The conductor of a data owner that has nothing trained: a question whenever its rounds are due."""

    def __init__(self, kit: SplitKit, driver: Driver) -> None:
        self._kit = kit
        self._driver = driver
        self.accuracy: float | None = None
        self.rounds = 0

    def begin(self, now: float) -> list[Effect]:
        every = self._kit.evaluate_every
        due = min((self.rounds // every + 1) * every, self._kit.rounds)
        return self._driver.question(due, lambda quality: self._scored(due, quality, now))

    def heard(self, event: Event, now: float) -> list[Effect] | None:
        return [] if isinstance(event, PeersChanged | TimerFired) else None

    def _scored(self, due: int, quality: Quality, now: float) -> list[Effect]:
        self.rounds, self.accuracy = due, quality.accuracy
        score = {"round": due, "accuracy": quality.accuracy, "loss": quality.loss}
        effects: list[Effect] = [Note("round", {"round": due - 1}), Note("accuracy", score)]
        return [*effects, *([Stop("finished")] if due == self._kit.rounds else self.begin(now))]


class Training:
    """Whoever has the network: its own rounds, one after the other; a question about rounds to come waits for them.

    Args:
        kit: what it knows.
        serves: answers questions.
    """

    def __init__(self, kit: SplitKit, serves: SplitMachine) -> None:
        self._kit = kit
        self._serves = serves
        self._trained = 0
        self._early: dict[int, Received] = {}  # by part, of the next question

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [*self._serves.handle(event, now), self._train()]
            case WorkDone(name, Returned(loss=loss)) if name.startswith(_OWN):
                return self._learned(loss, now)
            case Received() if self._trained < self._kit.rounds and self._waits(event):
                return []
        return [self._counted(effect) for effect in self._serves.handle(event, now)]

    def _train(self) -> Work:
        return Work(f"{_OWN}{self._trained}", TrainRound(self._trained))

    def _learned(self, loss: float, now: float) -> list[Effect]:
        round_ = self._trained
        self._trained += 1
        effects: list[Effect] = [
            Note("trained", {"round": round_, "loss": loss}),
            Note("round", {"round": round_}),
        ]
        early, self._early = self._early, {}
        effects += [effect for _, event in sorted(early.items()) for effect in self.handle(event, now)]
        return [*effects, self._train()] if self._trained < self._kit.rounds else effects

    def _waits(self, event: Received) -> bool:
        """Whether what came is a question about rounds to come; then it is kept. Raises RemoteError."""
        m = messages.decode(event.body)
        if not isinstance(m, Ask) or m.number <= self._trained:
            return False
        if m.head != 0 or event.sender != self._kit.order[0]:
            raise RemoteError(Refusal.MISMATCH, "said by one whose part it is not")
        if m.number > self._kit.rounds or m.stage != 1:
            raise RemoteError(Refusal.MISMATCH, "a question that nobody can answer")
        if m.part in self._early or len(self._early) < _KEPT:
            self._early[m.part] = event
        return True

    def _counted(self, effect: Effect) -> Effect:
        """A last word, with the rounds that were trained here."""
        if isinstance(effect, Stop) and isinstance(effect.result, Outcome):
            return Stop(replace(effect.result, rounds=self._trained))
        return effect
