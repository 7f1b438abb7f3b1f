"""Gaussian noise on activations."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Outgoing
from veilmesh.split.guards.draws import normal

__all__ = ["Gaussian"]


@SPLIT_GUARDS.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """Add Gaussian noise of standard deviation `std`, drawn anew for every activation that leaves.

    The other noise that `laplace` is compared with; of the same variance as that where std = 1.41 scale. In units of
    the activations; `bound` clips every coordinate to [-bound, bound] before, so that a head cannot learn to speak
    above the noise. No epsilon is claimed: with `bound`, the L2 sensitivity of one saying is 2 bound sqrt(coordinates),
    for `crypto.accounting` to make one of.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    std: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def start(self, about: About) -> Outgoing:
        return _AtWork(self, about.rng)


class _AtWork:
    def __init__(self, options: Gaussian, rng: np.random.Generator) -> None:
        self._options, self._rng = options, rng

    def outgoing(self, z: Tensor, x: Tensor) -> Tensor:
        bound = self._options.bound
        kept = z if bound is None else z.clamp(-bound, bound)
        return kept + self._options.std * normal(self._rng, z)
