"""Noise that neighbours take away from each other's sum: DECOR."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.core.zerosum import zero_sum
from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.guards.base import GUARDS, RoundInfo, clipped

__all__ = ["CorrelatedNoise"]


@GUARDS.register("correlated-noise")
@dataclass(frozen=True)
class CorrelatedNoise:
    """`private-update`, and beside a little noise of its own much that each neighbour takes away again; gossip only.

    For every neighbour a peer adds noise of standard deviation `pair` times `clip`, drawn from a secret the two have in
    common, with opposite signs (DECOR: Allouah et al. 2024, "The privacy power of correlated noise in decentralized
    learning", algorithm 1; noise before gossip averages it away: Muffliato, Cyffers et al. 2022). It cancels in the
    mean over all peers: in one round on a complete graph, as mixing goes on elsewhere. An adversary who sees every
    update, and knows all that any `colluders` peers know, meets noise of the covariance that
    `crypto.accounting.correlated_multiplier` says; to whoever colludes with all neighbours of a peer, only `noise`
    counts. A neighbour that is absent leaves its share of the noise in the mean: that costs accuracy, not privacy.
    """

    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    pair: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    colluders: Annotated[int, Field(ge=0)] = 1

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        own = rng.standard_normal(x.size) * (self.noise * self.clip)
        shared = zero_sum(info.pairs, x.size, "guard", info.round) * (self.pair * self.clip)
        return (clipped(x, self.clip) + (own + shared)).astype(np.float32)
