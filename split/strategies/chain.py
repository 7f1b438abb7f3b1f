"""A chain of stages: a head, middle peers, a tail; several micro-batches on their way at once, and standbys."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.loops import Alone
from veilmesh.split.strategies.pipeline import SplitMachine
from veilmesh.split.strategies.vanilla import one_owner

__all__ = ["Chain"]


@SPLITS.register("chain")
@dataclass(frozen=True, slots=True)
class Chain:
    """A head, `middles` peers, and a tail; a batch goes through in micro-batches, so that stages work at the same time.

    Every step ends before the next begins (Huang et al., arXiv 1811.06965, GPipe), so the weights are those of a chain
    without overlap. `standbys` peers get a copy of a stage after every step; one of them takes the place of a peer that
    dies, and what was on its way is said again (the idea of Petals and of SWARM parallelism, arXiv 2301.11913).
    `labels`: "sent" straight to the tail, past the middles, "held" there, or "own": then the data owner has the last
    stage too.
    """

    middles: Annotated[int, Field(ge=1, le=64)] = 2
    standbys: Annotated[int, Field(ge=0, le=16)] = 0
    labels: Literal["own", "sent", "held"] = "sent"

    owners: ClassVar[int | None] = 1
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        one_owner("chain", peers)
        names = [f"middle:{i}" for i in range(1, self.middles + 1)] + (["tail"] if self.labels != "own" else [])
        seats = (
            Seat("peer:0", "peer"),
            *(Seat(name, "stage") for name in names),
            *(Seat(f"standby:{i}", "standby") for i in range(1, self.standbys + 1)),
        )
        route = (*range(len(names) + 1), *((0,) if self.labels == "own" else ()))
        return Plan(seats, (route,), connected(seats, [route]), self.labels)

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Alone)
