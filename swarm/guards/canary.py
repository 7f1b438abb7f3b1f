"""A look at the model one is made to train from, before anything that was learned there leaves.

Crafted models give themselves away by what they are for. Robbing the Fed (Fowl et al. 2022) needs rows that all measure
the same; trap weights (Boenisch et al. 2023, "When the curious abandon honesty") need rows whose positive and negative
halves cancel; suppression (Pasquini, Francati and Ateniese 2022) needs layers without a gradient; and fishing (Wen et
al. 2022) a last layer of other size than before. What is checked is each of these, and that a model did not become
another one since this peer last said its own. Garov, Dimitrov, Jovanovic and Vechev 2024, "Hiding in plain sight", show
that weights alone need not give a crafted model away, and look at how much one example's gradient outweighs the others'
(D-SNR); no example's gradient is known here, so what is looked at is how much of the update lies in a few rows.

All of it can be evaded by who knows the thresholds, at the price of a weaker attack; it is a tripwire, not a proof.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.guards.base import GUARDS, RoundInfo

__all__ = ["Canary"]

Floats = NDArray[np.float64]

_ENOUGH = 8
"""Rows, inputs and examples below which chance alone can look crafted."""

_MANY = 16
"""Rows and inputs from which a spread over rows says something."""

_LOOKED_AT = 512
"""Rows of a layer that are compared with each other, spread evenly over it: the comparison is quadratic."""


@GUARDS.register("canary")
@dataclass(frozen=True)
class Canary:
    """Say nothing in a round whose model looks crafted; the rest as it is. First among guards, before any noise.

    Of a fully connected layer: `parallel`, the share of its rows that have a near double (|cos| > 0.99); `balance`, the
    spread of its rows' sums over what independent weights would give; `dead`, the share of rows without any gradient in
    a batch of 8 or more; `few`, the share of its update (squared) that may lie in a fiftieth of 100 rows or more. Of
    every layer: `scale`, how many times larger than this peer left it; of every matrix or kernel: `away`, how far from
    that, over its length, and whether nothing at all was learned in it.
    """

    parallel: Annotated[float, Field(gt=0, le=1)] = 0.2
    balance: Annotated[float, Field(ge=0)] = 0.25
    dead: Annotated[float, Field(gt=0, le=1)] = 0.95
    few: Annotated[float, Field(gt=0, le=1)] = 0.9
    scale: Annotated[float, Field(gt=1)] = 3.0
    away: Annotated[float, Field(gt=0)] = 1.0

    def outgoing(self, x: Vector, info: RoundInfo, rng: np.random.Generator) -> Vector:
        return x if self.alarm(x, info) is None else np.zeros_like(x)

    def alarm(self, x: Vector, info: RoundInfo) -> str | None:
        """What looks crafted, in a sentence; None: nothing, or there is nothing to look at."""
        if info.start is None or not info.layout or not x.any():
            return None
        layers = list(_layers(x, info.start, info))
        most = max(_rms(layer.update) for layer in layers)
        usual = _rms(info.start if info.left is None else info.left)
        found = (self._of_layer(layer, info.samples, most, usual) for layer in layers)
        return next((why for why in found if why is not None), None)

    def _of_layer(self, layer: "_Layer", samples: int, most: float, usual: float) -> str | None:
        shaped = self._shaped(layer) if layer.start.ndim == 2 else None
        return shaped or self._unlearned(layer, samples, most) or self._changed(layer, usual)

    def _changed(self, layer: "_Layer", usual: float) -> str | None:
        """Other than it was left."""
        if layer.left is None:
            return None
        was = max(_rms(layer.left), usual)
        if (times := _rms(layer.start) / was if was else 0.0) > self.scale:
            return f"{layer.name} is {times:.1f} times as large as it was left"
        apart = _rms(layer.start - layer.left) / was if was else 0.0
        if layer.start.ndim > 1 and apart > self.away:
            return f"{layer.name} is {apart:.1f} times its length away from what it was left as"
        return None

    def _unlearned(self, layer: "_Layer", samples: int, most: float) -> str | None:
        """Without a gradient, or with one in a few rows only."""
        if layer.start.ndim < 2:
            return None
        if _rms(layer.update) <= 1e-9 * most:
            return f"{layer.name} learns nothing"
        if layer.start.ndim > 2 or samples < _ENOUGH or len(layer.start) < _MANY:
            return None
        rows = np.square(layer.update).sum(axis=1)
        if (dead := float((rows == 0).mean())) > self.dead:
            return f"{dead:.0%} of {layer.name} learns nothing"
        top = len(rows) // 50
        if top >= 2 and (share := float(np.sort(rows)[-top:].sum() / rows.sum())) > self.few:
            return f"{share:.0%} of what {layer.name} learns is in {top} of its {len(rows)} rows"
        return None

    def _shaped(self, layer: "_Layer") -> str | None:
        """Rows that look alike."""
        rows = layer.start[np.linalg.norm(layer.start, axis=1) > 0]
        if min(rows.shape, default=0) < _ENOUGH:
            return None
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        some = rows[:: -(-len(rows) // _LOOKED_AT)]
        near = np.abs(some @ some.T)
        np.fill_diagonal(near, 0)
        if (doubles := float((near.max(axis=1) > 0.99).mean())) > self.parallel:
            return f"{doubles:.0%} of the rows of {layer.name} have a double"
        if min(rows.shape) >= _MANY and (spread := float(rows.sum(axis=1).std())) < self.balance:
            return f"the rows of {layer.name} all add up to the same ({spread:.2f} of the usual spread)"
        return None


class _Layer(NamedTuple):
    """One parameter: where training began, what was learned, and how this peer had left it."""

    name: str
    start: Floats
    update: Floats
    left: Floats | None


def _layers(update: Vector, start: Vector, info: RoundInfo) -> list[_Layer]:
    found = []
    for name, shape, offset in info.layout:
        part = slice(offset, offset + int(np.prod(shape)))
        left = None if info.left is None else info.left[part].astype(np.float64).reshape(shape)
        wide = [vector[part].astype(np.float64).reshape(shape) for vector in (start, update)]
        found.append(_Layer(name, wide[0], wide[1], left))
    return found


def _rms(x: NDArray[np.floating]) -> float:
    """Root mean square of an array; 0 where it is empty."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0
