"""What a shared hypernetwork's update would have been: without the classifier, or with everything private guessed.

Of HyperFL (Guo et al. 2025) an attacker reads the extractor theta and g = dL/dtheta (`seen/hypernetwork.py`), and has
neither the classifier nor the label. It needs neither: with a(x; theta) what the last generated layer gives and
delta = dL/da a constant, dL/dtheta is the gradient of <delta, a(x; theta)>. Behind one picture, delta is the gradient
of that layer's bias. Behind several, each has a delta of its own, and with h(x) what enters that layer, its gradient
is [dL/dW, dL/db] = sum_n delta_n [h(x_n), 1]: for any candidates, least squares say the deltas.

Where the last generated layer is none of units (a convolution), a is what enters the classifier. Behind one picture,
and if every number of the last bias moves one feature and no other's, as before average pooling, delta_c is its
gradient over how far it moves that feature. Elsewhere delta is searched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.matching.predict import Prediction, recorded
from veilmesh.attacks.seen.hypernetwork import Reading
from veilmesh.tasks.models.hypernetwork import Hypernetwork

__all__ = ["Functional", "Guessed"]

Parts = dict[str, Tensor]

_DEAD = 1e-6  # of a feature: a unit that nothing moves
_RIDGE = 1e-6  # of the mean square of what enters a layer: candidates may be alike


class Functional:
    """The gradient of <delta, a(x; theta)>, as the reading sees it. Where delta is searched, it is `alpha` (P, B,
    `searched`), up to a factor; `searched` is 0 where it is known, or follows from the candidates."""

    def __init__(self, net: Hypernetwork, reading: Reading, batch: int, shape: tuple[int, int, int]) -> None:
        self._net, self._reading = net, reading
        self._leaves = {name: part.detach().requires_grad_() for name, part in reading.theta.items()}
        self._psi = {name: torch.zeros(net.shapes[name]) for name in net.own}
        self._gradient = self._by_name() if reading.whole else {}
        self._last = net.names[-1]
        layer = net.network.get_submodule(self._last.rpartition(".")[0])
        self._layer = layer if isinstance(layer, nn.Linear) else None
        probe = self._activations(torch.linspace(0, 1, steps=shape[0] * shape[1] * shape[2]).view(1, *shape))[1]
        self._read = batch == 1 and self._is_read(probe)
        self._solved = None if self._read else self._last_gradient()
        self.searched = 0 if self._read or self._solved is not None else probe.shape[1]

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        """As `Predictor.predict`; labels `y` are of no use."""
        pulls: Sequence[Tensor | None] = [None] * len(x) if alpha is None else list(alpha)
        return recorded([torch.stack([self._way(one, pull) for one, pull in zip(x, pulls, strict=True)])])

    def _way(self, x: Tensor, pull: Tensor | None) -> Tensor:
        entered, found = self._activations(x)
        if pull is not None:
            delta = pull
        else:
            delta = self._said(found) if self._solved is None else _solved(entered.detach(), self._solved)
        leaves = list(self._leaves.values())
        slopes = torch.autograd.grad((delta * found).sum(), leaves, create_graph=True, materialize_grads=True)
        return self._reading.sees(torch.cat([slope.reshape(-1) for slope in slopes]))

    def _said(self, found: Tensor) -> Tensor:
        """delta (1, F) behind one picture, with the activations `found`."""
        if self._layer is not None:
            return self._gradient[self._last][None]
        (moved,) = torch.autograd.grad(found.sum(), self._leaves[self._last], retain_graph=True)
        alive = moved.abs() > _DEAD
        return torch.where(alive, self._gradient[self._last] / torch.where(alive, moved, 1.0), 0.0)[None]

    def _activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the last generated layer and what it gives, (B, n) and (B, F), for pictures (B, C, H, W); where
        it has no units, both are what enters the classifier."""
        seen: list[Tensor] = []
        if self._layer is not None:
            handle = self._layer.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
        else:
            entry = self._net.network.get_submodule(self._net.own[0].rpartition(".")[0])
            handle = entry.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._net.forward(self._leaves, self._psi, x)
        finally:
            handle.remove()
        return seen[0].flatten(1), seen[-1].flatten(1)

    def _by_name(self) -> Parts:
        pieces = torch.split(self._reading.gradient, [part.numel() for part in self._leaves.values()])
        return {name: piece.view_as(part) for (name, part), piece in zip(self._leaves.items(), pieces, strict=True)}

    def _is_read(self, probe: Tensor) -> bool:
        """Whether the last bias says what delta is, for activations `probe` (1, F) of any picture."""
        if self._last not in self._gradient or self._leaves[self._last].shape != probe.shape[1:]:
            return False
        if self._layer is not None:
            return True
        (moved,) = torch.autograd.grad(probe[0, 0], self._leaves[self._last], materialize_grads=True)
        return not bool(moved[1:].any())

    def _last_gradient(self) -> Tensor | None:
        """That of the last generated layer, (F, n + 1), if it has units and was read."""
        weight = f"{self._last.rpartition('.')[0]}.weight"
        if self._layer is None or weight not in self._gradient or not self._last.endswith("bias"):
            return None
        return torch.cat([self._gradient[weight], self._gradient[self._last][:, None]], dim=1)


def _solved(entered: Tensor, gradient: Tensor) -> Tensor:
    """delta (B, F) of candidates that enter a layer with the `gradient` (F, n + 1) as `entered` (B, n)."""
    inputs = torch.cat([entered, entered.new_ones(len(entered), 1)], dim=1)
    squares = inputs @ inputs.T
    ridge = _RIDGE * squares.diagonal().mean() * torch.eye(len(inputs))
    delta: Tensor = torch.linalg.solve(squares + ridge, inputs @ gradient.T)
    return delta


class Guessed:
    """The gradient of the shared vector itself, by a hypernetwork whose embedding and classifier are guesses."""

    def __init__(self, net: Hypernetwork, phi: Tensor, v: Tensor, psi: Parts) -> None:
        self._net, self._psi = net, psi
        self._phi = phi.clone().requires_grad_()
        self._theta = list(net.generate(self._phi, v).values())
        self._leaves = {name: part.detach().requires_grad_() for name, part in zip(net.names, self._theta, strict=True)}

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        """As `Predictor.predict`."""
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        slopes = [[slope.detach().requires_grad_() for slope in way] for way in ways]
        said = [self._heads(some) for some in slopes]

        def back(pull: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            pulled = [
                torch.autograd.grad(one, some, towards) for one, some, towards in zip(said, slopes, pull, strict=True)
            ]
            outputs = [slope for way in ways for slope in way]
            towards = [part for parts in pulled for part in parts]
            return torch.autograd.grad(outputs, list(leaves), towards, materialize_grads=True)

        return Prediction(torch.stack([one.detach() for one in said]), back)

    def _way(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """dL/dtheta, with history."""
        loss = functional.cross_entropy(self._net.forward(self._leaves, self._psi, x), y)
        leaves = list(self._leaves.values())
        return list(torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True))

    def _heads(self, slopes: Sequence[Tensor]) -> Tensor:
        """dL/dphi (d,) of dL/dtheta: linear in it, and recorded as such."""
        (found,) = torch.autograd.grad(self._theta, self._phi, slopes, create_graph=True)
        return found
