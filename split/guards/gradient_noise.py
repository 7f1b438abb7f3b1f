"""Noise on the gradients that leave a label owner, as large as the largest of them."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Gradient
from veilmesh.split.guards.draws import normal

__all__ = ["GradientNoise"]


@SPLIT_GUARDS.register("gradient-noise")
@dataclass(frozen=True)
class GradientNoise:
    """Add Gaussian noise to every example's gradient, relative to the largest gradient norm of the batch.

    Li et al. 2022, "Label leakage and protection in two-party split learning" (arXiv 2102.08504), sections 4 and 5.
    `kind` "isotropic": in every direction, of an expected squared norm `power` times the largest one's. "max-norm":
    only along each gradient itself, just so much that all have the largest one's expected squared norm; norms then say
    little, directions up to their sign still say what they said (`power` has no part in it). For any number of classes.
    """

    at: ClassVar[Literal["head", "labels"]] = "labels"

    kind: Literal["isotropic", "max-norm"] = "isotropic"
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    def start(self, about: About) -> Gradient:
        return _AtWork(self, about.rng)


class _AtWork:
    def __init__(self, options: GradientNoise, rng: np.random.Generator) -> None:
        self._options, self._rng = options, rng

    def gradient(self, g: Tensor, labels: Tensor) -> Tensor:
        flat = g.flatten(1)
        norms: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        if self._options.kind == "isotropic":
            std = float(norms.max()) * math.sqrt(self._options.power / max(1, flat.shape[1]))
            return (flat + std * normal(self._rng, flat)).reshape(g.shape)
        spread = ((norms.max() / norms.clamp_min(1e-30)).square() - 1).clamp_min(0).sqrt()
        return (flat * (1 + spread * normal(self._rng, norms))).reshape(g.shape)
