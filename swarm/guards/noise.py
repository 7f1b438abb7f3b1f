"""Gaussian noise on the update, without a privacy accountant: a figure to attack, not a guarantee."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.guards.base import GUARDS, RoundInfo

__all__ = ["Noise"]


@GUARDS.register("noise")
@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise whose norm is about `ratio` times the update's: std = ratio * ||x|| / sqrt(d).

    Relative to the update, so that the same figure means the same on every network; no epsilon follows from it. `std`:
    the standard deviation itself instead, in units of the parameters, whatever the update is.
    """

    ratio: Annotated[float, Field(ge=0)] = 1.0
    std: Annotated[float, Field(ge=0)] | None = None

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        std = self.std
        if std is None:
            std = self.ratio * float(np.linalg.norm(x.astype(np.float64))) / np.sqrt(x.size)
        return (x + np.float32(std) * rng.standard_normal(x.size, dtype=np.float32)).astype(np.float32)
