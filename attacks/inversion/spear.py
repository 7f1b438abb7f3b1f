"""SPEAR: a whole batch, exactly, from the gradient of a fully connected layer before a ReLU.

For z = W x + b and relu(z), dL/dW = sum_i delta_i x_i^T has rank B, and a singular value decomposition writes it as
L R with L (m, B) and R (B, n), while delta_i = L q_i and x_i = row i of Q^-1 R for some unknown Q (B, B). Since delta_i
is zero wherever example i did not excite a neuron, q_i is found as a direction in which L is sparse; dL/db = sum_i
delta_i gives the lengths. (Dimitrov, Baader, Mueller, Vechev: SPEAR, NeurIPS 2024, arXiv 2403.03945; the search is in
`sparse_directions.py`.) Ours, not theirs: which directions are believed (`_Missing.believed`), and what those that were
found say of the missing ones.

Checked here: the batch size is the numerical rank, without anybody's word; on pictures of digits and CIFAR-10,
networks of one hidden layer, every picture of a batch of 4 to 32 came out at more than 60 dB on most batches tried.
Taken from the paper's public summaries and not checked against the authors' program: their threshold, their order of
selection, their figures (B up to 25, ImageNet). Where it stops: above 20 to 30 examples a direction or two is often
not found in time, and all but a few pictures are then mixed with what is missing; neurons fewer than about 4 B; two
examples that excite the same neurons, or one only neurons that another excites too; noise, quantisers and
sparsifiers, which hide the rank. There the guesses are those of `analytic`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inversion.analytic import distinct_inputs, plausible_pictures
from veilmesh.attacks.inversion.labels import batch_size, infer_labels
from veilmesh.attacks.inversion.sparse_directions import Space, sparse_directions
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput

__all__ = ["Spear", "Unmixed", "numerical_rank", "unmix"]

Floats = NDArray[np.float64]

_MOST = 128  # examples; of more the search finds none
_SURE = 0.999  # share of all neurons and examples where activity and gradient agree: then nothing is left to look for


@ATTACKS.register("spear")
@dataclass(frozen=True, slots=True)
class Spear:
    """Exact batches from a fully connected layer before a ReLU, by low rank and sparsity (SPEAR).

    Where the first layer sees the picture, guesses are pictures; inputs of other layers that could be unmixed are in
    `details["features"]`. `details["rank"]` is the batch size as the gradient tells it, `details["agreement"]` the
    share of neurons and examples where what was found excites a neuron exactly if its gradient is not zero.
    With several local steps, or of several peers, the examples of all of them are unmixed together.

    Args:
        iterations: rounds of search at most, each of 4096 samples and a descent from 2 B starts; it stops when sure.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        features: whether to try deeper layers too.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 24
    targets: Annotated[int, Field(ge=1)] = 4
    features: bool = False

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput on a network without a fully connected layer that has a bias."""
        network = Network(view.public)
        layers = [layer for layer in network.linear_layers() if layer.bias is not None]
        if not layers:
            raise BadInput("SPEAR needs a fully connected layer with a bias, and this network has none.")
        for observed in observe_updates(view, self.targets):
            labels = infer_labels(network, observed, view.public)
            yield self._guess(network, layers, observed, labels, batch_size(observed, view.public), rng)

    def _guess(
        self, network: Network, layers: list[LinearLayer], observed: Observed, labels: NDArray[np.int64], batch: int,
        rng: np.random.Generator,
    ) -> Guess:  # fmt: skip
        network.load(observed.start)
        pictures = np.zeros((0, *network.shape), np.float32)
        details: dict[str, Any] = {"exact": observed.exact, "coverage": observed.coverage, "features": {}}
        loss = 1.0
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            scale = network.picture_scale(layer)
            if scale is None and not (self.features and after is not None):
                continue
            found = unmix(*_gradient(layer, observed), *_parameters(layer, after, observed), self.iterations, rng)
            if scale is None:
                details["features"][layer.name] = found.inputs.tolist()
                continue
            pictures = _pictures(found, layer, observed, scale, network.shape, batch)
            loss = 1.0 - found.agreement
            details |= {"rank": found.rank, "agreement": found.agreement, "directions": found.directions}
        return Guess(observed.victim, observed.round, pictures, labels, loss, details, observed.among)


@dataclass(frozen=True, slots=True, eq=False)
class Unmixed:
    """Inputs (n, in) of a layer, those first that agree best with what they excite; none where `rank` many directions
    were not found. `agreement`: of all of them, 0 to 1; 0 where there are none. `directions`: how many were found."""

    inputs: Floats
    agreement: float
    rank: int
    directions: int


def unmix(
    weight: Floats, bias: Floats, at: tuple[Floats, Floats], common: Floats | None, rounds: int,
    rng: np.random.Generator,
) -> Unmixed:  # fmt: skip
    """The inputs of a layer from its weight (out, in) and bias (out,) gradients at any common scale.

    `at`: the layer's own weight and bias. `common` (k, out): the next fully connected layer's weight, if it is known;
    every delta_i is, before the ReLU, a sum of its rows, if nothing but the ReLU is in between.
    """
    left, singular, right = np.linalg.svd(weight, full_matrices=False)
    rank, error = numerical_rank(singular, weight.shape)
    nothing = Unmixed(np.zeros((0, weight.shape[1])), 0.0, rank, 0)
    if not 0 < rank <= _MOST:
        return nothing
    left, singular, right = left[:, :rank], singular[:rank], singular[:rank, None] * right[:rank]
    space, best = Space.of(left, singular, error), nothing
    known = None if common is None else (common[:, space.live] / np.linalg.norm(left[space.live], axis=1)).T
    missing = _Missing(space, np.column_stack([right, left.T @ bias]), at, rng)
    for found in sparse_directions(space, rounds, rng, known, missing):
        here = _solved(missing.believed(found.q), left, right, bias, at)
        best = here if here.agreement >= best.agreement else best
        if best.agreement >= _SURE:
            break
    return best


def numerical_rank(singular: Floats, shape: tuple[int, ...]) -> tuple[int, float]:
    """How many of the singular values (n,), largest first, are more than noise; and that noise's standard deviation in
    one entry of the matrix of `shape` (the largest singular value of noise is about sigma (sqrt(m) + sqrt(n)))."""
    known = singular[singular > 1e-12 * singular[0]] if singular[0] > 0 else singular[:0]
    if len(known) < 2:
        return len(known), 0.0
    rank = int((known[:-1] / known[1:]).argmax()) + 1
    if known[rank - 1] < 30 * known[rank]:  # no gap: full rank, or noise everywhere
        return len(known), 0.0
    return rank, float(known[rank] / (np.sqrt(shape[0]) + np.sqrt(shape[1])))


@dataclass(frozen=True, slots=True, eq=False)
class _Missing:
    """What directions that were found say of those that were not.

    A row p (b,) with p q_i = 0 for every q_i that was found makes p R a combination of the missing examples alone, and
    p L^+ dL/db the sum of its weights. If one is missing that is the example itself; of more, random points of the
    flat that they span are guessed. An example tells which neurons it excites, and so where its gradient is zero.
    """

    space: Space
    right: Floats  # (b, in + 1): R beside L^+ dL/db
    at: tuple[Floats, Floats]
    rng: np.random.Generator

    def inverted(self, q: Floats) -> Floats:
        """Directions (n', b) from those so far (n, b)."""
        rank, known = len(self.right), self.believed(q)
        if not rank // 2 <= len(known) < rank:
            return np.zeros((0, rank))
        dual = np.linalg.svd(known)[2][len(known) :]
        inputs = self._points(dual @ self.right)
        zeros = (self.at[0][self.space.live] @ inputs.T + self.at[1][self.space.live, None] <= 0).T
        return self.space.least(zeros[zeros.sum(axis=1) >= rank]) if len(zeros) else np.zeros((0, rank))

    def believed(self, q: Floats) -> Floats:
        """Those of the directions (n, b) that an example can be behind, independent ones, the most likely first.

        Zero where W x + b <= 0 for some x in the span of the inputs: a halfspace of neurons. With K classes the
        gradients of more than K - 1 examples cancel wherever all of these are active: sparse, but no halfspace.
        """
        if not len(q):
            return q
        axes = np.linalg.qr(self.right[:, :-1].T)[0]
        known = np.column_stack([self.at[0] @ axes, self.at[1]])[self.space.live]
        active = np.where(self.space.zeros(q), -1.0, 1.0).T
        fitted = known @ np.linalg.lstsq(known, active, rcond=None)[0]
        right = (np.sign(fitted) == active).mean(axis=0)
        likely = np.flatnonzero(right > 0.85)
        order = likely[np.argsort(-right[likely], kind="stable")]
        return np.asarray(q[order][_independent(q[order], len(self.right))])

    def _points(self, rows: Floats) -> Floats:
        """Points (n, in) of the flat spanned by the missing examples, from (c, in + 1) combinations of them."""
        weights = rows[:, -1]
        if float(weights @ weights) == 0.0:
            return np.zeros((0, rows.shape[1] - 1))
        nearest = weights / (weights @ weights) @ rows[:, :-1]
        if len(rows) == 1:
            return nearest[None]
        along = np.linalg.svd(weights[None])[2][1:] @ rows[:, :-1]
        units = np.linalg.svd(along, full_matrices=False)[2]
        steps = self.rng.standard_normal((24, len(units)))
        steps *= 0.5 * np.sqrt(rows.shape[1]) / np.linalg.norm(steps, axis=1, keepdims=True)
        return np.asarray(nearest + (self.rng.random((24, 1)) * 2 * steps) @ units)


def _solved(q: Floats, left: Floats, right: Floats, bias: Floats, at: tuple[Floats, Floats]) -> Unmixed:
    """What independent directions (n, b) make of the batch; see `Unmixed`."""
    rank = len(right)
    if len(q) < rank:
        return Unmixed(np.zeros((0, right.shape[1])), 0.0, rank, len(q))
    mixing = q.T
    lengths = np.linalg.lstsq(left @ mixing, bias, rcond=None)[0]
    lengths = np.where(np.abs(lengths) > 1e-300, lengths, 1.0)
    inputs = np.asarray(np.linalg.solve(mixing * lengths, right), np.float64)
    delta = left @ (mixing * lengths)
    active = np.abs(delta) > 1e-4 * np.abs(delta).max(axis=0)
    agree = (active == (at[0] @ inputs.T + at[1][:, None] > 0)).mean(axis=0)
    order = np.argsort(-agree, kind="stable")
    return Unmixed(inputs[order], float(agree.mean()), rank, rank)


def _independent(q: Floats, count: int) -> list[int]:
    """At most `count` of `q` (n, b), each the first that is not a combination of those before."""
    basis = np.zeros((0, q.shape[1]))
    chosen: list[int] = []
    for i, one in enumerate(q):
        rest = one - (one @ basis.T) @ basis
        rest = rest - (rest @ basis.T) @ basis
        if len(chosen) < count and np.linalg.norm(rest) > 1e-6:
            basis = np.vstack([basis, rest / np.linalg.norm(rest)])
            chosen.append(i)
    return chosen


def _gradient(layer: LinearLayer, observed: Observed) -> tuple[Floats, Floats]:
    """Of weight and bias, up to a positive factor."""
    weight, bias = layer.weight_of(observed.update), layer.bias_of(observed.update)
    assert bias is not None  # run() takes only layers that have one
    return -weight, -bias


def _parameters(
    layer: LinearLayer, after: LinearLayer | None, observed: Observed
) -> tuple[tuple[Floats, Floats], Floats | None]:
    weight, bias = layer.weight_of(observed.start), layer.bias_of(observed.start)
    assert bias is not None
    fits = after is not None and after.module.in_features == layer.module.out_features
    return (weight, bias), after.weight_of(observed.start) if after is not None and fits else None


def _pictures(
    found: Unmixed, layer: LinearLayer, observed: Observed, scale: tuple[Any, Any], shape: tuple[int, int, int],
    batch: int,
) -> NDArray[np.float32]:  # fmt: skip
    """At most `batch` pictures: what was unmixed, if it is all pictures; else of it and of what single neurons saw the
    most plausible."""
    pictures = (found.inputs - scale[0]) / scale[1]
    if found.agreement < _SURE:
        alone = distinct_inputs(*_gradient(layer, observed))
        pictures = np.vstack([pictures, (alone - scale[0]) / scale[1]])
        return plausible_pictures(pictures, shape, batch)
    return np.asarray(pictures[:batch].clip(0, 1).astype(np.float32).reshape(-1, *shape))
