"""Read what an imprinted network says of single pictures: differences of successive rows of its layer of bins.

Fowl et al., arXiv 2110.13057: the difference of two rows' gradients belongs to the pictures of one bin; where there is
one, its weight part divided by its bias part is the picture. Which bins hold one picture is seen from outside: a
mixture leaves the range of pictures or its own bin, and, where the update's scale is known, the bias part of a single
picture is what the network itself says of that picture with one of the labels. Where rows compute several functionals,
pictures that are known are then taken away from the bins where they are not alone (payloads/imprint.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inversion.bin_table import BinTable, Found
from veilmesh.attacks.inversion.bins import Bins, bins_of
from veilmesh.attacks.inversion.labels import batch_size, infer_labels
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.crypto.codecs.base import Vector

__all__ = ["ReadImprint", "prepare"]

Labels = NDArray[np.int64]

_UNSCALED = ("clip", "private-update", "correlated-noise", "noise")  # guards behind which the scale is not known


@ATTACKS.register("imprint")
@dataclass(frozen=True, slots=True)
class ReadImprint:
    """Single pictures of any batch, also of a sum over peers, from the layer of bins that a crafted model has.

    The layer is found by what it computes. From networks that have none nothing is guessed. `details`: "bins" that are
    not empty, and "sure" pictures, whose bias parts fit them; the others may be mixtures of two.

    Args:
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at.
        peel: take what is known away from the bins where it is not alone, where the update's scale is known.
    """

    reconstructs: ClassVar[str] = "pictures"

    targets: Annotated[int, Field(ge=1)] = 16
    first: Annotated[int, Field(ge=0)] = 0
    peel: bool = True

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws nothing from `rng`."""
        network = Network(view.public)
        prepared: tuple[Vector, Bins | None] | None = None
        for observed in observe_updates(view, self.targets, first=self.first):
            if prepared is None or not np.array_equal(prepared[0], observed.start):
                prepared = observed.start, prepare(network, observed.start)
            yield self.guess(network, prepared[1], observed, view.public)

    def read(self, network: Network, observed: Observed, public: Public) -> Guess:
        """What one update, of a peer or the mean of several, gives away. Loads its start into `network`."""
        return self.guess(network, prepare(network, observed.start), observed, public)

    def guess(self, network: Network, bins: Bins | None, observed: Observed, public: Public) -> Guess:
        """What one update gives away, the bins being known; and the labels of its batch."""
        labels = infer_labels(network, observed, public)  # loads the start, which pictures() wants to be there
        return _guess(observed, self.pictures(network, bins, observed, public), labels, bins)

    def pictures(self, network: Network, bins: Bins | None, observed: Observed, public: Public) -> Found:
        """The reading itself: differences and quotients of rows. With `peel`, `network`, which has `observed.start`
        loaded, is asked what is alone in a bin."""
        if bins is None:
            return Found.nothing(network.shape)
        layer, out = bins.layer, bins.layer.module.out_features
        assert layer.bias is not None  # bins_of() takes only layers that have one
        weight, bias = observed.update[layer.weight].reshape(out, -1), observed.update[layer.bias]
        table = BinTable(network, bins, weight, bias)
        count = batch_size(observed, public) * public.local_steps
        return table.peeled(_scale(observed, public), count) if self.peel else table.plausible(count)


def prepare(network: Network, start: Vector) -> Bins | None:
    """The bins of a crafted model (d,), None where it has none; needs nothing of any victim, so whoever crafted it has
    them before the round begins. Loads `start` into `network`."""
    network.load(start)
    return bins_of(network)


def _scale(observed: Observed, public: Public) -> float | None:
    """What makes an update the negative sum of the examples' gradients; None where that is not known."""
    lossy = any(guard.get("name") in _UNSCALED for guard in public.guards)
    if public.private or lossy or public.local_steps != 1 or observed.coverage < 1 - 1e-6 or public.optimizer != "sgd":
        return None
    return -batch_size(observed, public) / public.learning_rate


def _guess(observed: Observed, found: Found, labels: Labels, bins: Bins | None) -> Guess:
    """Labels are of the pictures, in their order; where a picture did not say its own, of what is left of `labels`."""
    left = labels.tolist()
    own = found.labels.tolist()
    for label in own:
        if label in left:
            left.remove(label)
    ordered = [label if label >= 0 else (left.pop(0) if left else 0) for label in own]
    ordered = (ordered + left)[: max(len(labels), len(own))]
    sure = found.sure / len(found.pictures) if len(found.pictures) else 0.0
    details = {
        "exact": observed.exact, "coverage": observed.coverage, "imprinted": bins is not None,
        "bins": found.filled, "sure": found.sure,
    }  # fmt: skip
    return Guess(
        observed.victim, observed.round, found.pictures, np.array(ordered, np.int64), 1.0 - sure, details,
        observed.among,
    )  # fmt: skip
