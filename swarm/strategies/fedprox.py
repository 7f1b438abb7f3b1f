"""FedProx: FedAvg whose clients are held near the global model while they train.

Theory of operation (Li et al. 2020, "Federated optimization in heterogeneous networks", algorithm 2): client i takes
its local steps on

    h_i(x) = F_i(x) + mu / 2 ||x - x^t||^2

instead of F_i, so several local steps drift less far towards what is best for its own data alone. Hub and messages are
those of FedAvg; the term is the worker's business. With mu = 0, or with one local step (the term's gradient is zero at
x^t), this is FedAvg to the bit. The paper lets clients do different amounts of work; here all take as many steps.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from veilmesh.peer.machine import Machine
from veilmesh.swarm.strategies.base import STRATEGIES, Kit
from veilmesh.swarm.strategies.star import ClientMachine, Star

__all__ = ["FedProx"]


@STRATEGIES.register("fedprox")
@dataclass(frozen=True)
class FedProx(Star):
    """Federated averaging with a proximal term, against client drift.

    `mu`: the weight of the proximal term. Above 1 / (learning rate) local steps would overshoot x^t.
    """

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def _client(self, kit: Kit) -> Machine:
        return _ProximalClient(kit, self.mu)


class _ProximalClient(ClientMachine):
    """A client that is held near the model its round began with."""

    def __init__(self, kit: Kit, mu: float) -> None:
        super().__init__(kit)
        self._mu = mu

    def _task(self) -> object:
        return self._kit.work.train(self._round, self._x, proximal=self._mu)
