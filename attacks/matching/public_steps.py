"""What public steps over a private one leave of it: follow them, or look past all that they could have added.

GradientHide's update is that of a private step from w to w1, and of steps on public pictures from there. An attacker
who was told which pictures follows both stages from every candidate (`TwoStages`). One who knows only that they are of
the public set looks at what is left of a gradient when everything is taken out of it that public pictures' gradients
could have added up to (`Aside`): the pictures are some hundreds, and a gradient has some hundred thousand coordinates.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.predict import Prediction, recorded
from veilmesh.attacks.network import Network

__all__ = ["Aside", "PublicPool", "TwoStages", "gradient_of"]

_MOST = 1 << 24  # numbers that the gradients of all public pictures may have


@dataclass(frozen=True, slots=True, eq=False)
class PublicPool:
    """Public pictures `x` (N, C, H, W) with the classes `y` that peers take them for, where the network computes."""

    x: Tensor
    y: Tensor


class TwoStages:
    """A private step on a candidate, then public ones, divided by minus the private step size: differentiable.

    `steps`: the pictures (B, C, H, W) and labels of each public step, in order. `stride`: the private step size, that
    of all local steps together; `rate`: the public one.
    """

    def __init__(self, network: Network, steps: list[PublicPool], stride: float, rate: float) -> None:
        self._network, self._steps, self._stride, self._rate = network, steps, stride, rate
        self._names = [name for name, _ in network.module.named_parameters()]

    def predict(self, x: Tensor, y: Tensor, alpha: Tensor | None = None) -> Prediction:
        """As `Predictor.predict`."""
        ways = [self._way(one, labels) for one, labels in zip(x, y, strict=True)]
        return recorded([torch.stack(pieces) for pieces in zip(*ways, strict=True)])

    def _way(self, x: Tensor, y: Tensor) -> list[Tensor]:
        begin = [p.detach() for p in self._network.parameters]
        here = self._step([p.clone().requires_grad_(True) for p in begin], PublicPool(x, y), self._stride)
        for step in self._steps:
            here = self._step(here, step, self._rate)
        return [(b - h) / self._stride for b, h in zip(begin, here, strict=True)]

    def _step(self, here: list[Tensor], on: PublicPool, rate: float) -> list[Tensor]:
        logits = functional_call(self._network.module, dict(zip(self._names, here, strict=True)), (on.x,))
        loss = functional.cross_entropy(logits, on.y)
        slopes = torch.autograd.grad(loss, here, create_graph=True, materialize_grads=True)
        return [p - rate * slope for p, slope in zip(here, slopes, strict=True)]


@dataclass(slots=True, eq=False)
class Aside:
    """1 - cos of what is left of gradient and target beside the gradients of all public pictures at w1.

    Where that is, w1, depends on the private gradient. It is taken to be the start at first, and what a candidate says
    later: `every` so many iterations. Loss and derivative see at most `_MOST` / N coordinates, drawn by `drawn`.

    `target` (d,), `start` (d,): parameters that training began from; `stride`: the private step size.
    """

    network: Network
    pool: PublicPool
    target: Tensor
    start: Tensor
    stride: float
    every: int
    drawn: torch.Generator
    _places: Tensor | None = field(default=None, init=False)  # (m,) the coordinates; None: all
    _calls: int = field(default=0, init=False)
    _beside: list["_Beside"] = field(default_factory=list, init=False)  # one for every candidate
    _first: list["_Beside"] = field(default_factory=list, init=False)  # the one at the start; shared by who is like it

    def __post_init__(self) -> None:
        most = max(1, _MOST // len(self.pool.x))
        if most < len(self.target):
            self._places = torch.randperm(len(self.target), generator=self.drawn)[:most].to(self.target.device)

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """As `Distance.at`."""
        if not self._beside:
            self._first[:] = self._first or [self._look(self.start)]
            self._beside = self._first * len(gradient)
        elif self._calls % self.every == 0:
            self._beside = [self._look(self.start - self.stride * one) for one in gradient]
        self._calls += 1
        found = [beside.at(one) for beside, one in zip(self._beside, self._some(gradient), strict=True)]
        pulls = torch.stack([pull for _, pull in found])
        if self._places is not None:
            pulls = torch.zeros_like(gradient).index_copy_(1, self._places, pulls)
        return torch.stack([value for value, _ in found]), pulls

    def anew(self) -> "Aside":
        """One like it, for another search of the same update: what is seen from the start is looked up once."""
        other = replace(self)
        other._first, other._places = self._first, self._places
        return other

    def _look(self, here: Tensor) -> "_Beside":
        """From where a public step began, as far as is known."""
        each = [self._some(gradient_of(self.network, here, self.pool, n)) for n in range(len(self.pool.x))]
        known = torch.stack(each, dim=1)
        basis = torch.linalg.qr(known / known.norm(dim=0).clamp_min(1e-30))[0]
        return _Beside(basis, Cosine(_without(self._some(self.target), basis)))

    def _some(self, gradient: Tensor) -> Tensor:
        return gradient if self._places is None else gradient[..., self._places]


@dataclass(frozen=True, slots=True, eq=False)
class _Beside:
    """The cosine of what is left beside the columns of `basis` (m, N), which are orthonormal."""

    basis: Tensor
    left: Cosine

    def at(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative (m,) at `gradient` (m,)."""
        value, pull = self.left.at(_without(gradient, self.basis).unsqueeze(0))
        return value[0], _without(pull[0], self.basis)


def gradient_of(network: Network, here: Tensor, pool: PublicPool, number: int | None = None) -> Tensor:
    """The gradient (d,) of the loss on one of `pool`, or of the mean loss on all of it, at the parameters `here` (d,):
    those that the network holds are left alone, since a search is under way at them."""
    some = slice(None) if number is None else slice(number, number + 1)
    names = [name for name, _ in network.module.named_parameters()]
    parameters = [p.detach().requires_grad_(True) for p in network.split(here)]
    logits = functional_call(network.module, dict(zip(names, parameters, strict=True)), (pool.x[some],))
    slopes = torch.autograd.grad(
        functional.cross_entropy(logits, pool.y[some]), parameters, materialize_grads=True, allow_unused=True
    )
    return torch.cat([slope.flatten() for slope in slopes])


def _without(x: Tensor, basis: Tensor) -> Tensor:
    return x - basis @ (basis.T @ x)
