"""Laplace noise on activations."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Outgoing
from veilmesh.split.guards.draws import laplace

__all__ = ["Laplace"]


@SPLIT_GUARDS.register("laplace")
@dataclass(frozen=True)
class Laplace:
    """Add Laplace noise of `scale`, drawn anew for every activation that leaves, in training and afterwards.

    Titcombe et al. 2021, "Practical defences against model inversion attacks for split neural networks"
    (arXiv 2104.05743), section 3; they take 0.1 to 1. `scale` is in units of the activations, so a head that learns to
    speak louder is heard through it, unless `bound` clips every coordinate to [-bound, bound] before. Then, and only
    then, an epsilon follows from it (`epsilon`), and it is large: the noise is made to spoil inversions, not to hide
    that a picture was there.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def start(self, about: About) -> Outgoing:
        return _AtWork(self, about.rng)

    def epsilon(self, coordinates: int) -> float:
        """Of pure local differential privacy, for one saying of one example's activations; infinite without `bound`.

        2 bound / scale for each of the `coordinates` (Dwork and Roth 2014, theorem 3.6), and for every saying again. In
        real numbers: floating point gives a little more away (Mironov 2012).
        """
        return float("inf") if self.bound is None else coordinates * 2 * self.bound / self.scale


class _AtWork:
    def __init__(self, options: Laplace, rng: np.random.Generator) -> None:
        self._options, self._rng = options, rng

    def outgoing(self, z: Tensor, x: Tensor) -> Tensor:
        bound = self._options.bound
        kept = z if bound is None else z.clamp(-bound, bound)
        return kept + self._options.scale * laplace(self._rng, z)
