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

from veilmesh.attacks.matching.kinks import Kinks
from veilmesh.attacks.matching.rounding import RoughCurvature
from veilmesh.attacks.network import Network

__all__ = ["Differenced", "Prediction", "Predictor", "Rounded", "SingleGradient", "Surrogate", "Unrolled"]

_FEW = 4  # candidates from which on one map over them is faster than one after the other
_AGREES = 0.9  # share of pixels whose derivative has the same sign both ways; chance is a half

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
            return _recorded(self._mapped(x, y))
        # As the victim did it: no function transform stands between torch and its fastest kernels.
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        return _recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

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


class Differenced:
    """The same gradient, with a cheaper way back: a difference of two passes in place of a second derivative.

    d/dx <v, dL/dtheta> = d/de dL/dx (theta + e v) at e = 0: one more pass forward and back to the pictures, where the
    recorded way costs four. The kinks of the first pass are held still (`kinks.py`), so the difference is that of a
    function that is linear in each layer's parameters but for the loss and normalisations, which are smooth. The first
    time the two are compared: a network with kinks that are not known is differentiated twice after all.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._names = [name for name, _ in network.module.named_parameters()]
        self._at = torch.cat([p.detach().flatten() for p in network.parameters])
        self._there = self._at.clone()
        self._step = 3e-5 * self._at.norm()  # length of e v
        self._exact = SingleGradient(network)
        self._trusted: bool | None = None

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        if self._trusted is False:
            return self._exact.predict(x, y)
        ways = [self._one(one, labels) for one, labels in zip(x, y, strict=True)]

        def back(pull: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            slopes = [way.back(v.unsqueeze(0), []) for way, v in zip(ways, pull, strict=True)]
            if self._trusted is None:
                self._compare(x[:1].detach(), y[:1].detach(), pull[:1], slopes[0][0])
            through = [t for t in (x, y) if t.requires_grad]
            moved = [torch.stack(parts) for parts in zip(*slopes, strict=True)]
            return torch.autograd.grad(through, list(leaves), moved[: len(through)], materialize_grads=True)

        one = ways[0].gradient  # of one candidate, no copy: gradients are the largest things here
        return Prediction(torch.cat([way.gradient for way in ways]) if len(ways) > 1 else one, back)

    def _compare(self, x: Tensor, y: Tensor, pull: Tensor, slope: Tensor) -> None:
        leaf = x.requires_grad_(True)
        (exact,) = self._exact.predict(leaf, y).back(pull, [leaf])
        self._trusted = bool((exact[0].sign() == slope.sign()).float().mean() > _AGREES)

    def _one(self, x: Tensor, y: Tensor) -> Prediction:
        inputs = [t.detach().requires_grad_(True) if t.is_floating_point() else t for t in (x, y)]
        wanted = [t for t in inputs if t.requires_grad]
        kinks = Kinks()
        with kinks:
            loss = self._loss(self._network.parameters, inputs)
        slopes = torch.autograd.grad(loss, [*wanted, *self._network.parameters], materialize_grads=True)
        here, pieces = slopes[: len(wanted)], slopes[len(wanted) :]

        def back(pull: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            step = float(self._step / pull.norm().clamp_min(1e-30))
            torch.add(self._at, pull[0], alpha=step, out=self._there)
            with kinks.again():
                loss = self._loss(list(self._network.split(self._there)), inputs)
            there = torch.autograd.grad(loss, wanted)
            return [(b - a) / step for a, b in zip(here, there, strict=True)]

        return Prediction(torch.cat([piece.flatten() for piece in pieces]).unsqueeze(0), back)

    def _loss(self, parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
        x, y = inputs
        held = dict(zip(self._names, parameters, strict=True))
        logits = functional_call(self._network.module, held, (x.contiguous(memory_format=torch.channels_last),))
        return functional.cross_entropy(logits, y)


class Rounded:
    """The same gradient, as exact, with the way back in bfloat16 where it goes through convolutions (`rounding.py`).

    A prediction's gradient is good until the next prediction.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._curvature = RoughCurvature()
        self._flat = torch.empty(0)

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        size = sum(piece.numel() for piece in ways[0])
        if self._flat.shape != (len(ways), size):
            self._flat = x.new_empty((len(ways), size))
        for row, way in zip(self._flat, ways, strict=True):
            for part, piece in zip(self._network.split(row), way, strict=True):
                part.copy_(piece.detach())

        def back(pull: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            live = [
                (piece, part)
                for way, row in zip(ways, pull, strict=True)
                for piece, part in zip(way, self._network.split(row), strict=True)
                if piece.requires_grad
            ]
            pieces, parts = zip(*live, strict=True)
            return torch.autograd.grad(pieces, list(leaves), parts, materialize_grads=True)

        return Prediction(self._flat, back)

    def _way(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        with self._curvature:
            logits = self._network.module(x.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, y)
        return torch.autograd.grad(loss, self._network.parameters, create_graph=True, materialize_grads=True)


class Unrolled:
    """Several local steps of SGD from the network's parameters, recorded, and divided by minus rate times steps.

    Step s trains on the pictures s * batch, ..., in order, beginning anew behind the last (Geiping et al., section 5,
    "federated averaging"). Memory and time grow with the number of steps.
    """

    def __init__(self, network: Network, steps: int, batch: int, rate: float) -> None:
        self._network, self._steps, self._batch, self._rate = network, steps, batch, rate

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        return _recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

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
        return _recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

    def _gradient(self, x: Tensor, y: Tensor, alpha: Tensor) -> Sequence[Tensor]:
        here = [p.detach() + alpha * m for p, m in zip(self._network.parameters, self._moves, strict=True)]
        here = [p if p.requires_grad else p.requires_grad_(True) for p in here]
        loss = functional.cross_entropy(
            functional_call(self._network.module, dict(zip(self._names, here, strict=True)), (x,)), y
        )
        return torch.autograd.grad(loss, here, create_graph=True, materialize_grads=True)


def _recorded(pieces: Sequence[Tensor]) -> Prediction:
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
