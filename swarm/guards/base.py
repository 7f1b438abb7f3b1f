"""What a guard promises: a defence on what leaves a peer, applied to the local update before anything is encoded.

A guard changes the peer's own update too (the peer trains on what it was willing to say). Noise that was added only to
the message would be taken back, round by round, by the difference coding behind it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from veilmesh.core import Registry
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs.base import Vector

__all__ = ["GUARDS", "Guard", "RoundInfo", "clipped"]


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """What a guard may know of the moment; `pairs`: what this peer has in common with each neighbour, for noise that
    cancels."""

    round: int
    samples: int
    pairs: tuple[Pair, ...] = ()


class Guard(Protocol):
    """A defence; pure in its input and its generator.

    One whose noise has an accountant also has the fields `clip`, `noise` and `delta`: `sim/privacy.py` reads them.
    """

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        """The update (d,) that may leave instead of `x` (d,)."""
        ...


def clipped(x: Vector, norm: float) -> Vector:
    """`x` (d,) scaled down, where need be, to an L2 norm of `norm`."""
    length = float(np.linalg.norm(x.astype(np.float64)))
    return x if length <= norm else (x * np.float32(norm / length)).astype(np.float32)


GUARDS: Registry[Guard] = Registry("guard", "veilmesh.swarm.guards")
