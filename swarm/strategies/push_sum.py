"""Push-sum, or stochastic gradient push (SGP): gossip on directed graphs that change every round.

Theory of operation (Assran et al. 2019, "Stochastic gradient push for distributed deep learning", algorithm 1; push-sum
itself is Kempe, Dobra and Gehrke 2003). A peer has mass x and weight w, at first (x_0, 1), and the model z = x / w:

    x_i += u_i(z_i)                                     local training at the de-biased model, after the guards
    (x_j, w_j) += p_ji (x_i, w_i) for every out-peer j; i keeps the rest
    z_i  = x_i / w_i                                    the bias of a graph that is not balanced divides out

The shares a sender gives add up to what it loses, whatever the graph: sums of x and of w over peers and messages in
flight never change but by training. So a share that comes late is added when it comes, and only one that is lost takes
its mass along.

Here x is kept as the deviation from the common beginning, y = x - w x_0. What a codec leaves out of a share stays with
its sender, which keeps the mass exact with any codec; a codec that says some coordinates only moves weight on those
only, so w is a vector then, and every coordinate runs a push-sum of its own. A codec as coarse as the sign makes models
noisy nevertheless (there are no public copies on a graph that changes); 8 bits are harmless.

Divisions by a small w would amplify training; below `FLOOR` a peer gives nothing away.

States: see `scheduled.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import Machine, State
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import exponential_hops, exponential_out, random_out
from veilmesh.swarm.sealer import RANGE, astray
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.scheduled import ScheduledMachine
from veilmesh.swarm.topology import metropolis_hastings

__all__ = ["FLOOR", "PushSum", "PushSumMachine"]

FLOOR = 1 / 16
"""The push-sum weight that a peer keeps in any case; the mean over all peers is 1."""

Share = tuple[Vector, NDArray[np.float64], Mask | None]
"""Values (d,), weights (d,) or (1,), and the coordinates that were said."""


@STRATEGIES.register("push-sum")
@dataclass(frozen=True)
class PushSum:
    """Stochastic gradient push on directed graphs that change every round.

    `graph`: "exponential", one out-peer at distance 1, 2, 4, ... in turn (as far as the topology has those links), or
    "random", `out` out-peers drawn among the neighbours.
    """

    graph: Literal["exponential", "random"] = "exponential"
    out: Annotated[int, Field(ge=1)] = 2

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        return PushSumMachine(kit, self.out if self.graph == "random" else 0)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        rows = metropolis_hastings(graph)
        if self.graph == "exponential" and len(rows) > 1 and not exponential_hops(rows):
            raise BadInput(
                "The exponential graph of push-sum needs a link from every peer to the next; "
                "set topology to complete or ring, or strategy.graph to random."
            )
        return rows


class PushSumMachine(ScheduledMachine[Share]):
    """One peer of a push-sum; `out` random out-peers a round, or with 0 the exponential graph."""

    def __init__(self, kit: Kit, out: int) -> None:
        self._count = out
        self._hops = exponential_hops(kit.rows)
        self._y = np.zeros_like(kit.initial)
        self._w = np.ones(1)
        super().__init__(kit)

    def mass(self) -> tuple[Vector, NDArray[np.float64]]:
        """Deviation from the common beginning (d,) and push-sum weight (d,) of this peer and of what waits in it."""
        waiting = [part for heard in self._heard.values() for part in heard.values() if part is not None]
        return _sum(self._y, self._w, waiting)

    def _out(self, round_: int, peer: int) -> tuple[int, ...]:
        if self._count:
            return random_out(self._kit.rows, self._kit.seed, round_, peer, self._count)
        return exponential_out(self._hops, round_, peer, len(self._kit.order))

    def _model(self) -> Vector:
        return self._kit.initial + (self._y / self._w).astype(np.float32)

    def _state(self) -> State:
        return {"y": self._y, "w": self._w}

    def _restore(self, state: State) -> None:
        self._y, self._w = np.asarray(state["y"], np.float32), np.asarray(state["w"], np.float64)

    def _share(self, update: Vector, samples: int, receivers: int) -> messages.Message | str:
        y = self._y + update
        if reason := astray(y) or astray(self._kit.initial + y):
            return reason
        given = np.minimum(self._w / (1 + receivers), np.maximum(self._w - FLOOR, 0) / max(receivers, 1))
        given = given.astype(np.float32).astype(np.float64)  # as it will be read
        blob, values = self._kit.sealer.encode((y * (given / self._w)).astype(np.float32), self._round)
        said = table.decode(blob, self._kit.sealer.dimension).said
        self._y = y - np.float32(receivers) * values
        told = given if said is None else np.broadcast_to(given, y.shape)[said]
        self._w = self._w - receivers * (given if said is None else np.where(said, given, 0))
        return messages.Share(self._round, samples, blob, _encoded(told))

    def _read(self, message: messages.Message) -> Share:
        if not isinstance(message, messages.Share):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in a push-sum")
        decoded = self._kit.sealer.decode(message.blob)
        weights = self._read_weights(message.weights, decoded.said)
        if (np.abs(decoded.values) > RANGE * weights.max(initial=0)).any():
            raise RemoteError(Refusal.MISMATCH, "more mass than its weight allows")
        return decoded.values, weights, decoded.said

    def _read_weights(self, blob: bytes, said: Mask | None) -> NDArray[np.float64]:
        count = self._kit.sealer.dimension if said is None else int(said.sum())
        one = said is None and len(blob) == len(_encoded(np.ones(1)))
        weights = table.decode_lossless(blob, 1 if one else count).astype(np.float64)
        if (weights < 0).any() or (weights > len(self._kit.order)).any():
            raise RemoteError(Refusal.MISMATCH, "a weight that no peer can have")
        if said is None:
            return weights
        spread = np.zeros(said.size)
        spread[said] = weights
        return spread

    def _take_in(self, parts: Sequence[Share]) -> None:
        self._y, self._w = _sum(self._y, self._w, parts)


def _sum(y: Vector, w: NDArray[np.float64], parts: Sequence[Share]) -> tuple[Vector, NDArray[np.float64]]:
    for values, weights, _ in parts:
        y = y + values
        w = w + weights
    return y, w


def _encoded(weights: NDArray[np.float64]) -> bytes:
    return table.encode(Dense(), weights.astype(np.float32), np.random.default_rng(0))
