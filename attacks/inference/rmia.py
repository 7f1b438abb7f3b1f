"""The robust attack: is the target's confidence in this picture more out of the ordinary than in other people's?

Zarifzadeh et al. 2024, "Low-cost high-power membership inference attacks" (arXiv 2312.03262). The score of x is the
share of a population z for which

    (p(x | target) / p(x)) / (p(z | target) / p(z)) >= gamma,

where p(x) would be the mean over models with and without x. Offline there are only those without: p(x) is then taken
for ((1 + a) p_out(x) + 1 - a) / 2, and `a` is chosen on a reference model in the place of the target.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Kind, Scores
from veilmesh.attacks.inference.models import KINDS, SeenModel, models_seen
from veilmesh.attacks.inference.signals import References, by_model, halves, margins, public_pictures, steps_of
from veilmesh.attacks.network import Network
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["Rmia", "auc", "exceeded"]

Floats = NDArray[np.float64]


@INFERENCES.register("rmia")
@dataclass(frozen=True, slots=True)
class Rmia:
    """Confidence over the expected, against a population's (RMIA, Zarifzadeh et al. 2024, arXiv 2312.03262), offline.

    Args:
        references: how many reference models are trained; a few are enough.
        gamma: by how much a picture has to exceed one of the population.
        a: of the guess at what models trained on x would say; 0: they are sure of it, 1: they are like the others.
        tune: choose `a` on one of the references instead, of which there have to be 4.
        iterations: train a reference for at most so many steps, or as many as the target had.
        models: which models it is read from.
        rounds: the mean over so many rounds, the latest ones.
    """

    infers: ClassVar[str] = "members"

    references: Annotated[int, Field(ge=1)] = 4
    gamma: Annotated[float, Field(gt=0)] = 1.0
    a: Annotated[float, Field(ge=0, le=1)] = 0.3
    tune: bool = False
    iterations: Annotated[int, Field(ge=1)] = 1000
    models: tuple[Kind, ...] = KINDS
    rounds: Annotated[int, Field(ge=1)] = 1

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`. Raises BadInput without labelled public pictures."""
        network, known = Network(view.public), public_pictures(view.public)
        steps = steps_of(view.public, models_seen(view, self.models), self.iterations)
        inside = halves(len(known.labels), self.references, rng)
        found = References.trained(network, view.public, known, inside, steps, rng)
        population = _chance(margins(network, found.vectors, known))
        a = self._tuned(population, inside) if self.tune and self.references >= 4 else self.a
        usual, there = _without(population, inside)
        others = {
            victim: _chance(margins(network, found.vectors, own)).mean(axis=0)
            for victim, own in candidates.items() if len(own.labels)
        }  # fmt: skip

        def score(seen: SeenModel, own: Candidates) -> Floats:
            x, z = (_chance(margins(network, [seen.vector], part)[0]) for part in (own, known))
            return exceeded(x / _expected(others[seen.victim], a), (z / _expected(usual, a))[there], self.gamma)

        yield from by_model(view, candidates, self.models, self.rounds, score)

    def _tuned(self, population: Floats, inside: NDArray[np.bool_]) -> float:
        """The `a` with which the first reference's own training data is told best, by references that are not its
        counterpart: of each other pair exactly one was not trained on any picture."""
        usual, there = _without(population[2:], inside[2:])
        target, members = population[0], inside[0]

        def told(a: float) -> float:
            ratio = target / _expected(usual, a)
            values = exceeded(ratio[there], ratio[there & ~members], self.gamma)
            return auc(values[members[there]], values[~members[there]])

        return max((round(0.1 * step, 1) for step in range(11)), key=told)


def exceeded(x: Floats, z: Floats, gamma: float) -> Floats:
    """The share of `z` (n,) that each of `x` (N,) is at least gamma times of: (N,). 0.5 where there is no z."""
    if not len(z):
        return np.full(len(x), 0.5)
    return np.searchsorted(np.sort(z), x / gamma, side="right") / len(z)


def auc(members: Floats, others: Floats) -> float:
    """The chance that a member scores above another, ties counting half; 0.5 where one of them is missing."""
    if not len(members) or not len(others):
        return 0.5
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, members, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(others)))


def _chance(phi: Floats) -> Floats:
    """p of the label, from phi."""
    return np.exp(-np.logaddexp(0.0, -phi))


def _expected(out: Floats, a: float) -> Floats:
    return ((1 + a) * out + 1 - a) / 2


def _without(chance: Floats, inside: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """The mean (n,) over the models that were not trained on an example, and whether there is any such model."""
    count = (~inside).sum(axis=0)
    return np.where(inside, 0.0, chance).sum(axis=0) / np.maximum(count, 1), count > 0
