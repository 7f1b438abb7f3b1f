"""Split learning of several data owners in turn: whoever has trained hands its head on."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from veilmesh.core import BadInput
from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.loops import Turns
from veilmesh.split.strategies.pipeline import SplitMachine

__all__ = ["RoundRobin"]


@SPLITS.register("round-robin")
@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Data owners train with one tail, one after the other, and hand the head's weights on (Gupta and Raskar 2018)."""

    labels: Literal["sent", "held"] = "sent"

    owners: ClassVar[int | None] = None
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        if peers < 2:
            raise BadInput("round-robin needs data owners that hand the head on; raise peers to 2 or more.")
        seats = (*(Seat(f"peer:{i}", "peer") for i in range(peers)), Seat("tail", "stage"))
        route = tuple((i, peers) for i in range(peers))
        links = {*connected(seats, route), *((i, j) for i in range(peers) for j in range(i + 1, peers))}
        return Plan(seats, route, tuple(sorted(links)), self.labels, takes_turns=True)

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Turns)
