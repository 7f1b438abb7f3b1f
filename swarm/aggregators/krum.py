"""Krum and multi-Krum: trust the models that have the closest company.

Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4: the score of
a model is the sum of its squared distances to its n - f - 2 nearest others, and 2f + 2 < n. ByzFL's score is the mean
over the n - f - 1 nearest (and asks for 2f < n only), so the two may choose differently; He et al.'s code squares the
distances twice, and adds the chosen up where we average them.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.swarm.aggregators.base import AGGREGATORS
from veilmesh.swarm.aggregators.vote import Points, Vote, squared_distances

__all__ = ["Krum", "MultiKrum", "krum_ranking"]


@AGGREGATORS.register("krum")
@dataclass(frozen=True)
class Krum(Vote):
    """Take the one model that is nearest to its n - f - 2 nearest others; needs 2f + 3 models."""

    f: Annotated[int, Field(ge=0)] = 1

    def tolerates(self) -> int:
        return self.f

    def quorum(self, f: int) -> int:
        return 2 * f + 3

    def combine(self, points: Points, f: int) -> Points:
        chosen: Points = points[_ranking(points, f)[0]]
        return chosen


@AGGREGATORS.register("multi-krum")
@dataclass(frozen=True)
class MultiKrum(Vote):
    """Average the `m` models with the best Krum scores; needs 2f + 3 models.

    By default, and at most, m = n - f: as many as are honest. The paper's guarantee asks for m < n - 2f - 2.
    """

    f: Annotated[int, Field(ge=0)] = 1
    m: Annotated[int, Field(ge=1)] | None = None

    def tolerates(self) -> int:
        return self.f

    def quorum(self, f: int) -> int:
        return 2 * f + 3

    def combine(self, points: Points, f: int) -> Points:
        honest = len(points) - f
        chosen = np.sort(_ranking(points, f)[: min(self.m or honest, honest)])  # added up in roster order
        average: Points = points[chosen].mean(axis=0)
        return average


def _ranking(points: Points, f: int) -> NDArray[np.intp]:
    return krum_ranking(squared_distances(points), np.einsum("nd,nd->n", points, points), f)


def krum_ranking(squared: Points, ties: Points, f: int) -> NDArray[np.intp]:
    """Indices of the models, best score first, by their squared distances (n, n) alone.

    Of equals (two that are each other's nearest), the one with the lesser of `ties` (n,): how far it is from the peer
    itself, where that is known, so that the order of the roster decides nothing.
    """
    others = np.sort(squared, axis=1)[:, 1 : len(squared) - f - 1]  # the first is the model itself
    return np.lexsort((ties, others.sum(axis=1)))
