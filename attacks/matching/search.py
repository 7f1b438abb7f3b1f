"""The search behind a guess: where candidates begin, what they go down on, and which of them are found."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from veilmesh.attacks.matching.cheaper import Differenced, Rounded
from veilmesh.attacks.matching.descent import Found, Lbfgs, Variable
from veilmesh.attacks.matching.distance import Distance
from veilmesh.attacks.matching.newton import fits, refine
from veilmesh.attacks.matching.objective import Matching
from veilmesh.attacks.matching.predict import Predictor, SingleGradient, Surrogate, Unrolled
from veilmesh.attacks.matching.prior import Prior
from veilmesh.attacks.matching.recipe import Case, Recipe
from veilmesh.attacks.matching.space import Coarse, Pixels, Space, starting_pictures
from veilmesh.attacks.matching.tiles import has_tiles, is_convolutional
from veilmesh.attacks.network import Network
from veilmesh.core import generator, seed_number

__all__ = ["search", "space_of"]

_LARGE = 500_000  # parameters from which on passes cost more than what is around them
_FOUND = 1e-10  # of the observed gradient's squared norm: rounding errors
_TRIAL = 0.1  # share of the iterations in which several starts compete


def search(cases: Sequence[Case], recipe: Recipe, seed: int) -> list[Found]:
    """What was found for each of `cases`: all their candidates, each at its best. The network holds the parameters that
    the training of all cases began from. Local steps that are followed are so for one case at a time."""
    alone = isinstance(recipe.descent, Lbfgs) or (recipe.local != "gradient" and cases[0].public.local_steps > 1)
    if len(cases) > 1 and alone:
        return [found for case in cases for found in search([case], recipe, seed)]
    names = [_name(case) for case in cases]
    begin = [
        [_variables(case, recipe, seed, name, n) for n in range(recipe.restarts)]
        for case, name in zip(cases, names, strict=True)
    ]
    if isinstance(recipe.descent, Lbfgs):
        return [_until_arrived(cases[0], recipe, recipe.descent, begin[0])]
    noise = seed_number(seed, "langevin", names[0])
    if recipe.trial and recipe.restarts > 1:
        short = replace(recipe.descent, iterations=max(1, int(_TRIAL * recipe.descent.iterations)), schedule="constant")
        tried = short.run(_objective(cases, recipe, recipe.restarts), _whole(begin), noise)
        begin = [[_from(found, starts[0])] for found, starts in zip(_parts(tried, len(cases)), begin, strict=True)]
    whole = recipe.descent.run(_objective(cases, recipe, len(begin[0])), _whole(begin), noise)
    return _parts(whole, len(cases))


def _until_arrived(case: Case, recipe: Recipe, descent: Lbfgs, begin: Sequence[dict[str, Variable]]) -> Found:
    """Candidates one after the other, until one has arrived: whether it has shows in its loss."""
    objective, founds = _objective([case], recipe, 1), list[Found]()
    for start in begin:
        found = descent.run(objective, start)
        if recipe.newton and fits(case):
            labels = case.labels if case.labels is not None else found.values["labels"][0].argmax(1)
            found = refine(case, found, labels, recipe.newton, _FOUND)
        founds.append(found)
        if float(found.loss) < max(recipe.arrived, _FOUND):
            break
    values = {n: torch.cat([f.values[n] for f in founds]) for n in founds[0].values}
    return Found(values, torch.cat([f.loss for f in founds]), torch.cat([f.distance for f in founds]))


def space_of(case: Case, recipe: Recipe) -> Space:
    """What is searched."""
    return Pixels() if recipe.coarse == 1 else Coarse(recipe.coarse, case.public.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class _Distances:
    """Each case's own distance, for its part of the candidates."""

    each: Sequence[Distance]

    def at(self, gradient: Tensor, share: float) -> tuple[Tensor, Tensor]:
        if len(self.each) == 1:
            return self.each[0].at(gradient, share)
        parts = gradient.chunk(len(self.each))
        values, pulls = zip(*(d.at(part, share) for d, part in zip(self.each, parts, strict=True)), strict=True)
        return torch.cat(values), torch.cat(pulls)


@dataclass(frozen=True, slots=True, eq=False)
class _Priors:
    """Each case's own priors, for its part of the candidates."""

    each: Sequence[Sequence[Prior]]

    def __call__(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.each))
        sums = [
            sum((prior(part) for prior in priors), part.new_zeros(len(part)))
            for priors, part in zip(self.each, parts, strict=True)
        ]
        return torch.cat(sums)


def _objective(cases: Sequence[Case], recipe: Recipe, candidates: int) -> Matching:
    labels = [case.labels for case in cases if case.labels is not None]
    return Matching(
        predictor=_predictor(cases[0], recipe),
        distance=_Distances([recipe.distance(case) for case in cases]),
        priors=[_Priors([recipe.priors(case) for case in cases])],
        space=space_of(cases[0], recipe),
        labels=torch.stack(labels).repeat_interleave(candidates, dim=0) if labels else None,
    )


def _name(case: Case) -> str:
    """What a case's streams of chance are named by: the same update has the same wherever it was seen from."""
    return hashlib.blake2b(case.observed.start.tobytes() + case.observed.update.tobytes(), digest_size=16).hexdigest()


def _whole(begin: Sequence[Sequence[dict[str, Variable]]]) -> dict[str, Variable]:
    """All candidates of all cases as one batch, those of a case side by side."""
    every = [one for starts in begin for one in starts]
    return {n: replace(v, begin=torch.cat([one[n].begin for one in every])) for n, v in every[0].items()}


def _parts(found: Found, cases: int) -> list[Found]:
    """What was found, case by case; a search that ended early has fewer candidates, of one case."""
    each = len(found.loss) // cases
    return [found.only(list(range(n * each, (n + 1) * each))) for n in range(cases)]


def _from(found: Found, start: dict[str, Variable]) -> dict[str, Variable]:
    """To go on from the best that was found."""
    best = found.best()
    return {name: replace(v, begin=found.values[name][best : best + 1]) for name, v in start.items()}


def _variables(case: Case, recipe: Recipe, seed: int, name: str, restart: int) -> dict[str, Variable]:
    """What is searched, of one candidate, and where it begins."""
    on, shape = case.network.device, (case.count, *case.public.shape)
    x = space_of(case, recipe).raw(starting_pictures(recipe.start, shape, seed, name, restart).unsqueeze(0))
    variables = {"x": Variable(x.to(on), (0.0, 1.0))}
    if case.labels is None:
        size = (1, *case.network.answers(case.count))
        drawn = generator(seed, "labels", name, restart).standard_normal(size, dtype=np.float32)
        variables["labels"] = Variable(torch.from_numpy(drawn).to(on))
    if recipe.local == "surrogate":
        variables["alpha"] = Variable(torch.full((1,), 0.5, device=on), (0.0, 1.0), rate=0.01, sign="sign")
    return variables


def _predictor(case: Case, recipe: Recipe) -> Predictor:
    public = case.public
    if recipe.predictor is not None:
        return recipe.predictor(case)
    match recipe.local:
        case "unroll" if public.local_steps > 1:
            return Unrolled(case.network, public.local_steps, public.batch, public.learning_rate)
        case "surrogate" if public.local_steps > 1:
            return Surrogate(case.network, torch.from_numpy(case.observed.update).to(case.network.device))
    if case.gradient.numel() < _LARGE:
        return SingleGradient(case.network)
    if recipe.half and _gains_by_rounding(case.network):
        return Rounded(case.network)
    return Differenced(case.network)


def _gains_by_rounding(network: Network) -> bool:
    return network.device.type == "cpu" and has_tiles() and is_convolutional(network.module)
