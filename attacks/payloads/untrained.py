"""The model that everybody began with, once more."""

from dataclasses import dataclass

import numpy as np

from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.view import Public
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Untrained"]


@PAYLOADS.register("untrained")
@dataclass(frozen=True)
class Untrained:
    """The common initial parameters: gradients of an untrained network give most away, whatever the round.

    Geiping et al. 2020, "Inverting gradients", section 5, compare the two. Nothing in it looks crafted.
    """

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        return public.initial.copy()
