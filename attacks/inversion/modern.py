"""Cosine matching with what was learned since Inverting Gradients: a patterned start, a soft sign, a feature anchor.

The settings are those that the `breaching` library collects as "modern": pictures begin as random tiles, repeated (Wei
et al., arXiv 2004.10397); the derivative goes through tanh in place of a sign; total variation counts differences of
opposite colours too; and features that enter the last layer are pulled to those that its gradient gives away in closed
form. A picture of fewer pixels, brought to full size in the loop, is a further prior (ROG: Yue et al., USENIX Security
2023), which helps against noise and coarse codecs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.matching.anchors import class_features
from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import FeatureAnchor, Prior, Smooth
from veilmesh.attacks.matching.recipe import Case, Labels, Local, Match, Recipe, said_only
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["Modern"]


@ATTACKS.register("modern")
@dataclass(frozen=True, slots=True)
class Modern:
    """Gradient inversion by cosine matching with modern settings.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation, of opposite colours too.
        features: weight of the feature anchor; 0: none.
        rate: first step size, in units of the picture's range.
        coarse: search a picture of so many times fewer rows and columns; 1: the picture itself.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        trial: let the restarts compete for a tenth of the iterations only, and go on with the best.
        match: "all" coordinates, only those "said", or what fits the codec ("auto").
        labels: "inferred", "searched" together with the pictures, or "told", an easier setting.
        local: several local steps as one "gradient", "unroll"ed, or by a "surrogate" on the way.
        epochs: how often every picture was used in a round.
        start: "pattern-4", "pattern-16", "noise" or "grey".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-3
    features: Annotated[float, Field(ge=0)] = 0.1
    rate: Annotated[float, Field(gt=0)] = 0.05
    coarse: Annotated[int, Field(ge=1)] = 1
    restarts: Annotated[int, Field(ge=1)] = 1
    trial: bool = False
    match: Match = "auto"
    labels: Labels = "inferred"
    local: Local = "gradient"
    epochs: Annotated[int, Field(ge=1)] = 1
    start: Start = "pattern-4"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""
        descent = Adam(self.iterations, self.rate, sign="soft", schedule="cosine", warmup=50)
        return invert(view, Recipe.of(self, self._distance, self._priors, descent), rng)

    def _distance(self, case: Case) -> Cosine:
        return Cosine(case.gradient, case.mask(said_only(self.match, case)))

    def _priors(self, case: Case) -> list[Prior]:
        priors: list[Prior] = [Smooth(self.tv, doubled=True)] if self.tv else []
        anchors = class_features(case) if self.features else None
        return priors if anchors is None else [*priors, FeatureAnchor(self.features, case.network.features, anchors)]
