"""From a model to the words that a group sums by masks, and back: fixed point, and which coordinates are averaged."""

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import LocalError, generator, seed_number
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.crypto.codecs.randk import random_coordinates
from veilmesh.crypto.fixed import FixedPoint, Words
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.secure_session import GroupSum

__all__ = ["HiddenModel"]


class HiddenModel:
    """One peer's encoder, with its memory of what rounding to 16 bits has left out."""

    def __init__(self, kit: Kit, keep: float) -> None:
        self._kit = kit
        self._count = max(1, round(keep * kit.initial.size))
        self._memory = np.zeros_like(kit.initial)
        self._integers: NDArray[np.int64] = np.zeros(0, np.int64)  # that stand for the model of this round

    @property
    def lengths(self) -> tuple[int, ...]:
        """Words in each of a round's sums: one, of as many coordinates as a round averages."""
        return (self._count,)

    @property
    def left_out(self) -> Vector:
        """(d,) what this peer still has to say."""
        return self._memory

    def coordinates(self, round_: int) -> Mask | slice:
        """Which: alike for everybody."""
        if self._count == self._kit.initial.size:
            return slice(None)
        return random_coordinates(seed_number(self._kit.seed, "summed", round_), self._count, self._kit.initial.size)

    def words(self, x: Vector, wanted: Vector, fixed: FixedPoint, round_: int) -> tuple[Words, int]:
        """What stands for a model (d,) in the round's sum, and how many coordinates had to be clipped."""
        place = self.coordinates(round_)
        said = wanted[place] - self._kit.initial[place] + self._memory[place]
        coarse = fixed.bits == 16
        rng = generator(self._kit.private, "rounding", round_) if coarse else None
        self._integers = fixed.quantise(said, rng)
        return fixed.words(self._integers), int((np.abs(said) > fixed.limit).sum())

    def answer(self, fixed: FixedPoint, summed: GroupSum) -> tuple[Words, int]:
        """There is one sum a round."""
        raise LocalError("nothing follows the sum of a round")

    def alone(self, x: Vector, wanted: Vector) -> Vector:
        """The next model where there is no sum: a lone step."""
        return wanted

    def mixed(self, x: Vector, wanted: Vector, fixed: FixedPoint, round_: int, summed: GroupSum) -> Vector:
        """The next model (d,), where `wanted` is what training made of `x`: the survivors' average where there is one.

        Of coordinates whose turn it was not, the step is remembered, and not taken yet: else each peer would go its own
        way on them. One that is no survivor has said nothing, and what it wanted is lost where the others' average is.
        """
        place, there = self.coordinates(round_), np.ones(self._count, bool)
        for start, stop in summed.missing:
            there[start:stop] = False
        average = self._kit.initial[place] + fixed.decode_sum(summed.words) / len(summed.survivors)
        mixed, memory = x.copy(), self._memory + (wanted - x)
        mixed[place] = np.where(there, average, wanted[place]).astype(np.float32)
        kept = self._rest(wanted, fixed, place) if self._kit.me in summed.survivors else self._memory[place]
        memory[place] = np.where(there, kept, self._memory[place]).astype(np.float32)
        self._memory = memory
        return mixed

    def _rest(self, wanted: Vector, fixed: FixedPoint, place: Mask | slice) -> Vector:
        """What rounding to 16 bits took away, to be said next time; not what was clipped, or it would pile up."""
        if fixed.bits != 16:
            return np.zeros_like(self._memory[place])
        rest = wanted[place] - self._kit.initial[place] + self._memory[place] - fixed.value(self._integers)
        kept: Vector = np.clip(rest, -fixed.step, fixed.step).astype(np.float32)
        return kept
