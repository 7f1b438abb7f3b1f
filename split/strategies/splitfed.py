"""SplitFed: many heads with one tail, in parallel; the heads are a swarm, and average themselves as any swarm does."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.gates import Averaging, Gate, InTurn
from veilmesh.split.strategies.loops import Swarming
from veilmesh.split.strategies.pipeline import SplitMachine

__all__ = ["SplitFed"]


@SPLITS.register("splitfed")
@dataclass(frozen=True)
class SplitFed:
    """Data owners train their heads with one tail at the same time, and average the heads after every round.

    `version` 1: the tail trains a copy for each of them and averages the copies too, which is FedAvg over the whole
    model; 2: one copy, trained by each in turn. `heads`: the protocol of swarm mode that averages the heads, over the
    scenario's topology. Source: Thapa et al., arXiv 2004.12088.
    """

    version: Literal[1, 2] = 1
    labels: Literal["sent", "held"] = "sent"
    heads: Annotated[str | dict[str, Any], Field(description="a strategy of swarm mode without a server")] = "gossip"

    owners: ClassVar[int | None] = None
    averages: ClassVar[bool] = True

    def plan(self, peers: int) -> Plan:
        if peers < 2:
            raise BadInput("splitfed averages the heads of several data owners; raise peers to 2 or more.")
        seats = (*(Seat(f"peer:{i}", "peer") for i in range(peers)), Seat("tail", "stage"))
        route = tuple((i, peers) for i in range(peers))
        return Plan(seats, route, connected(seats, route), self.labels, copies=self.version == 1)

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Swarming, self._gate)

    def _gate(self, kit: SplitKit, stage: int) -> Gate:
        return Averaging(kit, stage) if self.version == 1 else InTurn(kit)
