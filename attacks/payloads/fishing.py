"""Fishing for examples: a last layer under which only one class, or only part of it, has a gradient in any batch.

Wen et al., arXiv 2202.00580: with zero weights and large biases for all classes but the target, the softmax does not
doubt that it is one of the others. An example of another class then sends nothing back, for the target's probability is
0; one of the target class sends its whole gradient back. From an average over ever so many examples, the few of one
class come out as if they had been alone.

Of several examples of the class one is left where the network has a fully connected hidden layer: all its units but one
are silenced, and that one's bias is lowered until it fires for about one example of the class in a batch. (The
authors' code does this with the target's own logit, which is enough where a batch has one class only: with others in
it, whatever is confidently taken for the target sends a gradient back too.)

How an update is then read: `as_single` makes of it what those examples alone would have caused, and any inversion with
that few pictures of the class reads it; the attack fishing does both.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from veilmesh.attacks.inversion.bins import rows_of
from veilmesh.attacks.inversion.labels import batch_size
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.payloads.places import last_layer, leaves
from veilmesh.attacks.seen.observed import Observed
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Fishing", "as_single", "fished_class"]

Floats = NDArray[np.float64]

_CERTAIN = 50.0  # a class that is this far below the others has no probability in float32
_DEAD = -1e3  # the bias of a silenced unit


@PAYLOADS.register("fishing")
@dataclass(frozen=True, slots=True)
class Fishing:
    """Let only examples of one class, and there only those with a strong feature, have a gradient (fishing).

    Args:
        target: the class to fish for, 0 to K-1.
        feature: unit of the last hidden layer that chooses within the class; none: the whole class. Needs that layer to
            be fully connected, with a ReLU.
        quantile: the share of the class in which the feature is too weak; none: all but one of as many as a batch has
            of the class on average. Taken from public pictures, of the class if their classes are known.
        weight: of the target class, the same for every feature (the paper has 0.5); none: those it had, which an
            inversion reads better.
        bias: of every other class.
    """

    target: Annotated[int, Field(ge=0)] = 0
    feature: Annotated[int, Field(ge=0)] | None = None
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    bias: Annotated[float, Field(ge=100)] = 1000.0

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        """As `Payload.craft`."""
        network = Network(public)
        last = last_layer(network)
        if last is None or last.bias is None:
            raise BadInput("Fishing needs a fully connected last layer with a bias, and this network has none.")
        if self.target >= public.classes:
            raise BadInput(
                f"Fishing for class {self.target} needs more classes than the {public.classes} of this task."
            )
        crafted = start.copy()
        weight = np.zeros((network.classes, last.module.in_features))
        bias = np.full(network.classes, self.bias)
        weight[self.target] = last.weight_of(start)[self.target] if self.weight is None else self.weight
        bias[self.target] = 0.0
        if self.feature is not None:
            weight[self.target] = (self.weight or 0.5) * (np.arange(last.module.in_features) == self.feature)
            self._gate(network, public, start, crafted, self.feature)
        crafted[last.weight], crafted[last.bias] = weight.reshape(-1), bias
        return crafted

    def _gate(self, network: Network, public: Public, start: Vector, crafted: Vector, feature: int) -> None:
        """Write the hidden layer's biases: one unit fires for a share of the class, the others never."""
        hidden = _hidden(network)
        if hidden is None or hidden.bias is None or feature >= hidden.module.out_features:
            raise BadInput(
                "Fishing by a feature needs that unit in a fully connected hidden layer with a ReLU before the last "
                "layer; take model mlp, another feature, or none."
            )
        network.load(start)
        before = rows_of(network, hidden, _pictures(public, self.target))[:, feature]
        bias = np.full(hidden.module.out_features, _DEAD)
        bias[feature] = start[hidden.bias][feature] - np.quantile(before, self._share(public))
        crafted[hidden.bias] = bias

    def _share(self, public: Public) -> float:
        """The share of the class that is kept out."""
        if self.quantile is not None:
            return self.quantile
        return 1.0 - 1.0 / max(1.0, public.batch / public.classes) if public.batch > public.classes else 0.05


def fished_class(network: Network, start: Vector) -> int | None:
    """The class that the parameters `start` (d,) fish for; None where they do not."""
    last = last_layer(network)
    bias = None if last is None else last.bias_of(start)
    if last is None or bias is None:
        return None
    target = int(bias.argmin())
    others = np.delete(np.arange(len(bias)), target)
    weight = last.weight_of(start)
    fished = weight[target].any() and not weight[others].any() and (bias[others] > bias[target] + _CERTAIN).all()
    return target if fished else None


def as_single(observed: Observed, public: Public, network: Network) -> Observed | None:
    """What the fished examples behind `observed` would have caused alone: `samples` of them, as one step's batch.

    An update of the whole batch becomes one of the mean over the fished; the last layer, which every example writes to,
    is filled in with what those leave there. Where a feature chose, one example is supposed. None where nothing was
    caught, or where `observed` did not begin at a fished model.
    """
    target, last = fished_class(network, observed.start), last_layer(network)
    if target is None or last is None or last.bias is None:
        return None
    batch = batch_size(observed, public)
    gradient = observed.update.astype(np.float64) / -(public.learning_rate * public.local_steps)
    doubt = -float(gradient[last.bias][target])  # how many of the batch are of the class, as a share
    row = last.weight_of(gradient)[target]
    if doubt <= 0.25 / batch or not row.any():
        return None
    by_feature = np.count_nonzero(last.weight_of(observed.start)[target]) == 1
    gradient *= batch if by_feature else 1 / doubt
    count = 1 if by_feature else max(1, min(batch, round(doubt * batch)))
    _fill_in(gradient, last, target, observed.start)
    update = (-public.learning_rate * gradient).astype(np.float32)
    return replace(observed, update=update, said=None, samples=count)


def _fill_in(gradient: Floats, last: LinearLayer, target: int, start: Vector) -> None:
    """Write the last layer's part of the gradient (d,), given that only the row of `target` is the fished ones'."""
    bias = last.bias_of(start)
    assert bias is not None  # asked before
    assert last.bias is not None  # as above
    chances = np.exp(bias - bias.max())
    chances[target] = 0.0
    wrong = chances / chances.sum()
    wrong[target] = -1.0
    features = -last.weight_of(gradient)[target]
    gradient[last.weight] = np.outer(wrong, features).reshape(-1)
    gradient[last.bias] = wrong


def _hidden(network: Network) -> LinearLayer | None:
    """The fully connected layer whose ReLU the last layer is fed by; None where it is something else."""
    last, order = last_layer(network), [module for _, module in leaves(network)]
    if last is None:
        return None
    end = next(i for i, module in enumerate(order) if module is last.module)
    if end < 2 or not isinstance(order[end - 1], nn.ReLU):
        return None
    return next((layer for layer in network.linear_layers() if layer.module is order[end - 2]), None)


def _pictures(public: Public, target: int) -> NDArray[np.float32]:
    """Public pictures of the class, or of any class, or noise."""
    if public.pictures is None or not len(public.pictures):
        return generator(0, "fishing").random((64, *public.shape), dtype=np.float32)
    labels = public.picture_labels
    mine = public.pictures[labels == target] if labels is not None and labels.ndim == 1 else public.pictures[:0]
    return np.ascontiguousarray(mine if len(mine) > 3 else public.pictures)
