"""What a model that nobody ran is worth on the run's test pictures."""

import torch

from veilmesh.crypto.codecs.base import Vector
from veilmesh.sim.cast import Cast
from veilmesh.tasks.models.build import build_model, vector_to_parameters
from veilmesh.tasks.scoring import score

__all__ = ["accuracy_of"]


def accuracy_of(cast: Cast, parameters: Vector) -> float:
    """The share of test pictures that the run's network names rightly with `parameters` (d,)."""
    data, model = cast.dataset, cast.model
    network = build_model(model.name, model.options, data.shape, data.classes, cast.scenario.seed).eval()
    vector_to_parameters(network, parameters)
    return score(network, torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)).accuracy
