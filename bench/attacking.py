"""What the benchmarks of attacks share: pictures to lose, an attack run against the clock, and what came out."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks import ATTACKS, Guess, View
from veilmesh.core import generator
from veilmesh.sim.score import match, psnr
from veilmesh.tasks.data.base import Dataset

__all__ = ["Bench", "Labels", "Pictures", "Ran", "attack", "quality"]

KINDS = (3, 8, 7)  # cat, ship, horse: one picture of each first, and then the others in the set's order

Pictures = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What all sections need: pictures of a set, and what was asked for."""

    data: Dataset
    asked: argparse.Namespace

    def chosen(self, count: int) -> list[tuple[Pictures, Labels]]:
        """`count` single pictures (1, C, H, W) with their labels (1,), no two the same."""
        x, y = self.data.test_x, self.data.test_y
        first = [int(np.flatnonzero(y == kind)[0]) for kind in KINDS if (y == kind).any()]
        places = [*first, *(i for i in range(len(y)) if i not in first)][:count]
        return [(x[i : i + 1], y[i : i + 1]) for i in places]


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """An attack's first guess, and its cost in CPU seconds and in seconds."""

    guess: Guess
    seconds: float
    wall: float


def attack(name: str, options: Mapping[str, Any], view: View) -> Ran:
    """Run one attack on a view until its first guess."""
    chosen = ATTACKS.build(name, dict(options))
    before, clock = time.process_time(), time.perf_counter()
    guess = next(iter(chosen.run(view, generator(0, "attack"))))
    return Ran(guess, time.process_time() - before, time.perf_counter() - clock)


def quality(guess: Guess, truth: Pictures) -> list[float]:
    """PSNR (dB) of every true picture that a guess was matched to."""
    pairs = match(guess.pictures, truth)
    return [float(psnr(guess.pictures[i], truth[j])[0]) for i, j in pairs]
