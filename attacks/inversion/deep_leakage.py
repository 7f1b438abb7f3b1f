"""Deep leakage: match gradients by squared distance, with a quasi-Newton method, and start again where that got stuck.

DLG (Zhu, Liu, Han, arXiv 1906.08935) searches pictures and soft labels together; iDLG (Zhao et al., arXiv 2001.02610)
reads the label off first. Both need a smooth network, and either arrive or do not: which of the two happened shows in
the loss, so starting again until it is small enough is the attacker's to do. Gauss-Newton steps at the end, which
neither paper has, take a search that is near to the rounding errors of what was observed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.matching.descent import Lbfgs
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Squared
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.recipe import Case, Labels, Recipe
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["DeepLeakage", "ImprovedDeepLeakage"]

_ARRIVED = 1e-7  # of the observed gradient's squared norm: below it the pictures are found
_NEAR = 1e-5  # where Gauss-Newton steps take over


@ATTACKS.register("dlg")
@dataclass(frozen=True, slots=True)
class DeepLeakage:
    """Deep Leakage from Gradients: pictures and soft labels searched together by L-BFGS.

    Args:
        iterations: outer steps of at most 20 evaluations each; the paper takes 300.
        restarts: starting pictures to try, one after the other, until the loss says that one has arrived.
        newton: Gauss-Newton steps at the end of each, where network and pictures are small; 0: as in the paper.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 300
    restarts: Annotated[int, Field(ge=1)] = 5
    newton: Annotated[int, Field(ge=0)] = 12
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""
        return invert(view, replace(_recipe(self), labels="searched"), rng)


@ATTACKS.register("idlg")
@dataclass(frozen=True, slots=True)
class ImprovedDeepLeakage:
    """Improved Deep Leakage: labels are read off the last layer, and pictures searched by L-BFGS.

    Args:
        iterations: outer steps of at most 20 evaluations each; the paper takes 300.
        restarts: starting pictures to try, one after the other, until the loss says that one has arrived.
        newton: Gauss-Newton steps at the end of each, where network and pictures are small; 0: as in the paper.
        labels: "inferred", or "told", an easier setting.
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"

    iterations: Annotated[int, Field(ge=1)] = 300
    restarts: Annotated[int, Field(ge=1)] = 5
    newton: Annotated[int, Field(ge=0)] = 12
    labels: Labels = "inferred"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""
        return invert(view, _recipe(self), rng)


def _recipe(attack: DeepLeakage | ImprovedDeepLeakage) -> Recipe:
    def distance(case: Case) -> Squared:
        return Squared(case.gradient, case.mask())

    descent = Lbfgs(attack.iterations, enough=_NEAR if attack.newton else _ARRIVED)
    return replace(Recipe.of(attack, distance, lambda case: [], descent), arrived=_ARRIVED)
