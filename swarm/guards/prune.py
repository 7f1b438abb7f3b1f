"""Pruning: the small changes of a round are not made, and nothing makes up for them later."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.selection import largest
from veilmesh.swarm.guards.base import GUARDS, RoundInfo

__all__ = ["Prune"]


@GUARDS.register("prune")
@dataclass(frozen=True)
class Prune:
    """Keep the `keep` share of the update with the largest magnitudes, at least one coordinate, and drop the rest.

    Compression as a defence (arXiv 2601.04912; Zhu et al., arXiv 1906.08935, section 5.2). Codec `top-k` keeps the
    same coordinates, and with it as many bytes are saved; alone, it remembers the others and says them later.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.1

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        chosen = largest(x, min(x.size, max(1, round(self.keep * x.size))))
        return np.where(chosen, x, np.float32(0)).astype(np.float32)
