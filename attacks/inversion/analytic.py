"""What a fully connected layer was fed, in closed form: the input is weight gradient divided by bias gradient.

For a = W x + b every row i gives dL/dW_i = (dL/db_i) x (Phong et al. 2017; Geiping et al., arXiv 2003.14053, section
3). One example is recovered exactly from any row. In a batch row i gives the mean of the inputs weighted with dL/db_i
of each example: exact where a neuron was active for one example only, a mixture otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inversion.labels import batch_size, infer_labels
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput

__all__ = ["Analytic", "distinct_inputs", "plausible_pictures", "single_input"]

Floats = NDArray[np.float64]

_FAINT = 1e-4  # rows with a bias gradient below this share of the largest are rounding errors
_ALIKE = 0.999  # cosine above which two candidates are one


@ATTACKS.register("analytic")
@dataclass(frozen=True, slots=True)
class Analytic:
    """Exact inputs of fully connected layers, from their weight and bias gradients.

    Where the first layer sees the picture itself, guesses are pictures. The inputs of other layers, features of the
    picture, are in `details["features"]`, by layer: one vector for batch 1, the distinct candidates otherwise.

    Args:
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at.
        features: whether to report the inputs of deeper layers.
        across: of groups that show only sums, solve the sums of all rounds for single members.
    """

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = ("masked-proxy",)  # what else than models it reads

    targets: Annotated[int, Field(ge=1)] = 16
    first: Annotated[int, Field(ge=0)] = 0
    features: bool = True
    across: bool = False

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws nothing from `rng`. Raises BadInput on a network without such a layer."""
        network = Network(view.public)
        layers = [layer for layer in network.linear_layers() if layer.bias is not None]
        if not layers:
            raise BadInput("The analytic attack needs a fully connected layer with a bias, and this network has none.")
        for observed in observe_updates(view, self.targets, self.across, self.first):
            labels = infer_labels(network, observed, view.public)
            yield self._guess(network, layers, observed, labels, batch_size(observed, view.public))

    def _guess(
        self, network: Network, layers: list[LinearLayer], observed: Observed, labels: NDArray[np.int64], batch: int
    ) -> Guess:
        pictures = np.zeros((0, *network.shape), np.float32)
        features: dict[str, Any] = {}
        for layer in layers:
            inputs = _inputs(layer, observed, batch)
            if scale := network.picture_scale(layer):
                pictures = plausible_pictures((inputs - scale[0]) / scale[1], network.shape, batch)
            elif self.features:
                features[layer.name] = inputs.tolist()
        details = {"exact": observed.exact, "coverage": observed.coverage, "features": features}
        if batch == 1:
            details["snr"] = _signal_to_noise(layers[0], observed)
        loss = _distance(network, observed, pictures, labels[: len(pictures)])
        return Guess(observed.victim, observed.round, pictures, labels, loss, details, observed.among)


def single_input(weight: Floats, bias: Floats, said: NDArray[np.bool_] | None = None) -> Floats:
    """The input (in,) of a layer that saw one example, from weight (out, in) and bias (out,) gradients.

    The least-squares answer over all rows, which is any row's quotient without noise and averages noise out; entries
    with `said` (out, in) False are left out.
    """
    heard = np.ones(weight.shape) if said is None else said.astype(np.float64)
    above = (bias[:, None] * weight * heard).sum(axis=0)
    below = (np.square(bias)[:, None] * heard).sum(axis=0)
    quotient: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return quotient


def distinct_inputs(weight: Floats, bias: Floats) -> Floats:
    """Candidates (n, in) for the inputs of a layer that saw a batch: every row's quotient, largest bias gradient
    first, without those that point where an earlier one points."""
    order = [i for i in np.argsort(-np.abs(bias), kind="stable") if abs(bias[i]) > _FAINT * np.abs(bias).max()]
    kept: list[int] = []
    quotients = weight[order] / bias[order, None] if order else np.zeros((0, weight.shape[1]))
    unit = quotients / np.maximum(np.linalg.norm(quotients, axis=1, keepdims=True), 1e-30)
    for i in range(len(order)):
        if not kept or float((unit[kept] @ unit[i]).max()) < _ALIKE:
            kept.append(i)
    return quotients[kept]


def plausible_pictures(candidates: Floats, shape: tuple[int, int, int], batch: int) -> NDArray[np.float32]:
    """The `batch` most plausible of candidate pictures (n, C*H*W), as (at most batch, C, H, W) in [0, 1].

    A mixture with negative weights leaves the range, so what leaves it least comes first; a mixture with positive
    weights lies between the pictures it is made of, so of those in range each next one is the furthest from the
    span of the ones before (successive projection, Araujo et al. 2001).
    """
    outside = np.abs(candidates - candidates.clip(0, 1)).max(axis=1, initial=0.0)
    inside = np.flatnonzero(outside < 1e-3)
    chosen = _corners(candidates[inside], batch)
    order = [int(i) for i in inside[chosen]]
    order += [int(i) for i in np.argsort(outside, kind="stable") if int(i) not in order][: batch - len(order)]
    return candidates[order].clip(0, 1).astype(np.float32).reshape(-1, *shape)


def _corners(points: Floats, count: int) -> list[int]:
    """Indices of at most `count` of `points` (n, in): each the longest, once the span of the earlier is taken away."""
    rest = points.copy()
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        lengths = np.square(rest).sum(axis=1)
        lengths[chosen] = -1.0
        best = int(lengths.argmax())
        chosen.append(best)
        if lengths[best] > 0:
            unit = rest[best] / np.sqrt(lengths[best])
            rest = rest - np.outer(rest @ unit, unit)
    return chosen


def _inputs(layer: LinearLayer, observed: Observed, batch: int) -> Floats:
    """Inputs (n, in) of a layer; n is 1 for one example."""
    weight, bias = layer.weight_of(observed.update), layer.bias_of(observed.update)
    assert bias is not None  # run() takes only layers that have one
    if batch > 1:
        return distinct_inputs(weight, bias)
    said = None if observed.said is None else observed.said[layer.weight].reshape(weight.shape)
    return single_input(weight, bias, said)[None]


def _signal_to_noise(layer: LinearLayer, observed: Observed) -> float:
    """How much longer a weight gradient is than what no single input explains of it, in dB."""
    weight, bias = layer.weight_of(observed.update), layer.bias_of(observed.update)
    assert bias is not None  # run() takes only layers that have one
    said = np.ones(weight.shape, bool) if observed.said is None else observed.said[layer.weight].reshape(weight.shape)
    rest = np.linalg.norm((weight - np.outer(bias, single_input(weight, bias, said)))[said])
    signal = float(np.linalg.norm(weight[said]))
    return float(20 * np.log10(max(signal, 1e-300) / max(float(rest), 1e-15 * signal, 1e-300)))


def _distance(network: Network, observed: Observed, pictures: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """1 - cosine between the observed update and what the pictures would have caused; 1 where there are none."""
    if not len(pictures):
        return 1.0
    caused, seen = network.gradient(pictures, labels).astype(np.float64), -observed.update.astype(np.float64)
    length = float(np.linalg.norm(caused) * np.linalg.norm(seen))
    return 1.0 - float(caused @ seen) / length if length > 0 else 1.0
