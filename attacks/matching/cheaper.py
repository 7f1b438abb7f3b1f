"""Single gradients of large networks, whose way back to the pictures is cheaper than differentiating twice.

As `predict.py`, and for the same candidates; one after the other, as networks are large.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from veilmesh.attacks.matching.kinks import Kinks
from veilmesh.attacks.matching.predict import Prediction, SingleGradient
from veilmesh.attacks.matching.rounding import RoughCurvature
from veilmesh.attacks.network import Network

__all__ = ["Differenced", "Rounded"]

_AGREES = 0.9  # share of pixels whose derivative has the same sign both ways; chance is a half


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
