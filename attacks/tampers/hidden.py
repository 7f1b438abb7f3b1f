"""A liar in a protocol that shows nobody's update: it lies to its own machine, before anything is dealt or masked.

All that such a liar says is well formed, and nobody can see what it is of. It hears no updates either, so only those
lies have a place here that are made from its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, Event, Machine, Note, WorkDone
from veilmesh.swarm.strategies.base import Trained

__all__ = ["HiddenLiar"]

_LARGEST = np.float32(1e5)
"""Claims are cut to this: an honest machine takes no update for its own with which no model is fit to be said."""


@dataclass(frozen=True, slots=True)
class _Claimed:
    """What the machine inside is told that training came back with."""

    update: Vector
    loss: float
    samples: int


class HiddenLiar:
    """One malicious peer: `lie(round, update)` is what the honest machine inside takes for its own update (d,)."""

    def __init__(self, honest: Machine, lie: Callable[[int, Vector], Vector]) -> None:
        self._honest = honest
        self._lie = lie

    def handle(self, event: Event, now: float) -> list[Effect]:
        if not isinstance(event, WorkDone) or not event.name.startswith("train"):
            return self._honest.handle(event, now)
        round_, trained = int(event.name.split("-")[1]), cast(Trained, event.result)
        wild = self._lie(round_, trained.update)
        claim = np.clip(np.where(np.isnan(wild), trained.update, wild), -_LARGEST, _LARGEST).astype(np.float32)
        told = WorkDone(event.name, _Claimed(claim, trained.loss, trained.samples))
        far = float(np.linalg.norm((claim - trained.update).astype(np.float64)))
        return [Note("tampered", {"round": round_, "distance": far}), *self._honest.handle(told, now)]
