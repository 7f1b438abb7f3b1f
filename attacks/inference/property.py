"""What a victim's data was like, from its updates: a classifier of updates that the adversary makes itself.

Melis et al. 2019, "Exploiting unintended feature leakage in collaborative learning" (arXiv 1805.04049), section 4: for
every update that was seen, shadow updates are computed from the same parameters on public pictures, half of them with
the property and half without, and a linear classifier (ridge regression, in the form whose size is the number of
shadows) learns to tell them apart. What is left of an update behind a codec is all that the shadows keep, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Scores
from veilmesh.attacks.inference.signals import public_pictures, train
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import Public, View
from veilmesh.peer.machine import PeerId

__all__ = ["Property"]

Floats = NDArray[np.float64]

_TRIES = 20  # batches drawn for each shadow, before too few are taken for too few


@INFERENCES.register("property")
@dataclass(frozen=True, slots=True)
class Property:
    """Whether the data behind an update has a property, by a classifier of simulated ones (Melis et al. 2019).

    Args:
        what: `class`: one of its labels is `label`; `majority`: more than half of them are one and the same;
            `bright`: it is brighter than public pictures are in the mean.
        label: which class, for `class`.
        shadows: how many updates are simulated for each that was seen.
        ridge: the classifier's regularisation, over the mean square of its features.
        targets: at most so many rounds of each victim.
    """

    infers: ClassVar[str] = "property"

    what: Literal["class", "majority", "bright"] = "class"
    label: Annotated[int, Field(ge=0)] = 0
    shadows: Annotated[int, Field(ge=4)] = 128
    ridge: Annotated[float, Field(gt=0)] = 0.1
    targets: Annotated[int, Field(ge=1)] = 16

    def holds(self, pictures: NDArray[np.float32], labels: NDArray[np.int64], public: Public) -> bool:
        """Whether this data (B, C, H, W), (B,) has the property: what the adversary asks, and what the scorer knows."""
        if self.what == "class":
            return bool((labels == self.label).any())
        if self.what == "majority":
            return bool(2 * np.bincount(labels).max(initial=0) > len(labels))
        assert public.pictures is not None  # `run` refuses without them
        return bool(pictures.mean() > public.pictures.mean())

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`, (1,) for each update that was seen; looks at no candidate. Nothing where public pictures
        do not have it both ways. Raises BadInput without labelled public pictures."""
        known, network = public_pictures(view.public), Network(view.public)
        drawn = self.batches(view.public, known, rng)
        for observed in observe_updates(view, self.targets):
            if not observed.among and drawn is not None:
                value = self._score(network, view.public, known, observed, *drawn)
                yield Scores(observed.victim, "local", observed.round, np.array([value]), 0.0)

    def batches(
        self, public: Public, known: Candidates, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
        """As many batches with the property as without, of all of a round's steps: (S, steps * B) and (S,).

        Their classes are mixed at random, more unevenly than the public pictures' are, for so are peers'.
        """
        size, each = public.batch * public.local_steps, self.shadows // 2
        found: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
        for _ in range(_TRIES * self.shadows):
            share = rng.dirichlet(np.ones(public.classes))[known.labels] + 1e-9
            at = rng.choice(len(share), size, p=share / share.sum())
            kept = found[self.holds(known.pictures[at], known.labels[at], public)]
            if len(kept) < each:
                kept.append(at)
            if len(found[True]) == len(found[False]) == each:
                break
        if min(map(len, found.values())) < 2:
            return None
        return np.stack(found[True] + found[False]), np.repeat([True, False], [len(found[True]), len(found[False])])

    def _score(
        self, network: Network, public: Public, known: Candidates, observed: Observed,
        drawn: NDArray[np.int64], truth: NDArray[np.bool_],
    ) -> float:  # fmt: skip
        """Above 0 where the update looks like the shadows' with the property."""
        start = np.tile(observed.start, (len(drawn), 1))
        places = np.stack(np.split(drawn, public.local_steps, axis=1))
        updates = train(network, public, start, known, places) - start
        rows = np.concatenate([updates, observed.update[None]]).astype(np.float64)
        if observed.said is not None:
            rows = rows * observed.said
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)  # clipping and noise change the length
        return ridge(rows[:-1], np.where(truth, 1.0, -1.0), rows[-1], self.ridge)


def ridge(known: Floats, targets: Floats, asked: Floats, strength: float) -> float:
    """The prediction for `asked` (d,) of ridge regression with an offset on `known` (S, d) and `targets` (S,).

    `strength` is over the mean square of a centred row. The offset is such that both classes count alike, however many
    there are of each.
    """
    # In torch, whose threads are the caller's business: numpy's wait for each other where others compute too.
    x, y = torch.from_numpy(known), torch.from_numpy(targets)
    weight = torch.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y <= 0).sum()).double()
    centre = weight @ x
    rows = x - centre
    gram = rows @ rows.T
    rarer = 1.0 / (weight * len(weight))  # weighted least squares: the rarer class has less ridge
    dual = torch.linalg.solve(gram + strength * gram.trace() / len(gram) * rarer.diag(), y)
    return float((torch.from_numpy(asked) - centre) @ (rows.T @ dual))
