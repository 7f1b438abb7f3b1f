"""The centralised star, as machines like the others: a hub that averages, and clients that train.

Theory of operation (McMahan et al. 2017, "Communication-efficient learning of deep networks", algorithm 1): the hub
says the global model of round t; every client trains from it and says its update; the hub adds the average, weighted by
examples, in roster order, and begins round t+1. With one local step the update is -lr times the gradient: FedSGD.

The protocols of a star are one file each (`fedavg`, `fedsgd`, `fedprox`, `scaffold`) and differ in what a round's task
is, and in what is said besides a model and an update; rounds, deadlines and refusals are in `hub.py` and `client.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from veilmesh.core import LocalError
from veilmesh.peer.machine import Machine
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.client import ClientMachine
from veilmesh.swarm.strategies.hub import HubMachine

__all__ = ["ClientMachine", "HubMachine", "Star"]


@dataclass(frozen=True)
class Star:
    """What protocols with a server have in common. Subclasses are the protocols."""

    centralised: ClassVar[bool] = True
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        if kit.server is None:
            raise LocalError("a star has a server")
        return self._hub(kit) if kit.me == kit.server else self._client(kit)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return {}

    def _hub(self, kit: Kit) -> Machine:
        return HubMachine(kit)

    def _client(self, kit: Kit) -> Machine:
        return ClientMachine(kit)
