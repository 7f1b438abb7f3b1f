"""Activations that are made to depend less on the pictures: distance correlation in the head's loss (NoPeek)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Penalty

__all__ = ["NoPeek", "distance_correlation", "unbiased_distance_correlation"]


@SPLIT_GUARDS.register("nopeek")
@dataclass(frozen=True)
class NoPeek:
    """Add `alpha` times the distance correlation of pictures and activations to what the head minimises.

    Vepakomma et al. 2020, "NoPeek: information leakage reduction to share activations in distributed deep learning"
    (arXiv 2008.09161), section 3, on the distance correlation of Szekely, Rizzo and Bakirov 2007 (definitions 5 and 6;
    Euclidean distances: some published code leaves out the root, and with it all but linear dependence). The papers'
    weights of 0.1 to 0.5 of both losses together are an `alpha` of 0.1 to 1.

    Within a batch this is a biased estimate: of independent pictures and activations it is not 0, and in many
    dimensions far from it. `unbiased` takes the bias-corrected square of it instead (Szekely and Rizzo 2014,
    definition 2), around 0 for independent ones, negative at times; of fewer than 4 examples it is 0.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    unbiased: bool = False

    def start(self, about: About) -> Penalty:
        return _AtWork(self)


class _AtWork:
    def __init__(self, options: NoPeek) -> None:
        self._alpha = options.alpha
        self._measure = unbiased_distance_correlation if options.unbiased else distance_correlation

    def penalty(self, z: Tensor, x: Tensor) -> Tensor:
        return self._alpha * self._measure(z, x)


def distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of paired samples `a` (B, ...) and `b` (B, ...): 0 to 1, a scalar; 1 where one is the other, moved, turned and
    scaled. Differentiable everywhere, also where examples coincide."""
    first, second = (_centred(_distances(part)) for part in (a, b))
    return _root(_cosine(first, second))


def unbiased_distance_correlation(a: Tensor, b: Tensor) -> Tensor:
    """The bias-corrected estimate of its square: at most 1, negative by chance; 0 for fewer than 4 examples."""
    if len(a) < 4:
        return 0 * a.sum()
    return _cosine(*(_centred_without_bias(_distances(part)) for part in (a, b)))


def _distances(part: Tensor) -> Tensor:
    """(B, B) Euclidean distances, of mean 1; their gradient is 0, not infinite, where examples coincide."""
    flat = part.flatten(1)
    flat = flat - flat.mean(dim=0)  # nearer to 0 less is lost in the differences of squares
    squares = flat.square().sum(dim=1)
    apart = squares[:, None] + squares[None, :] - 2 * flat @ flat.T
    other = apart > 1e-6 * squares.mean().detach()  # below that it is rounding
    other = other & ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    distances = apart.where(other, torch.ones_like(apart)).sqrt() * other
    return distances / distances.mean().detach().clamp_min(1e-12)


def _centred(distances: Tensor) -> Tensor:
    rows = distances.mean(dim=1)
    return distances - rows[:, None] - rows[None, :] + rows.mean()


def _centred_without_bias(distances: Tensor) -> Tensor:
    n = len(distances)
    rows = distances.sum(dim=1) / (n - 2)
    centred = distances - rows[:, None] - rows[None, :] + distances.sum() / ((n - 1) * (n - 2))
    return centred * (1.0 - torch.eye(n, dtype=centred.dtype, device=centred.device))


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of two matrices, 0 where one of them is 0."""
    lengths = _root(first.square().sum()) * _root(second.square().sum())
    return (first * second).sum() / lengths.clamp_min(1e-9)


def _root(x: Tensor) -> Tensor:
    """The square root, of 0 where there is none, with a gradient that stays finite."""
    return (x.clamp_min(0) + 1e-12).sqrt() - 1e-6
