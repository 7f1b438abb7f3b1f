"""Local differential privacy: the whole update clipped, and Gaussian noise that does not depend on it."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.guards.base import GUARDS, RoundInfo, clipped

__all__ = ["PrivateUpdate"]


@GUARDS.register("private-update")
@dataclass(frozen=True)
class PrivateUpdate:
    """Clip the update to an L2 norm of `clip` and add Gaussian noise of standard deviation `noise` times that.

    What is protected is everything a peer says in a round, whatever else it might have said (sensitivity 2 clip): local
    differential privacy (Kasiviswanathan et al. 2011), with an epsilon for `delta` over all rounds in the run's report.
    The noise is numpy's, reproducible and of no cipher; see `tasks/private.py`.
    """

    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        own = rng.standard_normal(x.size) * (self.noise * self.clip)
        return (clipped(x, self.clip) + own).astype(np.float32)
