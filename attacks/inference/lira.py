"""The likelihood-ratio attack: is the model surer of this picture than models are that never saw it?

Carlini et al. 2022, "Membership inference attacks from first principles" (arXiv 2112.03570). A picture's phi under
models that were not trained on it is taken for a Gaussian. Offline, the score is how far the target's phi lies above
it. Online, models that were trained on the picture give a second Gaussian, and the score is the log of the ratio; the
adversary has the candidates, so it can train such models. With few reference models all pictures share one variance.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Kind, Scores
from veilmesh.attacks.inference.models import KINDS, SeenModel, models_seen
from veilmesh.attacks.inference.signals import References, by_model, halves, margins, public_pictures, steps_of
from veilmesh.attacks.network import Network
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["Lira"]

Floats = NDArray[np.float64]

_FEW = 32  # reference models, below which a variance for every picture is worse than one for all


@INFERENCES.register("lira")
@dataclass(frozen=True, slots=True)
class Lira:
    """Confidence against Gaussians of what reference models have (LiRA, Carlini et al. 2022, arXiv 2112.03570).

    Args:
        references: how many reference models are trained; online for each victim.
        online: whether they are also trained on the candidates, a random half of them each.
        iterations: train a reference for at most so many steps, or as many as the target had.
        models: which models it is read from.
        rounds: the mean over so many rounds, the latest ones.
    """

    infers: ClassVar[str] = "members"

    references: Annotated[int, Field(ge=2)] = 16
    online: bool = False
    iterations: Annotated[int, Field(ge=1)] = 1000
    models: tuple[Kind, ...] = KINDS
    rounds: Annotated[int, Field(ge=1)] = 1

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterator[Scores]:
        """As `Inference.run`. Raises BadInput without labelled public pictures."""
        network, known = Network(view.public), public_pictures(view.public)
        steps = steps_of(view.public, models_seen(view, self.models), self.iterations)
        offline = halves(len(known.labels), self.references, rng)
        trained: dict[PeerId, tuple[Floats, NDArray[np.bool_]]] = {}
        shared = None if self.online else References.trained(network, view.public, known, offline, steps, rng)

        def reference(victim: PeerId, own: Candidates) -> tuple[Floats, NDArray[np.bool_]]:
            """phi of the victim's candidates under the references (M, N), and which of them each was trained on."""
            if victim not in trained:
                inside = np.zeros((self.references, len(own.labels)), bool)
                if shared is not None:
                    found = shared
                else:
                    inside = halves(len(own.labels), self.references, rng)
                    both = np.concatenate([offline, inside], axis=1)
                    found = References.trained(network, view.public, _joined(known, own), both, steps, rng)
                trained[victim] = margins(network, found.vectors, own), inside
            return trained[victim]

        def score(seen: SeenModel, own: Candidates) -> Floats:
            phi, inside = reference(seen.victim, own)
            target = margins(network, [seen.vector], own)[0]
            return likelihood_ratio(target, phi, inside)

        yield from by_model(view, candidates, self.models, self.rounds, score)


def likelihood_ratio(target: Floats, phi: Floats, inside: NDArray[np.bool_]) -> Floats:
    """The scores (N,) of pictures with `target` (N,), given `phi` (M, N) under references and which of them each was
    trained on. Where none was trained on any: how many standard deviations the target is above the others."""
    mean, deviation = _gaussian(phi, ~inside)
    out = (target - mean) / deviation
    if not inside.any():
        return out
    mean_in, deviation_in = _gaussian(phi, inside)
    within = (target - mean_in) / deviation_in
    return 0.5 * (np.square(out) - np.square(within)) + np.log(deviation / deviation_in)


def _gaussian(phi: Floats, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and standard deviation (N,) of the chosen of `phi` (M, N); of all pictures alike where they are few."""
    count = np.maximum(chosen.sum(axis=0), 1)
    mean = np.where(chosen, phi, 0.0).sum(axis=0) / count
    square = np.where(chosen, np.square(phi - mean), 0.0).sum(axis=0)
    few = bool(count.min() < _FEW)
    variance = np.full(len(mean), square.sum() / max(chosen.sum() - len(mean), 1)) if few else square / (count - 1)
    return mean, np.sqrt(variance) + 1e-9


def _joined(one: Candidates, other: Candidates) -> Candidates:
    return Candidates(np.concatenate([one.pictures, other.pictures]), np.concatenate([one.labels, other.labels]))
