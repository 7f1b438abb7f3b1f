"""Norm clipping."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.guards.base import GUARDS, RoundInfo, clipped

__all__ = ["Clip"]


@GUARDS.register("clip")
@dataclass(frozen=True)
class Clip:
    """Scale the update down to an L2 norm of at most `norm`."""

    norm: Annotated[float, Field(gt=0)] = 1.0

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        return clipped(x, self.norm)
