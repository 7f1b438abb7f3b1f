"""Vanilla split learning: a head with the data owner, a tail with another peer."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from veilmesh.core import BadInput
from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.loops import Alone
from veilmesh.split.strategies.pipeline import SplitMachine

__all__ = ["Vanilla", "one_owner"]


@SPLITS.register("vanilla")
@dataclass(frozen=True, slots=True)
class Vanilla:
    """One data owner with the head, one peer with the tail, which learns the labels (Gupta and Raskar 2018).

    `labels`: "sent" by the data owner with its activations, or "held" at the tail, whose rows are then aligned with the
    data owner's beforehand: a message says which rows it is about.
    """

    labels: Literal["sent", "held"] = "sent"

    owners: ClassVar[int | None] = 1
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        one_owner("vanilla", peers)
        seats = (Seat("peer:0", "peer"), Seat("tail", "stage"))
        return Plan(seats, ((0, 1),), connected(seats, [(0, 1)]), self.labels)

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Alone)


def one_owner(name: str, peers: int) -> None:
    """Raises BadInput unless there is just one data owner."""
    if peers != 1:
        raise BadInput(
            f"strategy {name!r} has one data owner, and whoever plays other stages comes on top of it; set peers = 1, "
            "or take splitfed or round-robin for several."
        )
