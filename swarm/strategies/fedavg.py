"""FedAvg: some local steps per client and round, averaged by a central server.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1, with all
clients in every round. The machines of `star.py`, as they are.
"""

from dataclasses import dataclass

from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.star import Star

__all__ = ["FedAvg"]


@STRATEGIES.register("fedavg")
@dataclass(frozen=True)
class FedAvg(Star):
    """Federated averaging through a central server."""
