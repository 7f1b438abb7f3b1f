"""Membership by the loss alone: what a model was trained on, it knows better than what it was not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Kind, Scores
from veilmesh.attacks.inference.models import KINDS
from veilmesh.attacks.inference.signals import by_model, margins
from veilmesh.attacks.network import Network
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["LossThreshold"]


@INFERENCES.register("loss-threshold")
@dataclass(frozen=True, slots=True)
class LossThreshold:
    """A low loss means membership (Yeom et al. 2018, arXiv 1709.01604).

    Args:
        models: which models it is read from.
        rounds: the mean over so many rounds, the latest ones.
    """

    infers: ClassVar[str] = "members"

    models: tuple[Kind, ...] = KINDS
    rounds: Annotated[int, Field(ge=1)] = 1

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`; a score is minus the cross-entropy. Draws nothing from `rng`."""
        network = Network(view.public)
        return by_model(
            view, candidates, self.models, self.rounds,
            lambda seen, known: -np.logaddexp(0.0, -margins(network, [seen.vector], known)[0]),
        )  # fmt: skip
