"""What a guard promises: a defence on what leaves a peer, applied to the local update before anything is encoded.

A guard changes the peer's own update too (the peer trains on what it was willing to say). Noise that was added only to
the message would be taken back, round by round, by the difference coding behind it.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from veilmesh.core import Registry
from veilmesh.core.zerosum import Pair
from veilmesh.crypto.codecs.base import Vector

__all__ = ["GUARDS", "Guard", "Layout", "RoundInfo", "Watching", "clipped"]

Layout: TypeAlias = tuple[tuple[str, tuple[int, ...], int], ...]
"""Where each parameter lies in the flat vector: (name, shape, offset), in order."""


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """What a guard may know of the moment; `pairs`: what this peer has in common with each neighbour, for noise that
    cancels.

    For guards that look at what others made of this peer's model, where the protocol knows it: `start` (d,), the
    parameters that training began from; `left` (d,), what this peer had when it spoke last, or before that the common
    beginning; `layout`, what is where in them. None, or empty, where nobody says.
    """

    round: int
    samples: int
    pairs: tuple[Pair, ...] = ()
    start: Vector | None = None
    left: Vector | None = None
    layout: Layout = ()


class Guard(Protocol):
    """A defence; pure in its input and its generator.

    One whose noise has an accountant also has the fields `clip`, `noise` and `delta`: `sim/privacy.py` reads them.
    """

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        """The update (d,) that may leave instead of `x` (d,)."""
        ...


@runtime_checkable
class Watching(Protocol):
    """A guard that lets nothing leave where something is wrong, and can say what."""

    def alarm(self, x: Vector, info: RoundInfo) -> str | None:
        """What is wrong with the round that the update `x` (d,) is of; None: nothing that was seen."""
        ...


def clipped(x: Vector, norm: float) -> Vector:
    """`x` (d,) scaled down, where need be, to an L2 norm of `norm`."""
    length = float(np.linalg.norm(x.astype(np.float64)))
    return x if length <= norm else (x * np.float32(norm / length)).astype(np.float32)


GUARDS: Registry[Guard] = Registry("guard", "veilmesh.swarm.guards")
