"""Inverting Gradients: find the pictures whose gradient points where the victim's update points.

Geiping et al., arXiv 2003.14053: minimise 1 - cos(gradient(x), observed) + tv * TV(x) over pictures x in the box
[0, 1], with one cosine over all layers together, by Adam on the sign of the derivative, step size falling tenfold at
3/8, 5/8 and 7/8 of the iterations. The cosine does not see the scale of an update: clipping and the learning rate do
not matter.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from veilmesh.attacks.inversion.labels import batch_size, infer_labels
from veilmesh.attacks.network import Network
from veilmesh.attacks.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import generator

__all__ = ["CosineInversion"]


@ATTACKS.register("cosine-inversion")
@dataclass(frozen=True, slots=True)
class CosineInversion:
    """Gradient inversion by cosine matching with total variation (Inverting Gradients).

    With more than one local step the update is matched as if it were one gradient at its start: an approximation that
    gets worse with the step size. Labels are inferred first. Cost: about `iterations` times `restarts` double
    backward passes for each target.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation; a noisier update wants more of it.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        match: "all" coordinates (what was not said counts as zero, which it nearly was), or only those "said".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-4
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    match: Literal["all", "said"] = "all"
    targets: Annotated[int, Field(ge=1)] = 1

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. One number is drawn from `rng`; starting pictures are named by it and by the update itself,
        so the same update gives the same pictures wherever it was seen from."""
        seed = int(rng.integers(1 << 62))
        network = Network(view.public)
        for observed in observe_updates(view, self.targets):
            labels = torch.from_numpy(infer_labels(network, observed, view.public))
            goal = _Goal.of(network, observed, labels, said_only=self.match == "said", tv=self.tv)
            shape = (batch_size(observed, view.public), *view.public.shape)
            runs = [self._descend(goal, start) for start in self._starts(seed, observed, shape)]
            best = min(runs, key=lambda run: run.loss)
            details = {"exact": observed.exact, "coverage": observed.coverage, "distance": best.distance}
            yield Guess(
                observed.victim, observed.round, best.x.numpy(), labels.numpy(), best.loss, details, observed.among
            )

    def _starts(self, seed: int, observed: Observed, shape: tuple[int, ...]) -> Iterator[Tensor]:
        name = hashlib.blake2b(observed.start.tobytes() + observed.update.tobytes(), digest_size=16).hexdigest()
        for restart in range(self.restarts):
            noise = generator(seed, "start", name, restart).standard_normal(shape, dtype=np.float32)
            yield torch.from_numpy(0.5 + 0.25 * noise).clamp_(0, 1)

    def _descend(self, goal: "_Goal", x: Tensor) -> "_Iterate":
        """The best iterate of one run from `x` (B, C, H, W), by the attack's own loss at that very iterate."""
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        best: _Iterate | None = None
        for step in range(self.iterations):
            here, slope = goal.at(x)
            best = here if best is None or here.loss < best.loss else best
            sign = slope.sign()
            first = 0.9 * first + 0.1 * sign
            second = 0.999 * second + 0.001 * sign.square()
            mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            x = (x - self._rate(step) * mean / (spread.sqrt() + 1e-8)).clamp(0, 1)
        last, _ = goal.at(x)
        return last if best is None or last.loss < best.loss else best

    def _rate(self, step: int) -> float:
        passed = sum(step >= self.iterations * eighth / 8 for eighth in (3, 5, 7))
        return self.rate * 0.1**passed


@dataclass(frozen=True, slots=True, eq=False)
class _Iterate:
    """A candidate, its loss, and the cosine distance in it."""

    x: Tensor
    loss: float
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class _Goal:
    """What is minimised: `direction` (d,) is the observed gradient at unit length, `mask` (d,) what of it counts."""

    network: Network
    labels: Tensor
    direction: Tensor
    mask: Tensor | None
    tv: float

    @classmethod
    def of(cls, network: Network, observed: Observed, labels: Tensor, *, said_only: bool, tv: float) -> "_Goal":
        network.load(observed.start)
        direction = -torch.from_numpy(observed.update).double()
        mask = torch.from_numpy(observed.said).float() if said_only and observed.said is not None else None
        if mask is not None:
            direction = direction * mask
        return cls(network, labels, (direction / direction.norm().clamp_min(1e-30)).float(), mask, tv)

    def at(self, x: Tensor) -> tuple[_Iterate, Tensor]:
        """`x` (B, C, H, W) with its loss, and the loss's derivative there."""
        leaf = x.detach().requires_grad_(True)
        loss = functional.cross_entropy(self.network.module(leaf), self.labels)
        gradients = torch.autograd.grad(loss, self.network.parameters, create_graph=True)
        # d cos / dx = (d gradient / dx)^T (d cos / d gradient): the second factor is known in closed form, which saves
        # recording the cosine.
        distance, pull = self._cosine([g.detach() for g in gradients])
        (slope,) = torch.autograd.grad(gradients, leaf, list(self.network.split(pull)), allow_unused=True)
        roughness, ripple = _total_variation(x)
        loss_here = distance + self.tv * roughness
        slope = torch.zeros_like(x) if slope is None else torch.nan_to_num(slope)
        return _Iterate(x, loss_here, distance), slope + self.tv * ripple

    def _cosine(self, gradients: list[Tensor]) -> tuple[float, Tensor]:
        """1 - cosine to `direction`, and its derivative (d,) with respect to the gradient."""
        flat = torch.cat([g.reshape(-1) for g in gradients])
        flat = flat if self.mask is None else flat * self.mask
        length = flat.norm().clamp_min(1e-30)
        cosine = torch.dot(flat, self.direction) / length
        pull = (flat * (cosine / length) - self.direction) / length
        return 1.0 - cosine.item(), pull if self.mask is None else pull * self.mask


def _total_variation(x: Tensor) -> tuple[float, Tensor]:
    """Mean absolute difference of horizontal plus of vertical neighbours in `x` (B, C, H, W), and a subgradient."""
    ripple = torch.zeros_like(x)
    total = 0.0
    for axis in (2, 3):
        size = x.shape[axis] - 1
        if size < 1:
            continue
        step = x.diff(dim=axis)
        total += step.abs().mean().item()
        sign = step.sign() / step.numel()
        ripple.narrow(axis, 1, size).add_(sign)
        ripple.narrow(axis, 0, size).sub_(sign)
    return total, ripple
