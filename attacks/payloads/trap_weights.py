"""Trap weights: a first layer most of whose neurons fire for few pictures, so that more rows are single pictures.

Boenisch et al., arXiv 2112.02918 (When the curious abandon honesty), section 5: half of a row's weights are negative,
and the other half are their negatives times something less than one, in random places. The sum over a picture is then
negative as a rule, and only pictures that fit the row's few positive places make it fire. The attack analytic reads the
answers as it reads any fully connected layer's.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.payloads.places import entrance, write
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector

__all__ = ["TrapWeights"]

Floats = NDArray[np.float64]


@PAYLOADS.register("trap-weights")
@dataclass(frozen=True, slots=True)
class TrapWeights:
    """Make the neurons of a fully connected first layer fire for few pictures (trap weights).

    Args:
        scale: what the positive half is of the negative one, in size.
        std: standard deviation of the normal variable whose size the negative weights have.
        calibrated: set each row's bias so that it fires for about one public picture in a batch, instead of none at
            all; beyond the paper, which tries several scales. Without public pictures there is nothing to set it by.
    """

    scale: Annotated[float, Field(gt=0, le=1)] = 0.95
    std: Annotated[float, Field(gt=0)] = 0.5
    calibrated: bool = False

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        """As `Payload.craft`."""
        place = entrance(Network(public))
        if place is None or not isinstance(place.activation, nn.ReLU):
            raise BadInput(
                "Trap weights need a network that begins with a fully connected layer and a ReLU; take model mlp with "
                "activation relu, or model imprinted."
            )
        rows, inputs = place.layer.module.out_features, place.layer.module.in_features
        weight = self._rows(rows, inputs, rng)  # of the picture in [0, 1]; the layer may be fed another scale of it
        bias = -self._thresholds(weight, public)
        crafted = start.copy()
        fed = weight / place.factor
        write(crafted, place.layer, fed, bias - fed @ place.offset)
        return crafted

    def _rows(self, rows: int, inputs: int, rng: np.random.Generator) -> Floats:
        half = inputs // 2
        sizes = np.abs(rng.normal(0.0, self.std, (rows, half)))
        shuffled = rng.permuted(sizes, axis=1)
        flat = np.concatenate([-sizes, self.scale * shuffled, np.zeros((rows, inputs - 2 * half))], axis=1)
        found: Floats = rng.permuted(flat, axis=1) / np.sqrt(inputs)
        return found

    def _thresholds(self, weight: Floats, public: Public) -> Floats:
        if not self.calibrated or public.pictures is None or not len(public.pictures):
            return np.zeros(len(weight))
        answers = public.pictures.reshape(len(public.pictures), -1).astype(np.float64) @ weight.T
        found: Floats = np.quantile(answers, 1 - 1 / max(public.batch, 2), axis=0)
        return found
