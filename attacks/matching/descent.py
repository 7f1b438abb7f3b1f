"""The way down: first-order search of candidates, P at a time, each with its own best iterate.

Which iterate is kept, of those after the steps have become small, and which of the P, is decided by the attacker's own
loss and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Adam", "Evaluation", "Found", "Lbfgs", "Schedule", "Variable"]

Schedule: TypeAlias = Literal["constant", "steps", "cosine"]
"""Of the step size: tenfold less at 3/8, 5/8 and 7/8 of the way (Geiping et al.), or half a cosine down to nothing."""
_PATIENCE = 10  # outer steps of L-BFGS in which the loss has to fall by half a hundredth

Sign: TypeAlias = Literal["sign", "soft", "plain"]
"""What Adam is fed: the derivative's sign; tanh(s d) / s with s = 1 - share of the way (soft sign); or itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """One tensor (P, ...) that is searched: where it begins, its box, and its step size relative to the descent's."""

    begin: Tensor
    box: tuple[float, float] | None = None
    rate: float = 1.0
    sign: Sign | None = None  # None: as the descent does


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The objective at one point: losses (P,), the distance in them (P,), and derivatives for each variable."""

    loss: Tensor
    distance: Tensor
    slopes: Mapping[str, Tensor]


Objective: TypeAlias = Callable[[Mapping[str, Tensor], float], Evaluation]
"""From the variables' values, and the share of the way that is done, to an evaluation."""


@dataclass(slots=True, eq=False)
class Found:
    """The best of each of P candidates: values by variable, losses and distances (P,)."""

    values: dict[str, Tensor]
    loss: Tensor
    distance: Tensor

    def keep(self, values: Mapping[str, Tensor], here: Evaluation) -> None:
        """Take over those candidates that are better here."""
        better = here.loss < self.loss
        for name, value in values.items():
            self.values[name] = torch.where(_along(better, value), value.detach(), self.values[name])
        self.loss = torch.where(better, here.loss, self.loss)
        self.distance = torch.where(better, here.distance, self.distance)

    def best(self) -> int:
        """Which of the P the attacker holds for the best."""
        return int(torch.nan_to_num(self.loss, nan=torch.inf).argmin())

    def only(self, chosen: list[int]) -> "Found":
        """Some of the P."""
        return Found({n: v[chosen] for n, v in self.values.items()}, self.loss[chosen], self.distance[chosen])


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam (Kingma and Ba 2015) with the habits of gradient inversion.

    Args:
        iterations: steps.
        rate: step size, in units of the picture's range.
        sign: what Adam is fed.
        schedule: of the step size.
        warmup: iterations over which the step size rises from nothing.
        langevin: standard deviation of noise that is added to every derivative, times the step size (Yin et al.).
    """

    iterations: int
    rate: float = 0.1
    sign: Sign = "sign"
    schedule: Schedule = "steps"
    warmup: int = 0
    langevin: float = 0.0

    def run(self, objective: Objective, variables: Mapping[str, Variable], seed: int = 0) -> Found:
        """Go down from where `variables` begin. `seed`: of Langevin noise."""
        values = {name: v.begin.clone() for name, v in variables.items()}
        moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
        noise = torch.Generator().manual_seed(seed)
        found: Found | None = None
        for step in range(self.iterations):
            share = step / self.iterations
            here = objective(values, share)
            if found is None or step == self._settled:
                found = Found(dict(values), here.loss, here.distance)
            found.keep(values, here)
            for name, variable in variables.items():
                slope = torch.nan_to_num(here.slopes[name])
                if self.langevin and name == "x":
                    slope = slope + self.langevin * torch.randn(slope.shape, generator=noise).to(slope.device)
                fed = _fed(slope, variable.sign or self.sign, 1 - share)
                move = self._step(moments[name], fed, step) * (self._rate(step) * variable.rate)
                value = values[name] - move
                values[name] = value if variable.box is None else value.clamp(*variable.box)
        last = objective(values, 1.0)
        found = found or Found(dict(values), last.loss, last.distance)
        found.keep(values, last)
        return found

    @property
    def _settled(self) -> int:
        """From which iterate on one is kept: where steps fall, not before they are as small as they become. On the way
        there an iterate that swings through low loss by luck is no better a picture for it, and the paper's own code
        takes the last."""
        return 0 if self.schedule == "constant" else self.iterations * 7 // 8

    def _step(self, moments: tuple[Tensor, Tensor], fed: Tensor, step: int) -> Tensor:
        first, second = moments
        first.mul_(0.9).add_(fed, alpha=0.1)
        second.mul_(0.999).addcmul_(fed, fed, value=0.001)
        spread = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        return first / (1 - 0.9 ** (step + 1)) / spread

    def _rate(self, step: int) -> float:
        rate = self.rate * min(1.0, (step + 1) / self.warmup) if self.warmup else self.rate
        match self.schedule:
            case "steps":
                return rate * 0.1 ** sum(step >= self.iterations * eighth / 8 for eighth in (3, 5, 7))
            case "cosine":
                return rate * 0.5 * (1 + cos(pi * step / self.iterations))
        return rate


@dataclass(frozen=True, slots=True)
class Lbfgs:
    """L-BFGS, of one candidate: `iterations` outer steps of about `inner` evaluations, until the loss is below `enough`
    or no longer falls.

    With a line search (strong Wolfe), where the papers on deep leakage take every step at full length: that is why
    theirs so often ends nowhere.
    """

    iterations: int
    rate: float = 1.0
    inner: int = 20
    enough: float = 1e-6

    def run(self, objective: Objective, variables: Mapping[str, Variable], seed: int = 0) -> Found:
        """Go down from where `variables` (1, ...) begin; `seed` is of no use here."""
        leaves = {name: v.begin.clone().requires_grad_(True) for name, v in variables.items()}
        # The loss is relative here: torch's tolerances, which are not, would end the search before it arrives.
        optimizer = torch.optim.LBFGS(
            list(leaves.values()),
            lr=self.rate,
            max_iter=self.inner,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        found: Found | None = None

        def closure() -> float:
            nonlocal found
            values = {name: leaf.detach().clone() for name, leaf in leaves.items()}
            here = objective(values, 0.0)
            if found is None:
                found = Found(values, here.loss, here.distance)
            found.keep(values, here)
            for name, leaf in leaves.items():
                leaf.grad = torch.nan_to_num(here.slopes[name])
            return float(here.loss)

        losses: list[float] = []
        for _ in range(self.iterations):
            optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types here
            assert found is not None  # a step evaluates at least once
            losses.append(float(found.loss))
            stuck = len(losses) > _PATIENCE and losses[-1] > 0.995 * losses[-1 - _PATIENCE]
            if stuck or losses[-1] < self.enough:
                break
        assert found is not None
        return found


def _fed(slope: Tensor, sign: Sign, left: float) -> Tensor:
    match sign:
        case "sign":
            return slope.sign()
        case "soft":
            return torch.tanh(slope * max(left, 1e-3)) / max(left, 1e-3)
    return slope


def _along(mask: Tensor, like: Tensor) -> Tensor:
    """(P,) so that it can choose among (P, ...)."""
    return mask.view(-1, *[1] * (like.ndim - 1))
