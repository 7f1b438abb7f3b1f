"""Crude lies about one's own update: wrong sign, wrong size, noise."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from veilmesh.attacks.tampers.base import TAMPERS
from veilmesh.attacks.tampers.liar import Heard, Lie
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Noise", "Scaled", "SignFlip"]


@TAMPERS.register("sign-flip")
@dataclass(frozen=True)
class SignFlip(Lie):
    """Say -`scale` times the truth: of the local update (as with gradients), or of the whole model (He et al. 2022)."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    of: Literal["update", "model"] = "update"

    def hears_nothing(self) -> bool:
        return self.of == "update"

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        if self.of == "model":
            return np.float32(-self.scale) * heard.honest
        return heard.start - np.float32(self.scale) * (heard.honest - heard.start)


@TAMPERS.register("scaled")
@dataclass(frozen=True)
class Scaled(Lie):
    """Say `factor` times the local update: more weight than one has."""

    factor: Annotated[float, Field(allow_inf_nan=False)] = 10.0

    def hears_nothing(self) -> bool:
        return True

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        return heard.start + np.float32(self.factor) * (heard.honest - heard.start)


@TAMPERS.register("noise")
@dataclass(frozen=True)
class Noise(Lie):
    """Add Gaussian noise of `std` to every coordinate, drawn anew for every neighbour."""

    std: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    def hears_nothing(self) -> bool:
        return True

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        return heard.honest + np.float32(self.std) * rng.standard_normal(heard.honest.size, dtype=np.float32)
