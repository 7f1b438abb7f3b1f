"""Which labels were in the batch: read off the last layer's gradient, before any picture is recovered.

For cross-entropy the bias gradient of class c is mean_n p_nc - k_c / B, where k_c of the B examples carry label c. One
example alone leaves one negative entry, its label (Zhao et al., arXiv 2001.02610, iDLG). In a batch negative entries
are labels that occur, and how often follows from their size (`label_counts.py`). Labels are always inferred here; no
attack of this program is told them.

Several local steps: the update is divided by rate times steps, and probabilities are those of the first and of the last
parameters, averaged. A last layer without bias: what its weight's rows have of the mean public feature h, which is
G h / |h|^2. Of iLRG (Ma et al., ICLR 2023) the equations were checked against a public copy of the authors' program:
row c of the weight gradient over entry c of the bias gradient stands for the mean feature of class c, and the last
layer makes a probability of it. Not taken over: a factor on its logits that they choose for each network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.inversion.label_counts import (
    counts_by_expectation,
    counts_by_impact,
    counts_by_presence,
    counts_by_restoration,
)
from veilmesh.attacks.network import LinearLayer, Network, Pictures
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.tasks.models import MODELS

__all__ = ["LabelRecovery", "Method", "batch_size", "counts_by_expectation", "counts_by_impact", "infer_labels"]

Method = Literal["auto", "idlg", "yin", "wainakh", "expectation", "ilrg"]

_CLIPPING = ("clip", "private-update", "correlated-noise")  # guards
_SCALELESS = ("sign",)  # codecs

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def infer_labels(network: Network, observed: Observed, public: Public) -> Labels:
    """The labels (B,) of the batch behind `observed`, sorted. Loads `observed.start` into `network`."""
    return np.repeat(np.arange(network.classes), _counts(network, observed, public, "auto")[0])


def batch_size(observed: Observed, public: Public) -> int:
    """How many pictures a local step saw, of all peers in a sum: what they said, but never more than is allowed."""
    return int(np.clip(observed.samples // public.local_steps, 1, public.batch * max(1, len(observed.among))))


@dataclass(frozen=True, slots=True, eq=False)
class _Evidence:
    """Of the last layer: `weight` (K, F), the gradient and `bias` (K,) likewise, or what stands for it; `features`
    (N, F) and `probabilities` (N, K) of public pictures; `given` (K, K), see `counts_by_restoration`."""

    weight: Floats
    bias: Floats
    features: Floats
    probabilities: Floats
    given: Floats

    def counts(self, method: Method, batch: int) -> Labels:
        """How often each class occurs, (K,)."""
        expected = self.probabilities.mean(axis=0)
        match method:
            case "idlg":
                return counts_by_presence(self.bias, batch)
            case "yin":
                return counts_by_presence(self.weight.min(axis=1), batch)
            case "wainakh":
                return counts_by_impact(self.bias, batch)
            case "ilrg":
                return counts_by_restoration(self.bias, batch, self.given)
            case "expectation":
                return counts_by_expectation(self.bias, batch, expected)
        return counts_by_expectation(self.bias, batch, expected, self._present(), others=not self._telling(batch))

    def _present(self) -> NDArray[np.bool_] | None:
        """Classes that occur (K,), where features are not negative: an entry of G_c is then a sum of p_nc h_n >= 0
        over the batch, less what those of class c contribute, and negative only if there are such."""
        if self.features.min() < 0:
            return None
        rounding = 1e-6 * np.abs(self.weight).max(axis=1)
        return np.asarray(self.weight.min(axis=1) < -rounding)

    def _telling(self, batch: int) -> bool:
        """Whether a class that shows no negative entry is absent: only where an example can be alone in exciting a
        feature, and not before training, when the offset is nearly exact and says so better."""
        silent = float((self.features == 0).mean()) > 0.1
        trained = float(self.probabilities.max(axis=1).mean()) > 0.5
        return silent and trained and self.features.shape[1] >= 2 * batch


def _counts(network: Network, observed: Observed, public: Public, method: Method) -> tuple[Labels, float]:
    """Class counts (K,), and how badly they explain the observed bias gradient: 1 - cosine.

    Every attack of this folder comes through here first. Raises BadInput where an update is no multiple of a gradient.
    """
    if public.optimizer != "sgd":
        raise BadInput(
            f"This run trained with {public.optimizer}, behind which an update is no multiple of a gradient, and the "
            "attacks here take it for one; run them with training.optimizer = sgd. It says nothing about privacy."
        )
    evidence = _evidence(network, observed, public)
    batch = batch_size(observed, public)
    counts = evidence.counts(_best(public, batch) if method == "auto" else method, batch)
    return counts, _misfit(evidence.bias, evidence.probabilities.mean(axis=0) - counts / batch)


def _best(public: Public, batch: int) -> Method:
    """Which method is best where. Measured on digits, faces and CIFAR-10, with batches of 4 to 64, before and after
    some epochs of training: by the offset, corrected by what is present, was as good as or better than all others,
    within a few per cent, wherever the scale is known. The exception seen: a trained network with fewer features than
    examples, and a batch of few of its classes, where "yin" finds twice as many."""
    lost = public.private or any(guard.get("name") in _CLIPPING for guard in public.guards)
    if batch == 1:
        return "idlg"
    if lost or public.codec.get("name") in _SCALELESS:
        return "wainakh"  # what was clipped has lost its scale
    return "auto"


def _misfit(a: Floats, b: Floats) -> float:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / length if length > 0 else 1.0


def _evidence(network: Network, observed: Observed, public: Public) -> _Evidence:
    """What the update says of the last layer. Raises BadInput where that is not fully connected."""
    if MODELS.get(str(public.model["name"])).per_pixel:
        raise BadInput("Labels are read off the gradient of one label for a picture; this network has every pixel's.")
    layers = network.linear_layers()
    if not layers or layers[-1].module.out_features != network.classes:
        raise BadInput("Labels are read off a fully connected last layer, and this network has none.")
    layer, scale = layers[-1], -public.learning_rate * public.local_steps
    weight, bias = layer.weight_of(observed.update) / scale, layer.bias_of(observed.update)
    bias = None if bias is None else bias / scale
    few = batch_size(observed, public) == 1  # its label is read off a sign, and needs next to no offset
    probes = torch.from_numpy(_probes(public)[: 8 if few else None]).to(network.device)
    features, probabilities, given = _answers(network, layer, observed.start, weight, bias, probes)
    if public.local_steps > 1:
        _, later, given_later = _answers(network, layer, observed.start + observed.update, weight, bias, probes)
        probabilities, given = (probabilities + later) / 2, (given + given_later) / 2
        network.load(observed.start)
    if bias is None or not _heard(observed, layer, public):
        said = None if observed.said is None else observed.said[layer.weight].reshape(weight.shape)
        bias = _without_bias(weight, features, said)
    return _Evidence(weight, bias, features, probabilities, given)


def _heard(observed: Observed, layer: LinearLayer, public: Public) -> bool:
    """Whether the update says the bias; of what a top-k leaves out the size is small, and zero will do."""
    if observed.said is None or layer.bias is None:
        return observed.said is None
    said = observed.said[layer.bias]
    return bool(said.any() if str(public.codec.get("name")).startswith("top-k") else said.all())


def _answers(
    network: Network, layer: LinearLayer, at: Vector, weight: Floats, bias: Floats | None, probes: Tensor
) -> tuple[Floats, Floats, Floats]:
    """At the parameters `at`: features (N, F) and probabilities (N, K) of public pictures, and `_Evidence.given`."""
    network.load(at)
    with torch.no_grad():
        features = network.features(probes)
        probabilities = layer.module(features).double().softmax(1).cpu().numpy()
    known = features.double().cpu().numpy()
    if bias is None:
        return known, probabilities, np.tile(probabilities.mean(axis=0), (network.classes, 1))
    means = weight / np.where(np.abs(bias) > 1e-12, bias, 1e-12)[:, None]
    longest = 3 * np.linalg.norm(known, axis=1).mean()  # a class that does not occur leaves a quotient of nearly zeros
    means *= np.minimum(1, longest / np.maximum(np.linalg.norm(means, axis=1), 1e-300))[:, None]
    logits = means @ layer.weight_of(at).T + (0.0 if (offset := layer.bias_of(at)) is None else offset)
    given = np.exp(logits - logits.max(axis=1, keepdims=True))
    return known, probabilities, given / given.sum(axis=1, keepdims=True)


def _probes(public: Public) -> Pictures:
    """Public pictures (N, C, H, W), or noise where there are none."""
    if public.pictures is not None and len(public.pictures):
        return np.ascontiguousarray(public.pictures[:128])
    return generator(0, "confidence").random((32, *public.shape), dtype=np.float32)


def _without_bias(weight: Floats, features: Floats, said: NDArray[np.bool_] | None) -> Floats:
    """What stands for a bias gradient (K,): the rows of a weight gradient (K, F) along the mean feature, over what was
    `said` (K, F). With one example it has the sign of the bias gradient where its feature is nearer to the mean than
    to the opposite; behind a ReLU that is always so."""
    mean = features.mean(axis=0)
    heard = np.ones(weight.shape) if said is None else said.astype(np.float64)
    below = heard @ np.square(mean)
    along: Floats = np.divide((weight * heard) @ mean, below, out=np.zeros(len(weight)), where=below > 0)
    return along


@ATTACKS.register("label-recovery")
@dataclass(frozen=True, slots=True)
class LabelRecovery:
    """Which labels were in a batch, and how often, from the gradient of the last layer.

    Guesses carry labels (B,) and no pictures; their loss is 1 - cosine between the bias gradient and what the labels
    would have caused. Sources: `label_counts.py`.

    Args:
        targets: at most so many rounds of each victim, the earliest.
        method: how; "auto" is what was best where, and what every other attack here works with.
    """

    reconstructs: ClassVar[str] = "labels"

    targets: Annotated[int, Field(ge=1)] = 16
    method: Method = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws nothing from `rng`. Raises BadInput on a network without labels to read."""
        network = Network(view.public)
        nothing = np.zeros((0, *view.public.shape), np.float32)
        for observed in observe_updates(view, self.targets):
            counts, misfit = _counts(network, observed, view.public, self.method)
            labels = np.repeat(np.arange(network.classes), counts)
            details = {"exact": observed.exact, "coverage": observed.coverage}
            yield Guess(observed.victim, observed.round, nothing, labels, misfit, details, observed.among)
