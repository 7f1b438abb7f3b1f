"""Pictures out of a Gram matrix: what a peer that merges by regression says of its first layer's inputs.

G = X^T X / n is all second moments of a peer's n pictures X (n, d). One picture is its only eigenvector. Of n < d the
eigenvectors span just the private pictures, and G leaves open a rotation among them: X = R M with M known and R
orthogonal. Pictures are not any rotation: their pixels are in range, and nearer to its ends than those of mixtures, so
the rotation is searched that keeps the range and has the largest fourth moments (as in independent component analysis,
Hyvärinen and Oja 2000), from several starts, chosen by that objective.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput
from veilmesh.core.registry import name_and_options
from veilmesh.swarm.sharing.base import SHARINGS
from veilmesh.swarm.sharing.regmean import Pairs, RegMean, pairs_of
from veilmesh.tasks.models.build import build_model

__all__ = ["Gram"]

Matrix = NDArray[np.float64]

_ABOVE = 3e-4  # share of the largest eigenvalue from which on one is a picture's, not a rounding error


@ATTACKS.register("gram")
@dataclass(frozen=True)
class Gram:
    """Private pictures from the Gram matrix of the first layer's inputs, which RegMean shares.

    Args:
        targets: at most so many rounds of each victim, the earliest first.
        iterations: steps of the search for the rotation, from each start.
        restarts: starts; the one with the lowest objective is kept.
        most: pictures; a peer with more of them is not tried.
    """

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = ("regmean",)
    reads_models: ClassVar[bool] = False

    targets: Annotated[int, Field(ge=1)] = 4
    iterations: Annotated[int, Field(ge=1)] = 400
    restarts: Annotated[int, Field(ge=1)] = 8
    most: Annotated[int, Field(ge=1)] = 64

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. Raises BadInput where the first layer sees patches, or the run shares something else."""
        scheme, pairs = _known(view.public)
        for observed in observe_updates(view, self.targets):
            gram = _plain(scheme, pairs, observed)
            mixed = _mixtures(gram, self.most)
            starts = [_rotation(rng, len(mixed)) for _ in range(self.restarts)]
            found = [_unmixed(mixed, start, self.iterations) for start in starts]
            inputs, loss = min(found, key=lambda one: one[1])
            pictures = _signed(inputs, view.public)
            details = {"exact": observed.exact, "rank": len(mixed)}
            none = np.zeros(0, np.int64)
            yield Guess(observed.victim, observed.round, pictures, none, loss, details, observed.among)


def _known(public: Public) -> tuple[RegMean, Pairs]:
    """The scheme and its layout, as everybody is told. Raises BadInput."""
    scheme = SHARINGS.build_from(public.sharing)
    if not isinstance(scheme, RegMean):
        raise BadInput("Gram matrices are what sharing 'regmean' says; this run shared something else.")
    network = build_model(*name_and_options(public.model), public.shape, public.classes, 0)
    pairs = pairs_of(scheme, network)
    if not pairs.layers or pairs.layers[0].start or pairs.layers[0].inputs != int(np.prod(public.shape)):
        raise BadInput("The first layer of this network sees patches of pictures; take one that sees them whole (mlp).")
    return scheme, pairs


def _plain(scheme: RegMean, pairs: Pairs, observed: Observed) -> Matrix:
    """The first layer's G (d, d), without what the scheme made of it."""
    kept = pairs.grams(observed.start + observed.update)[0][0]
    gram = kept / scheme.alpha
    ridge = scheme.ridge * np.diag(kept).mean() / (1 + scheme.ridge)
    np.fill_diagonal(gram, np.diag(kept) - ridge)
    return gram


def _mixtures(gram: Matrix, most: int) -> Matrix:
    """M (n, d) with M^T M = n G, as far as eigenvalues say anything: n is how many pictures there were."""
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(-values)[:most]
    kept = order[values[order] > _ABOVE * values[order[0]]]
    count = max(len(kept), 1)
    kept = order[:count]
    return np.asarray(np.sqrt(count * np.maximum(values[kept], 0))[:, None] * vectors[:, kept].T)


def _rotation(rng: np.random.Generator, size: int) -> Matrix:
    return np.asarray(np.linalg.qr(rng.standard_normal((size, size)))[0])


def _unmixed(mixed: Matrix, start: Matrix, iterations: int) -> tuple[Matrix, float]:
    """R M (n, d) for the orthogonal R that was found from `start`, and its objective."""
    known, first = torch.from_numpy(mixed), torch.from_numpy(start)
    skew = torch.zeros(len(mixed), len(mixed), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([skew], lr=0.05)
    best, lowest = start @ mixed, float("inf")
    for _ in range(iterations):
        inputs = torch.matrix_exp(skew - skew.T) @ first @ known
        loss = _unlike_pictures(inputs)
        if float(loss) < lowest:
            best, lowest = inputs.detach().numpy(), float(loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()
    return best, lowest


def _unlike_pictures(inputs: torch.Tensor) -> torch.Tensor:
    """How far inputs (n, d) are out of [-1, 1], and from its ends."""
    outside = (inputs.abs() - 1).relu().square().mean()
    return 10 * outside - inputs.clamp(-1, 1).pow(4).mean()


def _signed(inputs: Matrix, public: Public) -> NDArray[np.float32]:
    """Pictures (n, C, H, W) in [0, 1]: of each input and its negative, the one that is more like public pictures."""
    usual = np.full(public.shape, 0.5) if public.pictures is None else public.pictures.mean(axis=0)
    towards = inputs @ (2 * usual - 1).reshape(-1)
    turned = inputs * np.where(towards < 0, -1, 1)[:, None]
    return ((turned + 1) / 2).clip(0, 1).astype(np.float32).reshape(-1, *public.shape)
