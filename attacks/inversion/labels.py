"""Which labels were in the batch: read off the last layer's bias gradient, before any picture is recovered.

For cross-entropy the bias gradient of class c is mean_n p_nc - k_c / B, where k_c of the B examples carry label c. One
example alone leaves one negative entry, its label (Zhao et al., arXiv 2001.02610, iDLG). In a batch negative entries
are labels that occur; how often is estimated from the size of the entries (Wainakh et al., arXiv 2105.09369, LLG), and
better where the scale is known, from what the public network says of public pictures (the offset of LLG*). Labels
are always inferred here; no attack of this program is told them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.network import Network
from veilmesh.attacks.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector

__all__ = ["LabelRecovery", "batch_size", "counts_by_expectation", "counts_by_impact", "infer_labels"]

_CLIPPING = ("clip", "private-update", "correlated-noise")  # guards

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def infer_labels(network: Network, observed: Observed, public: Public) -> Labels:
    """The labels (B,) of the batch behind `observed`, sorted. Loads `observed.start` into `network`."""
    return np.repeat(np.arange(network.classes), _counts(network, observed, public)[0])


def batch_size(observed: Observed, public: Public) -> int:
    """How many pictures a local step saw, of all peers in a sum: what they said, but never more than is allowed."""
    return int(np.clip(observed.samples // public.local_steps, 1, public.batch * max(1, len(observed.among))))


def counts_by_impact(gradient: Floats, batch: int) -> Labels:
    """How often each class occurs, (K,), from a bias gradient (K,) of unknown scale.

    Negative entries occur; each occurrence is taken to move an entry by the mean m = sum of negative entries / B
    (Wainakh et al., algorithm 1): take one of each negative class, most negative first, then again and again the
    smallest entry, adding -m to it.
    """
    rest = gradient.astype(np.float64).copy()
    counts = np.zeros(rest.size, np.int64)
    impact = rest[rest < 0].sum() / batch
    present = [c for c in np.argsort(rest, kind="stable") if rest[c] < 0][:batch]
    for step in range(batch):
        chosen = present[step] if step < len(present) else int(rest.argmin())
        counts[chosen] += 1
        rest[chosen] -= impact
    return counts


def counts_by_expectation(gradient: Floats, batch: int, expected: Floats) -> Labels:
    """How often each class occurs, (K,), from a bias gradient (K,) of known scale: k = B (expected - gradient).

    `expected` (K,): the mean probabilities that the network gives before it is trained further. Rounded by largest
    remainder to sum to B; classes with a negative entry occur at least once.
    """
    wanted = batch * (expected - gradient)
    present = [c for c in np.argsort(gradient, kind="stable") if gradient[c] < 0][:batch]
    counts = np.zeros(gradient.size, np.int64)
    counts[present] = 1
    for _ in range(batch - len(present)):
        counts[int((wanted - counts).argmax())] += 1
    return counts


def _counts(network: Network, observed: Observed, public: Public) -> tuple[Labels, float]:
    """Class counts (K,), and how badly they explain the observed bias gradient: 1 - cosine.

    Every attack of this folder comes through here first. Raises BadInput where an update is no multiple of a gradient.
    """
    if public.optimizer != "sgd":
        raise BadInput(
            f"This run trained with {public.optimizer}, behind which an update is no multiple of a gradient, and the "
            "attacks here take it for one; run them with training.optimizer = sgd. It says nothing about privacy."
        )
    network.load(observed.start)
    gradient = _bias_gradient(network, observed.update) / (-public.learning_rate * public.local_steps)
    expected = network.confidence()
    batch = batch_size(observed, public)
    if batch == 1:
        counts = np.bincount([int(gradient.argmin())], minlength=gradient.size)
    elif public.private or any(guard.get("name") in _CLIPPING for guard in public.guards):
        counts = counts_by_impact(gradient, batch)  # what was clipped has lost its scale
    else:
        counts = counts_by_expectation(gradient, batch, expected)
    return counts, _misfit(gradient, expected - counts / batch)


def _misfit(a: Floats, b: Floats) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / length if length > 0 else 1.0


def _bias_gradient(network: Network, update: Vector) -> Floats:
    """The last layer's bias part (K,); without a bias the weight's row sums, which have its sign where features are
    not negative."""
    layers = [layer for layer in network.linear_layers() if layer.module.out_features == network.classes]
    if not layers:
        raise BadInput("Labels are read off a fully connected last layer, and this network has none.")
    bias = layers[-1].bias_of(update)
    return layers[-1].weight_of(update).sum(axis=1) if bias is None else bias


@ATTACKS.register("label-recovery")
@dataclass(frozen=True, slots=True)
class LabelRecovery:
    """Which labels were in a batch, from the sign and size of the last layer's bias gradient.

    Guesses carry labels (B,) and no pictures. `targets`: at most so many rounds of each victim, the earliest.
    Source: Wainakh et al., arXiv 2105.09369.
    """

    reconstructs: ClassVar[str] = "labels"

    targets: Annotated[int, Field(ge=1)] = 16

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws nothing from `rng`. Raises BadInput on a network without labels to read."""
        network = Network(view.public)
        nothing = np.zeros((0, *view.public.shape), np.float32)
        for observed in observe_updates(view, self.targets):
            counts, misfit = _counts(network, observed, view.public)
            labels = np.repeat(np.arange(network.classes), counts)
            details = {"exact": observed.exact, "coverage": observed.coverage}
            yield Guess(observed.victim, observed.round, nothing, labels, misfit, details, observed.among)
