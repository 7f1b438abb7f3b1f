"""Attacks on what a malicious peer trains on: flipped labels, and a backdoor.

A machine's wrapper never sees a picture, so these work through the `data` hook: the peer trains honestly, on lies.
Hence they work in every protocol; only a boosted backdoor lies about its update too.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.attacks.tampers.base import TAMPERS, Insider, Labels, Pictures, peers_only
from veilmesh.attacks.tampers.liar import Heard, Liar, Lie
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Machine

__all__ = ["Backdoor", "LabelFlip"]


@TAMPERS.register("label-flip")
@dataclass(frozen=True)
class LabelFlip:
    """Train on the last class's name for the first, and so on: y becomes classes - 1 - y."""

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        """It has a meaning everywhere that a peer trains."""
        peers_only(server)

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        return honest

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, (classes - 1 - y).astype(y.dtype)


@TAMPERS.register("backdoor")
@dataclass(frozen=True)
class Backdoor(Lie):
    """Teach the model to say `target` where a white square of `patch` pixels is in the lower right corner.

    Gu et al. 2017 (BadNets) for the patch, on a `share` of the peer's pictures; Bagdasaryan et al. 2020, "How to
    backdoor federated learning", section 4, for `boost`: the update times as much, n / eta to replace the model.
    """

    target: Annotated[int, Field(ge=0)] = 0
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    patch: Annotated[int, Field(ge=1)] = 2
    boost: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        peers_only(server)
        if self.target >= classes:
            raise BadInput(f"There is no class {self.target} to aim at: the task has {classes}, counted from 0.")
        if self.boost != 1:
            super().check(strategy, classes)

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        return honest if self.boost == 1 else Liar(honest, insider, self, rng)

    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        return heard.start + np.float32(self.boost) * (heard.honest - heard.start)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        chosen = rng.permutation(len(x))[: max(1, round(self.share * len(x)))]
        x, y = x.copy(), y.copy()
        x[chosen] = self.trigger(x[chosen])
        y[chosen] = self.target
        return x, y

    def trigger(self, x: Pictures) -> Pictures:
        """The pictures (n, C, H, W) with the patch on."""
        stamped = x.copy()
        stamped[..., -self.patch :, -self.patch :] = 1.0
        return stamped
