"""Robbing the Fed: a first layer that sorts pictures into bins, so that differences of its rows are single pictures.

Fowl et al., arXiv 2110.13057: every row of the layer computes the same linear functional h(x), and the biases are minus
the quantiles of h over pictures of that kind. A row is then active for the pictures above its quantile, and what
follows sees all rows with the same weight, so the difference of two successive rows' gradients belongs to the
pictures between two quantiles: (dW_i - dW_i+1) / (db_i - db_i+1) = x where there is one. Cumulative behind ReLU; behind
Hardtanh each row is active in its bin alone.

Beyond the paper: the rows may be divided among several functionals. A picture that shares its bin in one of them is
alone in another, and what is known is taken away from the bins where it is not alone (as an invertible Bloom lookup
table is read; Goodrich and Mitzenmacher, arXiv 1101.2245).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.payloads.functionals import cosine_mode, quantiles, supposed_quantiles
from veilmesh.attacks.payloads.places import Entrance, entrance, write
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Imprint"]

Floats = NDArray[np.float64]

_SPREAD = 0.02  # standard deviation that a functional is scaled to: small, for an update is then large against rounding
_CALM_SPREAD = 0.25  # of several local steps, which must stay small against the bins' width
_LOUDNESS = 0.5  # how far the bins together may move what follows: a saturated softmax has no gradient


@PAYLOADS.register("imprint")
@dataclass(frozen=True, slots=True)
class Imprint:
    """Sort pictures into the rows of the first layer, by quantiles of linear functionals (Robbing the Fed).

    For networks that begin with a fully connected layer, with a ReLU or a Hardtanh and another fully connected one
    behind it: mlp, and imprinted before any other. The attack imprint reads the answers.

    Args:
        functionals: how many functionals share the rows; 1 is the paper's.
        mode: the first of them, as the number of a cosine mode; 0 is the mean brightness.
        public_quantiles: take the quantiles from public pictures where there are any; else those of photographs.
    """

    functionals: Annotated[int, Field(ge=1, le=16)] = 3
    mode: Annotated[int, Field(ge=0)] = 0
    public_quantiles: bool = True

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        """As `Payload.craft`."""
        network = Network(public)
        place = entrance(network)
        if place is None or place.next is None or not isinstance(place.activation, nn.ReLU | nn.Hardtanh):
            raise BadInput(
                "An imprint needs a network that begins with a fully connected layer, a ReLU and another one behind "
                "it; take model mlp with activation relu, or model imprinted."
            )
        rows = place.layer.module.out_features
        if rows < 2 * self.functionals:
            raise BadInput(f"An imprint of {self.functionals} functionals needs twice as many rows; this has {rows}.")
        crafted = start.copy()
        pieces = [
            self._bins(public, place, self.mode + i, len(share))
            for i, share in enumerate(np.array_split(np.arange(rows), self.functionals))
        ]
        weight, bias = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
        write(crafted, place.layer, weight, bias)
        write(crafted, place.next, *_alive(place, network, _spread(public), rng))
        return crafted

    def _bins(self, public: Public, place: Entrance, mode: int, rows: int) -> tuple[Floats, Floats]:
        """Weights (rows, in) and biases (rows,) of the bins of one functional."""
        functional = cosine_mode(mode, public.shape)
        sparse = isinstance(place.activation, nn.Hardtanh)
        levels = np.arange(0 if sparse else 1, rows + sparse) / rows
        inner = levels.clip(0.25 / rows, 1 - 0.25 / rows)
        if public.pictures is not None and len(public.pictures) > 1 and self.public_quantiles:
            edges = quantiles(public.pictures.reshape(len(public.pictures), -1).astype(np.float64) @ functional, inner)
        else:
            edges = supposed_quantiles(mode, public.shape, inner)
        weight = functional / place.factor
        edges, scale = edges + weight @ place.offset, _spread(public) / _width(edges)
        if sparse:
            edges[0], edges[-1] = edges[0] - _width(edges), edges[-1] + _width(edges)
            return _windows(weight, edges)
        lowest = np.minimum(weight * place.offset, weight * (place.offset + place.factor)).sum()
        edges = np.concatenate([[lowest - 1e-3 * _width(edges)], edges])  # the first row is active for every picture
        return np.tile(scale * weight, (rows, 1)), -scale * edges


def _windows(weight: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Rows that are within [-1, 1] between two successive of `edges` (rows + 1,) and nowhere else."""
    half = np.maximum(np.diff(edges) / 2, 1e-6)
    centre = (edges[:-1] + edges[1:]) / 2
    return weight[None] / half[:, None], -centre / half


def _spread(public: Public) -> float:
    return _SPREAD if public.local_steps == 1 else _CALM_SPREAD


def _width(edges: Floats) -> float:
    """A functional's standard deviation, near enough, from its quantiles: it only sets a scale."""
    return float(max(edges.std(), 1e-6))


def _alive(place: Entrance, network: Network, spread: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The next layer's weights (out, rows), all columns the same, and biases (out,).

    Where it says the classes, no two examples of a bin may cancel or look like one, so the classes' weights have two
    signs and sizes between 1 and 1.9. Where it is hidden, all its units must be active, so it is positive.
    """
    assert place.next is not None  # asked before
    rows, out = place.layer.module.out_features, place.next.module.out_features
    sizes = 1 + 0.9 * (np.arange(out) * (5**0.5 - 1) / 2 % 1)
    hidden = out != network.classes
    column = sizes if hidden else sizes * (-1.0) ** np.arange(out)
    column = rng.permutation(column) * (_LOUDNESS / (rows * spread))
    bias = np.full(out, 0.01 if hidden else 0.0)
    return np.repeat(column[:, None], rows, axis=1), bias
