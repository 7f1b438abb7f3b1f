"""Behind GradientHide's public step: attackers who know that there is one, and which pictures are public.

A peer that shares by `public-step` puts a step on public pictures of its secret choice over the private one. What it
chooses from is public, and so is how it labels them (`swarm/sharing/public_step.py`); `how` the attacker uses that:

    mean      take away what the step comes to on average: the mean gradient of all that may be chosen, at the start
    subtract  told the choice: take away the gradient of those pictures, at the start
    aside     not told: compare what is left beside all gradients that public pictures could have added, in whatever
              number and weight, where the public step began as far as the candidate itself says
    simulate  told the choice: follow both stages from every candidate, and differentiate through them

Several private steps are taken for one gradient at their start; steps in turns for private ones first. The label of a
single picture is tried out rather than read off, for the public labels are in what it would be read off. What decides
is the attacker's own loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.distance import Cosine, Distance
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.predict import Predictor, SingleGradient
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.public_steps import Aside, PublicPool, TwoStages, gradient_of
from veilmesh.attacks.matching.recipe import Case, Recipe
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed
from veilmesh.attacks.view import ATTACKS, Guess, View
from veilmesh.core import BadInput, seed_number
from veilmesh.swarm.sharing.base import SHARINGS
from veilmesh.swarm.sharing.public_step import PublicStep

__all__ = ["PublicStepInversion"]


@ATTACKS.register("public-step")
@dataclass(frozen=True, slots=True)
class PublicStepInversion:
    """Gradient inversion that knows of the public step over the private one (GradientHide).

    Where nothing of the kind is shared, it is plain cosine matching.

    Args:
        how: "aside", "mean"; or with the choice told, "simulate" or "subtract". "auto": aside, or told simulate.
        public_batch: which public pictures a peer chose: "unknown", or "told", an easier setting.
        iterations: steps of one run.
        every: iterations after which "aside" asks its candidate anew where the public step began; each time costs a
            gradient of every public picture.
        tv: weight of the total variation.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        labels: "inferred", or "told", an easier setting.
        start: "noise", "grey", or random tiles that are repeated, "pattern-4" or "pattern-16".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        first: the earliest round to look at; 0: networks before any training.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"

    how: Literal["auto", "aside", "mean", "subtract", "simulate"] = "auto"
    public_batch: Literal["unknown", "told"] = "unknown"
    iterations: Annotated[int, Field(ge=1)] = 400
    every: Annotated[int, Field(ge=1)] = 20
    tv: Annotated[float, Field(ge=0)] = 1e-4
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    labels: Literal["inferred", "told"] = "inferred"
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    first: Annotated[int, Field(ge=0)] = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Raises BadInput where it would have to know what it is not told."""
        if self.how in ("subtract", "simulate") and self.public_batch != "told":
            raise BadInput(
                f"how = {self.how!r} needs the public pictures that a peer chose; set public_batch to 'told', an "
                "easier setting, or how to 'aside'."
            )

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`. Raises BadInput where the choice was to be told and was
        not."""
        seed = int(rng.integers(1 << 62))
        recipe = Recipe.of(self, _plain, self._priors, Adam(self.iterations, self.rate))
        if view.public.sharing.get("name") == "public-step":
            behind = _Behind(self, self._method(), _scheme(view), view, seed)
            recipe = replace(recipe, clean=behind.clean, distance=behind.distance)
            if behind.how in ("aside", "simulate"):
                recipe = replace(recipe, predictor=behind.predictor)
        yield from invert(view, recipe, np.random.default_rng(seed))

    def _method(self) -> str:
        if self.how != "auto":
            return self.how
        return "simulate" if self.public_batch == "told" else "aside"

    def _priors(self, case: Case) -> list[Prior]:
        return [Smooth(self.tv)] if self.tv else []


def _plain(case: Case) -> Distance:
    return Cosine(case.gradient, case.mask())


def _scheme(view: View) -> PublicStep:
    scheme = SHARINGS.build_from({**view.public.sharing, "name": "public-step"})
    assert isinstance(scheme, PublicStep)  # registered under that name
    if view.public.pictures is None or view.public.picture_labels is None:
        raise BadInput("This view has no public pictures, and the public step was on some; observe the run anew.")
    return scheme


class _Behind:
    """One run of the attack: what it knows of the public steps behind every update."""

    def __init__(self, options: PublicStepInversion, how: str, scheme: PublicStep, view: View, seed: int) -> None:
        self.how = how
        self._options, self._scheme, self._view, self._seed = options, scheme, view, seed
        public = view.public
        assert public.pictures is not None and public.picture_labels is not None  # noqa: PT018  # as _scheme checked
        self._sure, self._classes = scheme.chosen_from(public.pictures, public.picture_labels, public.classes)
        self._stride = public.learning_rate * public.local_steps
        self._raw: dict[tuple[str, int], Observed] = {}  # updates as they were said
        self._asides: dict[tuple[str, int], Aside] = {}

    def clean(self, network: Network, observed: Observed) -> Observed:
        """`observed`, less what can be told of the public steps at the start: what labels are read off."""
        self._raw[observed.victim, observed.round] = observed
        on = network.device
        start = torch.from_numpy(observed.start).to(on)
        pools = self._steps(network, observed) if self._options.public_batch == "told" else [self._pool(network)]
        total = torch.stack([gradient_of(network, start, pool) for pool in pools]).mean(0)
        public = self._scheme.rate * self._view.public.learning_rate * self._number
        update = observed.update + (public * total).cpu().numpy()
        return replace(observed, update=update.astype(np.float32))

    def distance(self, case: Case) -> Distance:
        """What fits `how`."""
        if self.how in ("mean", "subtract"):
            return _plain(case)
        observed = self._raw[case.observed.victim, case.observed.round]
        if self.how == "aside":
            return self._aside(case, observed).anew()
        return Cosine(self._target(case, observed), case.mask())

    def _target(self, case: Case, observed: Observed) -> Tensor:
        return torch.from_numpy(observed.update).to(case.network.device) / -self._stride

    def _aside(self, case: Case, observed: Observed) -> Aside:
        """Made once for an update, however many labels are tried for it."""
        place = observed.victim, observed.round
        if place not in self._asides:
            drawn = torch.Generator().manual_seed(seed_number(self._seed, "coordinates"))
            start = torch.from_numpy(observed.start).to(case.network.device)
            pool, target, every = self._pool(case.network), self._target(case, observed), self._options.every
            self._asides[place] = Aside(case.network, pool, target, start, self._stride, every, drawn)
        return self._asides[place]

    def predictor(self, case: Case) -> Predictor:
        """From candidates to what `distance` compares."""
        if self.how == "aside":
            return SingleGradient(case.network)
        rate = self._scheme.rate * self._view.public.learning_rate
        return TwoStages(case.network, self._steps(case.network, case.observed), self._stride, rate)

    @property
    def _number(self) -> int:
        """Public steps in a round."""
        turns = self._view.public.local_steps if self._scheme.mixing == "interleaved" else 1
        return self._scheme.steps * turns

    def _pool(self, network: Network) -> PublicPool:
        return self._of(network, self._sure)

    def _steps(self, network: Network, observed: Observed) -> list[PublicPool]:
        if self._view.chosen is None:
            raise BadInput("Nobody told this attack which public pictures were chosen; set public_batch to 'unknown'.")
        chosen = self._view.chosen(observed.victim, observed.round).reshape(self._number, -1)
        return [self._of(network, step) for step in chosen]

    def _of(self, network: Network, places: np.ndarray) -> PublicPool:
        def there(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[places])).to(network.device)

        assert self._view.public.pictures is not None  # as _scheme checked
        return PublicPool(there(self._view.public.pictures), there(self._classes))
