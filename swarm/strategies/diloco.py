"""DiLoCo without a server: many local steps, gossip, and an outer Nesterov step on what mixing made of them.

Theory of operation (Douillard et al. 2023, "DiLoCo: distributed low-communication training of language models",
algorithm 1; outer step size 0.7 and momentum 0.9 as there, and as in OpenDiLoCo, Jaghouar et al. 2024). A round is the
H inner steps of `training.local_steps`. With the outer gradient D = x^t - mean_i x_i^{t+1/2},

    v^{t+1} = mu v^t + D;   x^{t+1} = x^t - lr (D + mu v^{t+1})

Here no server takes the mean: peer i mixes over the graph as in `gossip.py`, states, public copies and mending
included, and applies the outer optimizer to its own move, D_i = x_i^t - x_i^mixed. On a complete graph with a lossless
codec x^mixed is the mean at every peer, so all stay alike up to rounding, and this is DiLoCo. On any other graph it is
D-PSGD with local steps whose every peer has an outer optimizer of its own: momentum also pushes along what peers
disagree in. That dies out while every eigenvalue of W is above 1 - 2 (1 + mu) / (lr (1 + 2 mu)), which is -0.94 for the
defaults; with a larger lr, or on a graph of two halves that hardly know their own kind, a smaller `step` helps.

The inner optimizer of the paper is AdamW, its state kept between rounds; here it is what the scenario's training says,
and its state begins afresh in every round. lr 1 and mu 0: gossip, to the bit.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Keep, Machine, State
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.gossip import GossipMachine
from veilmesh.swarm.topology import lazy, metropolis_hastings

__all__ = ["DiLoCo", "DiLoCoMachine", "nesterov"]


@STRATEGIES.register("diloco")
@dataclass(frozen=True)
class DiLoCo:
    """DiLoCo over gossip: many local steps a round, then an outer Nesterov step on the mixed move.

    `step`: the consensus step size, as in gossip; a lossy codec needs less than 1.
    """

    outer_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.7
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    step: Annotated[float, Field(gt=0, le=1)] = 1.0

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        return DiLoCoMachine(kit, self.outer_lr, self.outer_momentum)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return lazy(metropolis_hastings(graph), self.step)


class DiLoCoMachine(GossipMachine):
    """One peer of a DiLoCo: a gossip with an outer optimizer."""

    def __init__(self, kit: Kit, outer_lr: float, outer_momentum: float) -> None:
        super().__init__(kit)
        self._outer_lr, self._outer_momentum = outer_lr, outer_momentum
        self._velocity: Vector = np.zeros_like(kit.initial)

    def resume(self, kept: Keep) -> None:
        super().resume(kept)
        self._velocity = np.asarray(kept.state["velocity"], np.float32)

    def _state(self) -> State:
        return {**super()._state(), "velocity": self._velocity}

    def _settle(self, x: Vector) -> None:
        super()._settle(x)
        self._velocity = np.zeros_like(x)  # it was gathered on a way that this model has not come

    def _outer(self, mixed: Vector) -> Vector:
        if self._outer_lr == 1 and self._outer_momentum == 0:
            return mixed  # x + (mixed - x) would round
        self._velocity, x = nesterov(self._x, mixed, self._velocity, self._outer_lr, self._outer_momentum)
        return x


def nesterov(x: Vector, mixed: Vector, velocity: Vector, lr: float, momentum: float) -> tuple[Vector, Vector]:
    """The next velocity and the next model, (d,) each, of a peer that a round has brought from `x` to `mixed`."""
    move = mixed - x
    velocity = (np.float32(momentum) * velocity + move).astype(np.float32)
    return velocity, (x + np.float32(lr) * (move + np.float32(momentum) * velocity)).astype(np.float32)
