"""What an update would have been, had the victim trained on candidate pictures: differentiable in the pictures.

Everything has a leading axis P of candidates that are searched for at the same time: restarts, or several victims who
began from the same parameters. Pictures x are (P, B, C, H, W); labels y are classes (P, B), or probabilities
(P, B, K), and where every pixel has a class, with H and W behind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from veilmesh.attacks.network import Network

__all__ = ["Prediction", "Predictor", "SingleGradient", "Surrogate", "Unrolled", "recorded"]

_FEW = 4  # candidates from which on one map over them is faster than one after the other

Back: TypeAlias = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Gradients (P, d) of P candidates, without history, and the way back.

    `back`: a derivative (P, d) and leaves, to what follows for the leaves: the vector-Jacobian product.
    """

    gradient: Tensor
    back: Back


class Predictor(Protocol):
    """From candidates to the updates they would have caused, divided by minus the step size."""

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        """The prediction for pictures `x` and labels `y`; `alpha` (P,) is for predictors that search it too."""
        ...


class SingleGradient:
    """The gradient of one batch at the parameters that the network holds.

    Several candidates go through one `vmap`, where the network allows it: small networks cost little more for ten of
    them than for one.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parameters = dict(network.module.named_parameters())
        self._batches: bool | None = None  # whether the network can be mapped over; not tried yet

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        if len(x) >= _FEW and self._can_batch(x, y):
            return recorded(self._mapped(x, y))
        # As the victim did it: no function transform stands between torch and its fastest kernels.
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        return recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

    def _way(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        loss = functional.cross_entropy(self._network.module(x), y)
        return torch.autograd.grad(loss, self._network.parameters, create_graph=True, materialize_grads=True)

    def _mapped(self, x: Tensor, y: Tensor) -> list[Tensor]:
        held = {name: p.detach() for name, p in self._parameters.items()}
        return list(vmap(grad(self._loss), in_dims=(None, 0, 0))(held, x, y).values())

    def _can_batch(self, x: Tensor, y: Tensor) -> bool:
        if self._batches is None:
            try:
                self._mapped(x.detach(), y.detach())
                self._batches = True
            except (RuntimeError, ValueError):  # torch's words for what cannot be mapped over
                self._batches = False
        return self._batches

    def _loss(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._network.module, parameters, (x,)), y)


class Unrolled:
    """Several local steps of SGD from the network's parameters, recorded, and divided by minus rate times steps.

    Step s trains on the pictures s * batch, ..., in order, beginning anew behind the last (Geiping et al., section 5,
    "federated averaging"). Memory and time grow with the number of steps.
    """

    def __init__(self, network: Network, steps: int, batch: int, rate: float) -> None:
        self._network, self._steps, self._batch, self._rate = network, steps, batch, rate

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        return recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

    def _way(self, x: Tensor, y: Tensor) -> list[Tensor]:
        names = [name for name, _ in self._network.module.named_parameters()]
        begin = [p.detach() for p in self._network.parameters]
        here = [p.clone().requires_grad_(True) for p in begin]
        for step in range(self._steps):
            some = torch.arange(step * self._batch, (step + 1) * self._batch, device=x.device) % len(x)
            logits = functional_call(self._network.module, dict(zip(names, here, strict=True)), (x[some],))
            loss = functional.cross_entropy(logits, y[some])
            slopes = torch.autograd.grad(loss, here, create_graph=True, materialize_grads=True)
            here = [p - self._rate * slope for p, slope in zip(here, slopes, strict=True)]
        stride = self._rate * self._steps
        return [(b - h) / stride for b, h in zip(begin, here, strict=True)]


class Surrogate:
    """One gradient of all pictures, somewhere on the straight way from where training began to where it ended.

    Where on it, `alpha` in [0, 1], is searched too (SME: Zhu et al., ICML 2023, "Surrogate model extension"). Long
    local training costs no more than a single gradient.
    """

    def __init__(self, network: Network, update: Tensor) -> None:
        """`update` (d,): what local training moved the network's parameters by."""
        self._network = network
        self._names = [name for name, _ in network.module.named_parameters()]
        self._moves = list(network.split(update))

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        at = x.new_full((len(x),), 0.5) if alpha is None else alpha
        ways = [self._gradient(one, labels, where) for one, labels, where in zip(x, y, at, strict=True)]
        return recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

    def _gradient(self, x: Tensor, y: Tensor, alpha: Tensor) -> Sequence[Tensor]:
        here = [p.detach() + alpha * m for p, m in zip(self._network.parameters, self._moves, strict=True)]
        here = [p if p.requires_grad else p.requires_grad_(True) for p in here]
        loss = functional.cross_entropy(
            functional_call(self._network.module, dict(zip(self._names, here, strict=True)), (x,)), y
        )
        return torch.autograd.grad(loss, here, create_graph=True, materialize_grads=True)


def recorded(pieces: Sequence[Tensor]) -> Prediction:
    """The way back through what torch recorded: `pieces` (P, ...) are the parameters', with history."""
    live = [number for number, piece in enumerate(pieces) if piece.requires_grad]
    sizes = [piece[0].numel() for piece in pieces]

    def back(pull: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
        parts = torch.split(pull, sizes, dim=1)
        return torch.autograd.grad(
            [pieces[n] for n in live],
            list(leaves),
            [parts[n].view_as(pieces[n]) for n in live],
            materialize_grads=True,
        )

    return Prediction(torch.cat([piece.detach().flatten(1) for piece in pieces], dim=1), back)
