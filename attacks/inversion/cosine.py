"""Inverting Gradients: find the pictures whose gradient points where the victim's update points.

Geiping et al., arXiv 2003.14053: minimise 1 - cos(gradient(x), observed) + tv * TV(x) over pictures x in the box
[0, 1], with one cosine over all layers together, by Adam on the sign of the derivative, step size falling tenfold at
3/8, 5/8 and 7/8 of the iterations. The cosine does not see the scale of an update: clipping and the learning rate do
not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.recipe import Case, Labels, Local, Match, Recipe, said_only
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["CosineInversion"]


@ATTACKS.register("cosine-inversion")
@dataclass(frozen=True, slots=True)
class CosineInversion:
    """Gradient inversion by cosine matching with total variation (Inverting Gradients).

    Labels are inferred first. Cost: about `iterations` times `restarts` double backward passes for each target, and
    with `local` = "unroll" as many times more as there are local steps.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation; a noisier update wants more of it.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        trial: let the restarts compete for a tenth of the iterations only, and go on with the best.
        match: "all" coordinates (what was not said counts as zero), or only those "said"; "auto" is all behind a top-k
            codec, where what was not said is small, and only what was said elsewhere.
        labels: "inferred", "searched" (optimised together with the pictures), or "told", the literature's easier
            setting; where every pixel has a label, one of the last two.
        local: several local steps as one "gradient" at their start, which gets worse with the step size; "unroll":
            differentiated through, step by step; "surrogate": one gradient on the way from start to end (SME).
        epochs: how often every picture was used in a round.
        start: "noise", "grey", or random tiles that are repeated, "pattern-4" or "pattern-16".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        across: solve the sums, or the mixing, of all rounds for single peers first.
        device: what to compute on; auto is the fastest there is.
        together: search the updates of all who began alike in one batch: faster where networks are small, but the last
            bits of a picture then depend on who else was seen.
        half: let large networks of convolutions compute second derivatives, and those alone, in bfloat16, on processors
            with tiles for it: a quarter faster. What is matched stays exact; other processors do without.
    """

    reconstructs: ClassVar[str] = "pictures"
    sharings: ClassVar[tuple[str, ...]] = ("masked-proxy",)  # what else than models it reads
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 1e-4
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    trial: bool = False
    match: Match = "auto"
    labels: Labels = "inferred"
    local: Local = "gradient"
    epochs: Annotated[int, Field(ge=1)] = 1
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    across: bool = False
    device: Device = "auto"
    together: bool = False
    half: bool = True

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`. One number is drawn from `rng`; starting pictures are named by it and by the update itself,
        so the same update gives the same pictures wherever it was seen from."""
        return invert(view, Recipe.of(self, self._distance, self._priors, Adam(self.iterations, self.rate)), rng)

    def _distance(self, case: Case) -> Cosine:
        return Cosine(case.gradient, case.mask(said_only(self.match, case)))

    def _priors(self, case: Case) -> list[Prior]:
        return [Smooth(self.tv)] if self.tv else []
