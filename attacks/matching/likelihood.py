"""Distances that know what a codec does to a gradient: small where the candidate explains the message, not the vector.

A decoded message is not a noisy gradient. That a coordinate was not among the largest says that it is below them; a
sign says nothing of a size; a level bounds what was rounded to it. Each distance here takes the message as it was
decoded, in units of a gradient, and its derivative is in closed form (`distance.py`). At the true gradient they are as
small as the codec allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veilmesh.attacks.matching.distance import Cosine, Distance

__all__ = ["Clipped", "Hinge", "Intervals", "Projected", "Rounded", "Signs", "Ternary", "Thresholded", "Together"]

_TINY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """1 - cos(tanh(beta u / mean |u|), signs), the mean over chunks as the codec takes them: what a candidate's signs
    would be, made smooth.

    A coordinate that is zero to the bit, as behind a ReLU that never fired, counts as `zero`: a codec of one bit has to
    take it for one of the two, and which units fired then shows. `signs` (d,): -1 or 1. `weight` (d,): how much each
    counts in the cosine.
    """

    signs: Tensor
    beta: float = 4.0
    zero: float = -1.0
    chunk: int = 1024
    weight: Tensor | None = None

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        mean = _chunk_means(gradient.abs(), self.chunk)
        z = gradient / mean
        level = torch.where(gradient == 0, self.zero, torch.tanh(self.beta * z))
        weight = torch.ones_like(self.signs) if self.weight is None else self.weight
        value, pull = Cosine(self.signs * weight).at(level * weight)
        by_z = pull * weight * self.beta * (1 - level.square())
        return value, _through_means(by_z, z, gradient, self.chunk) / mean


@dataclass(frozen=True, slots=True, eq=False)
class Ternary:
    """1 - cos(soft levels, levels) where a codec said whether coordinates are beyond a threshold, and their sign.

    The soft level of u is (tanh(beta (z - 1)) + tanh(beta (z + 1))) / 2, z = u / threshold. `levels` (d,): -1, 0 or 1.
    `threshold`: in units of a gradient; None: the candidate's own mean magnitude, chunk by chunk.
    """

    levels: Tensor
    beta: float = 3.0
    threshold: float | None = None
    chunk: int = 1024

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        own = self.threshold is None
        unit = _chunk_means(gradient.abs(), self.chunk) if own else torch.full_like(gradient, self.threshold or 1.0)
        z = gradient / unit
        above, below = torch.tanh(self.beta * (z - 1)), torch.tanh(self.beta * (z + 1))
        value, pull = Cosine(self.levels).at(0.5 * (above + below))
        by_z = pull * 0.5 * self.beta * (2 - above.square() - below.square())
        return value, (_through_means(by_z, z, gradient, self.chunk) if own else by_z) / unit


@dataclass(frozen=True, slots=True, eq=False)
class Hinge:
    """Mean of relu(-sign u) / mean |u|: nothing but coordinates on the wrong side count, by how far they are there."""

    signs: Tensor

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        wrong = (-self.signs * gradient).clamp_min(0)
        mean = gradient.abs().mean(-1, keepdim=True).clamp_min(_TINY)
        value = wrong.mean(-1, keepdim=True) / mean
        pull = -self.signs * (wrong > 0) - value * gradient.sign()
        return value.squeeze(-1), pull / (mean * gradient.shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Squared distance to [low, high] (each (d,)), summed over all coordinates, over `energy`: what rounding to the
    nearest level says, and no more."""

    low: Tensor
    high: Tensor
    energy: float

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        out = (gradient - self.high).clamp_min(0) - (self.low - gradient).clamp_min(0)
        return out.square().sum(-1) / self.energy, 2 * out / self.energy


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Mean of -log(1 - |u - level| / step): how likely rounding at random, to one of the two nearest levels, was to end
    at `level` (d,) (the likelihood of QSGD; Alistarh et al. 2017, section 3).

    Where that is less likely than `least`, and beyond a step where it cannot have been, it goes on straight. `step`
    (d,): from one level to the next; coordinates where it is zero were said exactly, and count by squares over the
    largest step's.
    """

    level: Tensor
    step: Tensor
    least: float = 0.05

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        rounded = self.step > 0
        width = torch.where(rounded, self.step, self.step.max().clamp_min(_TINY))
        error = (gradient - self.level) / width
        left = 1 - error.abs()
        inside = left >= self.least
        near = -left.clamp_min(self.least).log()
        value = torch.where(inside, near, near + (self.least - left) / self.least)
        slope = error.sign() / left.clamp_min(self.least)
        value = torch.where(rounded, value, error.square())
        slope = torch.where(rounded, slope, 2 * error)
        return value.mean(-1), slope / (width * gradient.shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Thresholded:
    """Squared differences where something was said, and squares of |u| - threshold beyond it where nothing was, over
    the message's own square: the largest coordinates were said, so the others are smaller than the least of them.

    `kept` (d,): the message, zero where `said` (d,) is 0. `silent`: weight of what was not said.
    """

    kept: Tensor
    said: Tensor
    threshold: float
    silent: float = 1.0

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        energy = self.kept.square().sum().clamp_min(_TINY)
        beyond = gradient.sign() * (gradient.abs() - self.threshold).clamp_min(0)
        said = self.said * (gradient - self.kept)
        silent = (1 - self.said) * beyond
        value = said.square().sum(-1) + self.silent * silent.square().sum(-1)
        return value / energy, 2 * (said + self.silent * silent) / energy


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """1 - cos of what a low-rank message says of the candidate, P P^T M(u), and what it said; M(u) is u as a matrix of
    `basis.shape[0]` rows, the end filled up with zeros. `target` (d,); `basis` P (m, r), orthonormal."""

    target: Tensor
    basis: Tensor

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        value, pull = Cosine(self.target).at(self._projected(gradient), share)
        return value, self._projected(pull)

    def _projected(self, x: Tensor) -> Tensor:
        rows = len(self.basis)
        columns = -(-x.shape[-1] // rows)
        matrix = torch.nn.functional.pad(x, (0, rows * columns - x.shape[-1])).view(*x.shape[:-1], rows, columns)
        return (self.basis @ (self.basis.mT @ matrix)).flatten(-2)[..., : x.shape[-1]]


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """Another distance, at the candidate as a guard clips it: scaled down, where need be, to a length of `norm`."""

    inner: Distance
    norm: float

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        length = gradient.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        factor = (self.norm / length).clamp(max=1.0)
        value, pull = self.inner.at(gradient * factor, share)
        along = (pull * gradient).sum(-1, keepdim=True) / length.square() * (factor < 1)
        return value, factor * (pull - along * gradient)


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """A weighted sum of distances."""

    parts: Sequence[tuple[float, Distance]]

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        found = [(weight, *distance.at(gradient, share)) for weight, distance in self.parts]
        value = torch.stack([weight * value for weight, value, _ in found]).sum(0)
        return value, torch.stack([weight * pull for weight, _, pull in found]).sum(0)


def _through_means(by_z: Tensor, z: Tensor, u: Tensor, chunk: int) -> Tensor:
    """The derivative (P, d) by u, times the mean, of what has `by_z` by z = u / mean |u|, the mean over u's chunk."""
    return by_z - _chunk_sums(by_z * z, chunk) / _chunk_sums(torch.ones_like(u), chunk) * u.sign()


def _chunk_means(x: Tensor, chunk: int) -> Tensor:
    """The mean of each coordinate's chunk, (P, d), never zero."""
    return (_chunk_sums(x, chunk) / _chunk_sums(torch.ones_like(x), chunk)).clamp_min(_TINY)


def _chunk_sums(x: Tensor, chunk: int) -> Tensor:
    """The sum over each coordinate's chunk, (P, d)."""
    dimension = x.shape[-1]
    filled = torch.nn.functional.pad(x, (0, -dimension % chunk)).view(*x.shape[:-1], -1, chunk)
    return filled.sum(-1, keepdim=True).expand_as(filled).flatten(-2)[..., :dimension]
