"""How sure a model is of a picture's label, and the reference models that say how sure it would be of a stranger's.

The signal is phi = log(p_y / (1 - p_y)), the logit-scaled confidence (Carlini et al. 2022, arXiv 2112.03570, section
IV.C): z_y - logsumexp of the other logits, from which p_y and the loss follow without a loss of digits.

Reference models are trained by the adversary itself, from the same public parameters and by the same public recipe, on
parts of its public pictures; all of them together, as one batch of models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from veilmesh.attacks.inference.base import Candidates, Kind, Scores
from veilmesh.attacks.inference.models import SeenModel, models_seen
from veilmesh.attacks.network import Network
from veilmesh.attacks.view import Public, View
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["References", "batches", "by_model", "halves", "margins", "public_pictures", "steps_of", "train"]

Floats = NDArray[np.float64]

_CHUNK = 256  # pictures in one forward pass
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of Adam, as peers use it


def margins(network: Network, vectors: Sequence[Vector], known: Candidates) -> Floats:
    """phi of every picture under each of `vectors` (M of (d,)): (M, N)."""
    labels = torch.from_numpy(known.labels)
    rows = []
    for vector in vectors:
        network.load(vector)
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(np.ascontiguousarray(known.pictures)), _CHUNK)
            logits = torch.cat([network.module(part) for part in parts]).double()
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
        rows.append((own - others).numpy())
    return np.stack(rows)


def by_model(
    view: View,
    candidates: Mapping[PeerId, Candidates],
    kinds: Sequence[Kind],
    rounds: int,
    score: Callable[[SeenModel, Candidates], Floats],
) -> Iterator[Scores]:
    """The scores (N,) of each victim's candidates, from the models of one kind: the mean over its rounds.

    The threshold is the median: half of the candidates are members, and the adversary was told so.
    """
    groups: dict[tuple[Kind, PeerId], list[SeenModel]] = {}
    for seen in models_seen(view, kinds, rounds):
        if seen.victim in candidates and len(candidates[seen.victim].labels):
            groups.setdefault((seen.model, seen.victim), []).append(seen)
    for (kind, victim), models in groups.items():
        values = np.mean([score(seen, candidates[victim]) for seen in models], axis=0)
        yield Scores(victim, kind, models[-1].round, values, float(np.median(values)))


def public_pictures(public: Public) -> Candidates:
    """What reference models can be trained on. Raises BadInput where there is nothing."""
    if public.pictures is None or public.picture_labels is None or len(public.pictures) < 2:
        raise BadInput("This inference trains reference models, and the task has no labelled public pictures; "
                       "take loss-threshold.")  # fmt: skip
    return Candidates(public.pictures, public.picture_labels)


def halves(n: int, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of `n` examples each of `count` models trains on: (count, n). Every second model has what the one before it
    was not given, so that of two of them exactly one knows any example."""
    inside = np.zeros((count, n), bool)
    for i in range(count):
        inside[i, rng.permutation(n)[: n // 2]] = True
        if i % 2:
            inside[i] = ~inside[i - 1]
    return inside


def steps_of(public: Public, models: Sequence[SeenModel], most: int) -> int:
    """How many steps of training lie behind the latest of the models, and no more than `most`."""
    rounds = 1 + max((seen.round for seen in models), default=0)
    return min(most, rounds * public.local_steps)


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """Reference models (M of (d,)), and which of the examples each was trained on: `inside` (M, n)."""

    vectors: tuple[Vector, ...]
    inside: NDArray[np.bool_]

    @classmethod
    def trained(
        cls, network: Network, public: Public, known: Candidates, inside: NDArray[np.bool_], steps: int,
        rng: np.random.Generator,
    ) -> "References":  # fmt: skip
        """One model for each row of `inside` (M, n), trained for `steps` steps on those examples of `known`."""
        order = [batches(np.flatnonzero(row), public.batch, steps, rng) for row in inside]
        places = np.stack([np.stack(one) for one in order], axis=1)
        vectors = train(network, public, np.tile(public.initial, (len(inside), 1)), known, places)
        return cls(tuple(vectors), inside)


def batches(mine: NDArray[np.int64], size: int, steps: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """The batches of `steps` steps, epoch after epoch in a fresh order, as peers draw them."""
    size = min(size, len(mine))
    found: list[NDArray[np.int64]] = []
    while len(found) < steps:
        order = rng.permutation(mine)
        found += [order[at : at + size] for at in range(0, len(mine) - size + 1, size)]
    return found[:steps]


def train(
    network: Network, public: Public, start: NDArray[np.float32], known: Candidates, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """M models (M, d), from `start` (M, d), after one step of the public recipe on each of `places` (T, M, B).

    SGD, or Adam that begins anew with every round of `local_steps`. Momentum and private noise are not followed.
    """
    names = [name for name, _ in network.module.named_parameters()]
    sizes = [p.numel() for p in network.parameters]
    shapes = [p.shape for p in network.parameters]
    x, y = torch.from_numpy(np.ascontiguousarray(known.pictures)), torch.from_numpy(known.labels)

    def loss(flat: Tensor, pictures: Tensor, labels: Tensor) -> Tensor:
        pieces = (p.view(s) for p, s in zip(torch.split(flat, sizes), shapes, strict=True))
        logits = functional_call(network.module, dict(zip(names, pieces, strict=True)), (pictures,))
        return functional.cross_entropy(logits, labels)

    flat = torch.from_numpy(start.copy())
    step = _Step(public, flat)
    for at in torch.from_numpy(places):
        flat = flat.detach().requires_grad_()
        total = vmap(loss)(flat, x[at], y[at]).sum()  # the models are independent: the gradient of each is its own
        flat = flat.detach() + step(torch.autograd.grad(total, flat)[0])
    return flat.detach().numpy()


class _Step:
    """What the public optimizer makes of gradients (M, d)."""

    def __init__(self, public: Public, like: Tensor) -> None:
        self._adam, self._rate, self._local = public.optimizer == "adam", public.learning_rate, public.local_steps
        self._first, self._second, self._count = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: Tensor) -> Tensor:
        if not self._adam:
            return -self._rate * gradient
        if self._count % self._local == 0:
            self._first.zero_()
            self._second.zero_()
        t = self._count % self._local + 1
        self._count += 1
        self._first.lerp_(gradient, 1 - _BETAS[0])
        self._second.lerp_(gradient.square(), 1 - _BETAS[1])
        root = (self._second / (1 - _BETAS[1] ** t)).sqrt() + _EPSILON
        return -self._rate * (self._first / (1 - _BETAS[0] ** t)) / root
