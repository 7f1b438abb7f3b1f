"""Nobody speaks: every peer trains by itself, on what it has. The floor of every comparison.

With one peer this is ordinary, centralised training; with several, what each of them could have had without the others.
Guards change what a peer trains on, as anywhere; nothing leaves it, so codecs and topologies do nothing.

States: trains round after round, waits for the last score, stops.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import networkx as nx
import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import (
    Effect,
    Event,
    Keep,
    Machine,
    Note,
    Received,
    Started,
    State,
    Stop,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.keeping import keep, recalled

__all__ = ["Alone", "AloneMachine"]


@STRATEGIES.register("alone")
@dataclass(frozen=True)
class Alone:
    """Every peer trains by itself, and says nothing; one peer is enough."""

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        return AloneMachine(kit)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return {i: {i: 1.0} for i in sorted(graph.nodes)}


class AloneMachine:
    """One peer that trains by itself."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._x = kit.initial
        self._round = 0
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started():  # the score of the rounds that were done before may not have been taken
                scores = 0 < self._round < self._kit.rounds
                return [*(self._evaluation.due(self._round, lambda: self._x) if scores else []), *self._train()]
            case WorkDone(name, result) if name.startswith("train"):
                return self._trained(cast(Trained, result))
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received():
                raise RemoteError(Refusal.MISMATCH, "a message where nobody speaks")
        return []

    def resume(self, kept: Keep) -> None:
        """Go on after the rounds of `kept`."""
        self._x = np.asarray(recalled(kept, self._evaluation)["x"], np.float32)
        self._round = kept.round

    def _train(self) -> list[Effect]:
        if self._round >= self._kit.rounds:
            return self._evaluation.due(self._round, lambda: self._x)
        return [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _trained(self, trained: Trained) -> list[Effect]:
        info = RoundInfo(self._round, trained.samples, start=self._x)
        model = self._x + self._kit.sealer.guard(trained.update, info)
        if reason := astray(model):
            return [self._stop(reason)]
        notes = [*self._kit.sealer.alarms(), *self._notes(trained)]
        self._x = model
        self._round += 1
        kept = keep(self._kit, self._round, self._evaluation, self._state)
        if self._round >= self._kit.rounds:
            return [*notes, *kept, *self._train()]
        return [*notes, *kept, *self._evaluation.due(self._round, lambda: self._x), *self._train()]

    def _notes(self, trained: Trained) -> list[Note]:
        return [
            Note("trained", {"round": self._round, "loss": trained.loss}),
            Note("round", {"round": self._round}),
        ]

    def _state(self) -> State:
        return {"x": self._x}

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))
