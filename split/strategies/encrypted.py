"""Split learning through a linear layer on ciphertexts: whoever has the layer learns nothing of data or labels."""

from dataclasses import dataclass
from typing import ClassVar

from veilmesh.crypto import encrypted_linear
from veilmesh.peer.machine import Machine
from veilmesh.split.strategies.base import SPLITS, Plan, Seat, SplitKit, connected
from veilmesh.split.strategies.loops import Alone
from veilmesh.split.strategies.pipeline import SplitMachine
from veilmesh.split.strategies.vanilla import one_owner

__all__ = ["Encrypted"]


@SPLITS.register("encrypted")
@dataclass(frozen=True, slots=True)
class Encrypted:
    """As u-shaped, with a body that is one linear layer and works on ciphertexts; the data owner's share of it is what
    is trained (`crypto/encrypted_training`). Needs TenSEAL. Without `split.cuts`, the body is the last linear layer.
    """

    owners: ClassVar[int | None] = 1
    averages: ClassVar[bool] = False

    def plan(self, peers: int) -> Plan:
        """As `SplitStrategy.plan`. Raises BadInput also where TenSEAL is not installed."""
        one_owner("encrypted", peers)
        encrypted_linear.sizes(1, 1, 1)  # made of TenSEAL's parameters
        seats = (Seat("peer:0", "peer"), Seat("body", "stage"))
        return Plan(seats, ((0, 1, 0),), connected(seats, [(0, 1, 0)]), "own", encrypted=True)

    def machine(self, kit: SplitKit) -> Machine:
        return SplitMachine(kit, Alone)
