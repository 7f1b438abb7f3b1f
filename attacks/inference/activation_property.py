"""What a data owner's examples were like, from their activations: a classifier of activations that the adversary makes.

As `property.py` does with updates (Melis et al. 2019, arXiv 1805.04049, section 4), with the head that is known in
place of training: batches of public pictures with and without the property go through it, and a linear classifier
learns to tell the means and the spreads of their activations apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.inference.activation_match import activations_by_round
from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.inference.property import Property, ridge
from veilmesh.attacks.inference.signals import public_pictures
from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.told_heads import HeadsSeen
from veilmesh.attacks.view import Public, View
from veilmesh.peer.machine import PeerId

__all__ = ["ActivationProperty"]


@INFERENCES.register("activation-property")
@dataclass(frozen=True, slots=True)
class ActivationProperty:
    """Whether the examples behind a round's activations have a property, by a classifier of simulated ones.

    The head is the one with which the round began where that is told, and the one that all began with elsewhere: the
    longer ago that is, the less it is like the victim's.

    Args:
        what, label: as of `property`.
        shadows: how many rounds are simulated for each that was seen.
        ridge: the classifier's regularisation, over the mean square of its features.
        targets: at most so many rounds of each victim, the earliest.
    """

    infers: ClassVar[str] = "property"

    what: Literal["class", "majority", "bright"] = "class"
    label: Annotated[int, Field(ge=0)] = 0
    shadows: Annotated[int, Field(ge=4)] = 128
    ridge: Annotated[float, Field(gt=0)] = 0.1
    targets: Annotated[int, Field(ge=1)] = 16

    @property
    def _asked(self) -> Property:
        return Property(what=self.what, label=self.label, shadows=self.shadows)

    def holds(self, pictures: NDArray[np.float32], labels: NDArray[np.int64], public: Public) -> bool:
        """As `Property.holds`."""
        return self._asked.holds(pictures, labels, public)

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Property.run`, (1,) for each round that was seen of each data owner."""
        known, stages = public_pictures(view.public), StageMap(view.public)
        seen, heads = activations_by_round(view), HeadsSeen(view, stages)
        drawn = self._asked.batches(view.public, known, rng)
        if drawn is None:
            return
        places, truth = drawn
        pictures = torch.from_numpy(np.ascontiguousarray(known.pictures))
        for victim in sorted(seen):
            for round_ in sorted(seen[victim])[: self.targets]:
                module = stages.load(0, heads.before(victim, round_)[1]).eval()
                with torch.no_grad():
                    every = module(pictures).flatten(1)
                shadows = np.stack([_features(every[at]) for at in places])
                value = ridge(shadows, np.where(truth, 1.0, -1.0), _features(seen[victim][round_]), self.ridge)
                yield Scores(victim, "local", round_, np.array([value]), 0.0)


def _features(z: Tensor) -> NDArray[np.float64]:
    """What is told of a round's activations (B, F): (2F,)."""
    both = torch.cat([z.mean(0), z.std(0)]).double()
    return np.asarray(both.numpy())
