"""The closed form where columns are masked: what is seen of a picture is exact, the rest is drawn from what is seen.

Masks of FedQSN (arXiv 2508.18911) zero columns of the first matrix, and with them what a gradient says of some places
of the picture: the same places for every example of a round, and everybody sees which. Natural pictures are not made of
independent places: the rest is put in as the mean of a Gaussian, fitted to the public pictures, given what is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.attacks.inversion.analytic import Analytic
from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Guess, Public, View

__all__ = ["MaskedAnalytic", "completed"]

_RIDGE = 1e-3  # added to the variance of each place: some have none


@ATTACKS.register("masked-analytic")
@dataclass(frozen=True, slots=True)
class MaskedAnalytic:
    """Exact inputs of a first, fully connected layer where its columns are shown; elsewhere what public pictures say.

    Where nothing is masked, it is the analytic attack.

    Args:
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at.
    """

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = ("masked-proxy",)

    targets: Annotated[int, Field(ge=1)] = 16
    first: Annotated[int, Field(ge=0)] = 0

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; draws nothing from `rng`. Raises BadInput on a network without such a layer."""
        network = Network(view.public)
        layer = next(iter(network.linear_layers()), None)
        seen = {(one.victim, one.round): one for one in observe_updates(view, self.targets, first=self.first)}
        for guess in Analytic(self.targets, self.first, features=False).run(view, rng):
            if layer is None or view.public.pictures is None or not len(guess.pictures):
                yield guess
                continue
            there = _shown(view.public, layer, seen[guess.victim, guess.round])
            yield replace(guess, pictures=completed(guess.pictures, there, view.public.pictures))


def completed(
    pictures: NDArray[np.float32], there: NDArray[np.bool_], public: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`pictures` (B, C, H, W), of which only the places `there` (C*H*W,) are known, with the others as the public
    pictures (N, C, H, W) have them beside such places: the conditional mean of a Gaussian."""
    if there.all() or len(public) < 2:
        return pictures
    flat, known = public.reshape(len(public), -1).astype(np.float64), pictures.reshape(len(pictures), -1)
    mean = flat.mean(axis=0)
    covariance = np.cov(flat, rowvar=False) + _RIDGE * np.eye(flat.shape[1])
    whole = known.astype(np.float64)
    gain = np.linalg.solve(covariance[np.ix_(there, there)], covariance[np.ix_(there, ~there)])
    whole[:, ~there] = mean[~there] + (whole[:, there] - mean[there]) @ gain
    return whole.clip(0, 1).astype(np.float32).reshape(pictures.shape)


def _shown(public: Public, layer: LinearLayer, observed: Observed) -> NDArray[np.bool_]:
    """Which inputs (in,) of a layer an update says anything of: those whose columns the victim showed, or was shown.

    That an update is zero there does not mean so: it is, too, where the input was.
    """
    sharing, shape = public.sharing, (layer.module.out_features, layer.module.in_features)
    said = np.ones(shape, np.bool_)
    if sharing["name"] == "masked-proxy" and observed.said is not None:
        said = observed.said[layer.weight].reshape(shape)
    elif sharing["name"] == "served-proxy" and sharing.get("taught", "all") == "shown":
        said = observed.start[layer.weight].reshape(shape) != 0
    return np.asarray(said.any(axis=0), np.bool_)
