"""The last part of the way: Gauss-Newton steps on the squared distance, damped after Levenberg and Marquardt.

A quasi-Newton search of pictures gets near and then crawls, since what is left is badly conditioned. The Jacobian of a
small network's gradient with respect to a small picture can be had whole, one tangent a pixel, and a few steps with it
end at the rounding errors of what was observed.
"""

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

from veilmesh.attacks.matching.descent import Found
from veilmesh.attacks.matching.recipe import Case

__all__ = ["fits", "refine"]

_MOST_PIXELS = 6000
_MOST_ENTRIES = 150_000_000  # of a Jacobian: 600 MB
_TANGENTS = 64  # at once
_DAMPING = 1e-4  # to begin with, over the mean curvature
_TRIES = 8  # dampings in one step, each ten times the one before


def fits(case: Case) -> bool:
    """Whether the Jacobian of this case can be held."""
    pixels = case.count * int(torch.Size(case.public.shape).numel())
    return pixels <= _MOST_PIXELS and pixels * case.gradient.numel() <= _MOST_ENTRIES


def refine(case: Case, found: Found, labels: Tensor, steps: int, enough: float) -> Found:
    """`found` (one candidate), at most `steps` Gauss-Newton steps nearer to pictures that cause what was observed.

    `labels` (B, ...) are held. Losses are squared distances over what was observed, squared, as `Squared` has them; it
    ends below `enough`, or where no damping helps any more.
    """
    shape = found.values["x"].shape[1:]
    where = case.mask()
    gradients = _Gradients(case, labels, where, shape)
    goal = case.gradient if where is None else case.gradient * where
    x, scale = found.values["x"].flatten(), goal.square().sum().clamp_min(1e-30)
    error = gradients.at(x) - goal
    loss, damping = error.square().sum() / scale, _DAMPING
    for _ in range(steps):
        jacobian = gradients.jacobian(x)
        curvature, slope = (jacobian @ jacobian.T).double(), (jacobian @ error).double()
        for _ in range(_TRIES):
            held = curvature + damping * curvature.diagonal().mean() * torch.eye(len(x), device=x.device)
            there = x - torch.linalg.solve(held, slope).to(x.dtype)
            error_there = gradients.at(there) - goal
            if (better := error_there.square().sum() / scale) < loss:
                break
            damping *= 10
        else:
            break
        x, error, loss, damping = there, error_there, better, damping / 10
        if loss < enough:
            break
    if not loss < found.loss[0]:
        return found
    return Found({**found.values, "x": x.view(1, *shape)}, loss.view(1), loss.view(1))


class _Gradients:
    """Gradients (d,) as a function of all pixels (n,), and their Jacobian."""

    def __init__(self, case: Case, labels: Tensor, where: Tensor | None, shape: torch.Size) -> None:
        self._module, self._labels, self._where, self._shape = case.network.module, labels, where, shape
        self._parameters = {name: p.detach() for name, p in self._module.named_parameters()}

    def at(self, x: Tensor) -> Tensor:
        pieces = grad(self._loss)(self._parameters, x)
        flat = torch.cat([piece.flatten() for piece in pieces.values()])
        return flat if self._where is None else flat * self._where

    def jacobian(self, x: Tensor) -> Tensor:
        """(n, d): a row is what one pixel moves."""
        tangents = torch.split(torch.eye(len(x), device=x.device, dtype=x.dtype), _TANGENTS)
        return torch.cat([vmap(lambda t: jvp(self.at, (x,), (t,))[1])(some) for some in tangents])

    def _loss(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._module, parameters, (x.view(self._shape),)), self._labels)
