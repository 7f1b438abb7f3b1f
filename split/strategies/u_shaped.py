"""U-shaped split learning: the data owner has both ends of the network, and labels never leave it."""

from dataclasses import dataclass
from typing import ClassVar

from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.loops import Alone
from veilmesh.split.strategies.pipeline import SplitMachine
from veilmesh.split.strategies.vanilla import one_owner

__all__ = ["UShaped"]


@SPLITS.register("u-shaped")
@dataclass(frozen=True, slots=True)
class UShaped:
    """The data owner has the first stage and the last, another peer the body between: no labels and no outputs leave
    (Vepakomma et al., arXiv 1812.00564, section 2, "without label sharing")."""

    owners: ClassVar[int | None] = 1
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        one_owner("u-shaped", peers)
        seats = (Seat("peer:0", "peer"), Seat("body", "stage"))
        return Plan(seats, ((0, 1, 0),), connected(seats, [(0, 1, 0)]), "own")

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Alone)
