"""An inversion that knows the defence: the distance that the codec asks for, and a prior as strong as the noise.

Guards and codecs are announced to everybody, so an attacker who ignores them measures its own ignorance and not the
defence. Behind a codec a candidate's gradient is compared by what the codec would have said of it (`likelihood.py`);
behind noise the picture with the highest probability given the message has the more prior the louder the noise is
(Balunovic et al., ICLR 2022), so the weight of the total variation follows from the noise, which is known: its ratio,
or its standard deviation against the norm of the message. Clipping is put on candidates too.

What a guess explains of the message can be told without the truth, by putting the guess itself through guards and
codec: `explained`, a cosine, beside what the truth would come to (`expected`). With noise a guess may explain too much.
The privacy of a defence is what its best attacker leaves of it: `best` tries every fitting distance and keeps the guess
that explains the message as well as the truth would, and tables should still take the best over attackers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field

from veilmesh.attacks.matching.defended import Defence, Variant
from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Distance
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.recipe import Case, Labels, Local, Recipe
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import generator

__all__ = ["Adaptive"]

Chosen: TypeAlias = Variant | Literal["auto", "best"]

_SMOOTH: Final[dict[Variant, float]] = {
    "cosine": 0.03,
    "masked": 0.1,
    "selected": 0.1,
    "thresholded": 0.15,
    "intervals": 0.03,
    "rounded": 0.15,
    "signs": 0.4,
    "hinge": 0.1,
    "ternary": 0.3,
    "projected": 0.03,
}
"""Weight of the total variation behind a lossy codec without noise. These and the others here are tuned on three of
CIFAR-10's training pictures, each with a network of its own: of weights a factor of two or three apart, the best."""

_CLEAN: Final = 0.005  # weight where nothing was lost
_NOISY: Final = 0.2  # weight behind noise as large as the update
_GROWS: Final = 0.6  # with which power of the noise that grows
_LOUDEST: Final = 10.0  # noise beyond which more of the prior changes nothing
_USUAL: Final = 0.071  # total variation of CIFAR-10's training pictures, for which the weights are meant


@ATTACKS.register("adaptive")
@dataclass(frozen=True, slots=True)
class Adaptive:
    """Gradient inversion that fits its distance to the codec and its prior to the noise.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation; None: what suits the distance, or the noise where that asks for more.
        coarse: search a picture of so many times fewer rows and columns; 1: the picture itself.
        variant: how candidates are compared to the message. "auto": what suits the codec; "best": every fitting way,
            of which the guess is kept that explains the message as well as the truth would; or one by name, which
            falls back to the cosine where it does not fit.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        trial: let the restarts compete for a tenth of the iterations only, and go on with the best.
        labels: "inferred", "searched" together with the pictures, or "told", an easier setting.
        local: several local steps as one "gradient", "unroll"ed, or by a "surrogate" on the way.
        epochs: how often every picture was used in a round.
        start: "noise", "grey", or random tiles that are repeated, "pattern-4" or "pattern-16".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        across: solve the sums, or the mixing, of all rounds for single peers first.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] | None = None
    coarse: Annotated[int, Field(ge=1)] = 1
    variant: Chosen = "auto"
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    trial: bool = False
    labels: Labels = "inferred"
    local: Local = "gradient"
    epochs: Annotated[int, Field(ge=1)] = 1
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    across: bool = False
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`, and all variants begin at the same pictures."""
        seed = int(rng.integers(1 << 62))
        attempt = _Attempt(self, Defence.of(view.public), seed, _roughness(view.public))
        if self.variant != "best":
            yield from attempt.guesses(view, 0)
            return
        first = list(attempt.guesses(view, 0))
        others = [list(attempt.guesses(view, rank)) for rank in range(1, attempt.ranks)]
        yield from (min(same, key=_unlikely) for same in zip(first, *others, strict=True))


@dataclass(slots=True, eq=False)
class _Attempt:
    """One run of the attack over all that a view gives away."""

    options: Adaptive
    defence: Defence
    seed: int
    roughness: float = _USUAL  # total variation of pictures of this kind
    ranks: int = 1  # the most variants that fit any update seen so far
    case: Case | None = None  # the update that is being inverted

    def guesses(self, view: View, rank: int) -> Iterator[Guess]:
        """With the variant in place `rank` of those that fit, or the last."""
        options = self.options
        distance, priors = partial(self._distance, rank=rank), partial(self._priors, rank=rank)
        recipe = Recipe.of(options, distance, priors, Adam(options.iterations, options.rate))
        for guess in invert(view, recipe, generator(self.seed, "starts")):
            yield self._judged(guess, rank)

    def _variant(self, case: Case, rank: int) -> Variant:
        wanted = self.options.variant
        if wanted != "auto" and wanted != "best":
            return wanted if wanted in self.defence.fitting(case) else "cosine"
        fitting = self.defence.variants(case)
        self.ranks = max(self.ranks, len(fitting))
        return fitting[min(rank, len(fitting) - 1)]

    def _distance(self, case: Case, rank: int) -> Distance:
        self.case = case
        return self.defence.likelihood(case, self._variant(case, rank))

    def _priors(self, case: Case, rank: int) -> list[Prior]:
        weight = self._weight(case, rank)
        return [Smooth(weight, doubled=True)] if weight else []

    def _weight(self, case: Case, rank: int) -> float:
        """Of the total variation."""
        if self.options.tv is not None:
            return self.options.tv
        variant, noise = self._variant(case, rank), min(self.defence.noise(case), _LOUDEST)
        quiet = _CLEAN if variant == "cosine" and self.defence.codec.lossless else _SMOOTH[variant]
        return float(max(quiet, _NOISY * noise**_GROWS) * _USUAL / self.roughness)

    def _judged(self, guess: Guess, rank: int) -> Guess:
        """With what can be told of it without the truth."""
        assert self.case is not None  # a guess follows on its distance
        case, public = self.case, self.case.public
        gradient = case.network.gradient(guess.pictures, guess.labels)
        update = (-public.learning_rate * public.local_steps * gradient).astype(np.float32)
        explained, expected = self.defence.fit(case, update, self.seed)
        found = {
            "variant": self._variant(case, rank),
            "tv": self._weight(case, rank),
            "noise": self.defence.noise(case),
            "explained": explained,
            "expected": expected,
        }
        return replace(guess, details={**guess.details, **found})


def _roughness(public: Public) -> float:
    """Mean total variation of public pictures, a Laplacian prior's own scale; CIFAR-10's where there are none."""
    if public.pictures is None or not len(public.pictures):
        return _USUAL
    some = torch.from_numpy(np.ascontiguousarray(public.pictures[:256])).unsqueeze(1)
    return max(float(Smooth(1.0, doubled=True)(some).mean()), 0.1 * _USUAL)


def _unlikely(guess: Guess) -> float:
    """How far a guess is from explaining the message as the truth would."""
    return abs(float(guess.details["explained"]) - float(guess.details["expected"]))
