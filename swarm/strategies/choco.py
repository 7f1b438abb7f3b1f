"""CHOCO-SGD: gossip that converges with any contractive codec, by a memory on both ends of every link.

Theory of operation (Koloskova, Stich and Jaggi 2019, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", algorithm 2): every peer keeps a public copy xhat_j of itself and of each neighbour,

    q_i = C(x_i^{t+1/2} - xhat_i);  xhat_i += q_i, at i and at its neighbours;  x_i += step sum_j W_ij (xhat_j - xhat_i)

This is the machine of `gossip.py`, states, deadlines and mending included. What makes it CHOCO-SGD is the consensus
step size: the copies lag behind the models by what the codec left out, and a step that is small against the codec's
quality keeps that lag from being amplified (theorem 2 there). But the models then stay far apart, and each of them
learns mostly from its own peer's data. So we go one step of mixing further than the paper: gradients are taken, and
models scored and left behind, at

    y_i = xhat_i + sum_j W_ij (xhat_j - xhat_i)

with the whole of W, which costs no byte, for all copies are there. x_i only carries what is still to be said. Where
everybody hears everybody all y_i are the same, and this is SGD with error feedback (Stich et al. 2018, "Sparsified SGD
with memory", algorithm 2), whatever the step. What x_i has over xhat_i is left out of y_i, unless the codec is lossless
and it is nothing but rounding: identity codec and step 1 are D-PSGD, to the bit.

What it costs: a peer does not see what it has learned until it has said it, so the learning rate must be small against
what the codec keeps. And where a peer trains is known to whoever hears all that it hears; in the paper it is not.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Keep, Machine, State
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.gossip import GossipMachine
from veilmesh.swarm.topology import lazy, metropolis_hastings

__all__ = ["Choco", "ChocoMachine"]


@STRATEGIES.register("choco")
@dataclass(frozen=True)
class Choco:
    """CHOCO-SGD: compressed gossip with memory, for lossy codecs.

    `step`: the consensus step size. Codecs that keep less need less: 0.8 suits eight bits, 0.5 one bit, 0.2 a tenth of
    the coordinates, 0.02 a hundredth; too much, and the models diverge, perhaps late. On the complete graph less costs
    nothing. `at`: where gradients are taken, and models scored: at the "mix" of the public copies, or, as in the paper,
    at the peer's "own" model.
    """

    step: Annotated[float, Field(gt=0, le=1)] = 0.2
    at: Literal["mix", "own"] = "mix"

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        return ChocoMachine(kit, self.step) if self.at == "mix" else GossipMachine(kit)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return lazy(metropolis_hastings(graph), self.step)


class ChocoMachine(GossipMachine):
    """One peer. Its `_x`, what it trains from and leaves behind, is y_i above; `_own` is x_i."""

    def __init__(self, kit: Kit, step: float) -> None:
        super().__init__(kit)
        self._step = step
        self._own = kit.initial

    def resume(self, kept: Keep) -> None:
        super().resume(kept)
        self._own = np.asarray(kept.state["own"], np.float32)

    def _state(self) -> State:
        return {**super()._state(), "own": self._own}

    def _base(self) -> Vector:
        return self._own

    def _settle(self, x: Vector) -> None:
        super()._settle(x)
        self._own = x

    def _outer(self, mixed: Vector) -> Vector:
        """The rows of W hold the step; y_i goes the whole way."""
        self._own = mixed
        heard, offsets = self._heard()
        said = self._half if self._kit.sealer.lossless else self._held.copies[self._kit.me]
        return self._kit.aggregator(said, offsets, [self._links.row[p] / self._step for p in heard])
