"""FedSGD: FedAvg with exactly one local step, which a scenario with another number is refused for.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", section 2. The
machines of `star.py`, as they are.
"""

from dataclasses import dataclass

from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.star import Star

__all__ = ["FedSgd"]


@STRATEGIES.register("fedsgd")
@dataclass(frozen=True)
class FedSgd(Star):
    """One gradient step per client and round, averaged by a central server."""
