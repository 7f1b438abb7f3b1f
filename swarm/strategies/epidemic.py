"""Epidemic learning: every round, everybody's model to a few peers drawn anew.

Theory of operation (De Vos et al. 2023, "Epidemic learning: boosting decentralized learning with randomized
communication", algorithm 1, EL-Local):

    x_i^{t+1/2} = x_i^t + u_i^t                           local training, after the guards
    said to s peers, drawn uniformly among the neighbours
    x_i^{t+1}   = (x_i^{t+1/2} + sum of the received) / (1 + received)

Nobody can choose whom to listen to or speak to: the draws follow from a public seed, and what comes out of turn is
refused. What arrives after its round is of no use any more, and dropped.

Models are said as deviations from the common beginning: who hears whom changes, so there is no public copy to take
differences from. A codec that says some coordinates only is averaged on those, each with as many as said it.

States: see `scheduled.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import Machine, State
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import random_out
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.scheduled import ScheduledMachine
from veilmesh.swarm.topology import metropolis_hastings

__all__ = ["Epidemic", "EpidemicMachine"]

Model = tuple[int, Vector, Mask | None]
"""Its round, the deviation from the common beginning (d,), and which coordinates were said."""


@STRATEGIES.register("epidemic")
@dataclass(frozen=True)
class Epidemic:
    """Epidemic learning: every round, everybody's model to `s` neighbours drawn anew; uniform averages."""

    s: Annotated[int, Field(ge=1)] = 3

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        return EpidemicMachine(kit, self.s)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return metropolis_hastings(graph)


class EpidemicMachine(ScheduledMachine[Model]):
    """One peer that tells its model to `s` others in a round."""

    def __init__(self, kit: Kit, s: int) -> None:
        self._s = s
        self._y = np.zeros_like(kit.initial)  # the model's deviation from the common beginning
        super().__init__(kit)

    def _out(self, round_: int, peer: int) -> tuple[int, ...]:
        return random_out(self._kit.rows, self._kit.seed, round_, peer, self._s)

    def _model(self) -> Vector:
        return self._kit.initial + self._y

    def _state(self) -> State:
        return {"y": self._y}

    def _restore(self, state: State) -> None:
        self._y = np.asarray(state["y"], np.float32)

    def _share(self, update: Vector, samples: int, receivers: int) -> messages.Message | str:
        y = self._y + update
        if reason := astray(y) or astray(self._kit.initial + y):
            return reason
        self._y = y
        blob, _ = self._kit.sealer.encode(y, self._round)
        return messages.Update(self._round, samples, blob)

    def _read(self, message: messages.Message) -> Model:
        if not isinstance(message, messages.Update):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in epidemic learning")
        decoded = self._kit.sealer.decode(message.blob)
        return message.round, decoded.values, decoded.said

    def _take_in(self, parts: Sequence[Model]) -> None:
        total, count = self._y.copy(), np.ones(1, np.float32)
        for round_, values, said in parts:
            if round_ == self._round:
                total += values
                count = count + (np.float32(1) if said is None else said.astype(np.float32))
        self._y = total / count
