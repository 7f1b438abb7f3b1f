"""How an inversion is put together, and the loop that all of them share: from updates seen to pictures guessed."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from veilmesh.attacks.inversion.labels import infer_labels
from veilmesh.attacks.matching.descent import Adam, Found, Lbfgs, Variable
from veilmesh.attacks.matching.device import Device, choose_device
from veilmesh.attacks.matching.distance import Distance
from veilmesh.attacks.matching.objective import Matching
from veilmesh.attacks.matching.predict import Differenced, Predictor, SingleGradient, Surrogate, Unrolled
from veilmesh.attacks.matching.prior import Prior
from veilmesh.attacks.matching.space import Pixels, Space, Start, starting_pictures
from veilmesh.attacks.network import Network
from veilmesh.attacks.observed import Observed, observe_updates
from veilmesh.attacks.view import Guess, Public, View
from veilmesh.core import BadInput, generator, seed_number

__all__ = ["Case", "Labels", "Local", "Recipe", "invert"]

Labels: TypeAlias = Literal["inferred", "searched", "told"]
"""Where labels come from: read off the update first; searched together with the pictures; or told (which has to be
granted, and is named in every table: no real attacker has them)."""
Local: TypeAlias = Literal["gradient", "unroll", "surrogate"]
"""How several local steps are taken: as one gradient at their start, step by step, or as one somewhere on the way."""

_LARGE = 500_000  # parameters from which on passes cost more than what is around them
_TRIAL = 0.1  # share of the iterations in which several starts compete


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One update to invert, and all that an attacker has prepared for it."""

    network: Network  # holds the parameters that training began from
    public: Public
    observed: Observed
    gradient: Tensor  # (d,) what was observed, as a gradient: minus update over rate and steps
    said: Tensor | None  # (d,) 1 where the message said something and 0 elsewhere; None: everywhere
    labels: Tensor | None  # (B, ...); None: searched
    count: int  # B, pictures behind the update

    def mask(self, said_only: bool = False) -> Tensor | None:
        """(d,) which coordinates are a gradient's at all, or with `said_only`, those of them that were said."""
        return self.network.exchanged_statistics(self.said if said_only else None)


DistanceFor: TypeAlias = Callable[[Case], Distance]
PriorsFor: TypeAlias = Callable[[Case], list[Prior]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """An inversion, put together.

    Args:
        distance, priors: made for each update.
        descent: the way down.
        space: what is searched, for pictures of (H, W); None: pixels.
        labels: where labels come from.
        local: how several local steps are taken.
        epochs: how often every picture was used in them, as the attacker takes it.
        starts: how each of the candidates begins, one after the other, over again where there are more.
        restarts: candidates for each update. `trial`: they first compete for a tenth of the iterations, and the best by
            its own loss goes on alone; without it all go all the way.
        targets: at most so many rounds of each victim.
        across: solve the sums, or the mixing, of all rounds for single peers first.
        half: let large networks compute in bfloat16.
    """

    distance: DistanceFor
    priors: PriorsFor
    descent: Adam | Lbfgs
    space: Callable[[tuple[int, int]], Space] | None = None
    labels: Labels = "inferred"
    local: Local = "gradient"
    epochs: int = 1
    starts: tuple[Start, ...] = ("noise",)
    restarts: int = 1
    trial: bool = False
    targets: int = 1
    across: bool = False
    device: Device = "auto"
    half: bool = False


def invert(view: View, recipe: Recipe, rng: np.random.Generator) -> Iterator[Guess]:
    """A guess for every update that `view` gives away, as `Attack.run`.

    One number is drawn from `rng`; starting pictures are named by it and by the update itself, so the same update gives
    the same pictures wherever it was seen from.
    """
    seed = int(rng.integers(1 << 62))
    network = Network(view.public, choose_device(recipe.device), per_pixel=recipe.labels != "inferred")
    for observed in observe_updates(view, recipe.targets, recipe.across):
        yield _guess(_case(view, network, observed, recipe), recipe, seed)


def _case(view: View, network: Network, observed: Observed, recipe: Recipe) -> Case:
    public = view.public
    count = _behind(observed, public, recipe.epochs)
    labels = _labels(view, network, observed, recipe.labels, count)
    network.load(observed.start)
    on = network.device
    scale = public.learning_rate * public.local_steps
    gradient = (torch.from_numpy(observed.update.astype(np.float64)) / -scale).float().to(on)
    said = None if observed.said is None else torch.from_numpy(observed.said).float().to(on)
    return Case(network, public, observed, gradient, said, None if labels is None else labels.to(on), count)


def _behind(observed: Observed, public: Public, epochs: int) -> int:
    """How many different pictures stand behind an update, of all peers in a sum."""
    most = public.batch * public.local_steps * max(1, len(observed.among))
    return int(np.clip(observed.samples, 1, most)) // epochs or 1


def _labels(view: View, network: Network, observed: Observed, how: Labels, count: int) -> Tensor | None:
    if how == "searched":
        return None
    if how == "told":
        if view.told is None:
            raise BadInput("Nobody told this attack the labels; set labels to 'inferred', or let them be searched.")
        return torch.from_numpy(np.asarray(view.told(observed.victim, observed.round))[:count])
    steps = view.public.local_steps
    whole = replace(view.public, batch=-(-count // max(1, len(observed.among))))  # all steps' pictures as one batch's
    return torch.from_numpy(infer_labels(network, replace(observed, samples=count * steps), whole))


def _guess(case: Case, recipe: Recipe, seed: int) -> Guess:
    observed = case.observed
    found = _search(case, recipe, seed)
    best = found.best()
    space = _space(case, recipe)
    with torch.no_grad():
        pictures = space.pictures(found.values["x"][best : best + 1])[0].clamp(0, 1).cpu().numpy()
    labels = case.labels if case.labels is not None else found.values["labels"][best].argmax(1)
    details = {"exact": observed.exact, "coverage": observed.coverage, "distance": float(found.distance[best])}
    details["restarts"] = len(found.loss)
    if "alpha" in found.values:
        details["alpha"] = float(found.values["alpha"][best])
    times = recipe.epochs if len(pictures) * recipe.epochs <= observed.samples else 1  # each picture as often as used
    return Guess(
        observed.victim,
        observed.round,
        np.concatenate([pictures.astype(np.float32)] * times),
        np.concatenate([labels.cpu().numpy().astype(np.int64)] * times),
        min(float(found.loss[best]), float(np.finfo(np.float32).max)),
        details,
        observed.among,
    )


def _search(case: Case, recipe: Recipe, seed: int) -> Found:
    """The best iterate of every candidate."""
    objective = Matching(
        _predictor(case, recipe), recipe.distance(case), recipe.priors(case), _space(case, recipe),
        case.labels,
    )  # fmt: skip
    name = hashlib.blake2b(case.observed.start.tobytes() + case.observed.update.tobytes(), digest_size=16).hexdigest()
    begin = [_variables(case, recipe, seed, name, restart) for restart in range(recipe.restarts)]
    noise = seed_number(seed, "langevin", name)
    if recipe.trial and recipe.restarts > 1 and isinstance(recipe.descent, Adam):
        short = replace(recipe.descent, iterations=max(1, int(_TRIAL * recipe.descent.iterations)), schedule="constant")
        tried = short.run(objective, _whole(begin), noise)
        best = tried.best()
        begin = [{n: replace(v, begin=tried.values[n][best : best + 1]) for n, v in begin[best].items()}]
    return recipe.descent.run(objective, _whole(begin), noise)


def _whole(begin: list[dict[str, Variable]]) -> dict[str, Variable]:
    """Several candidates as one batch of them."""
    return {n: replace(v, begin=torch.cat([b[n].begin for b in begin])) for n, v in begin[0].items()}


def _variables(case: Case, recipe: Recipe, seed: int, name: str, restart: int) -> dict[str, Variable]:
    """What is searched, of one candidate, and where it begins."""
    on, shape = case.network.device, (case.count, *case.public.shape)
    how = recipe.starts[restart % len(recipe.starts)]
    x = _space(case, recipe).raw(starting_pictures(how, shape, seed, name, restart).unsqueeze(0))
    variables = {"x": Variable(x.to(on), (0.0, 1.0))}
    if case.labels is None:
        size = (1, *case.network.answers(case.count))
        drawn = generator(seed, "labels", name, restart).standard_normal(size, dtype=np.float32)
        variables["labels"] = Variable(torch.from_numpy(drawn).to(on))
    if recipe.local == "surrogate":
        variables["alpha"] = Variable(torch.full((1,), 0.5, device=on), (0.0, 1.0), rate=0.01, sign="sign")
    return variables


def _space(case: Case, recipe: Recipe) -> Space:
    return Pixels() if recipe.space is None else recipe.space(case.public.shape[1:])


def _predictor(case: Case, recipe: Recipe) -> Predictor:
    public = case.public
    match recipe.local:
        case "unroll" if public.local_steps > 1:
            return Unrolled(case.network, public.local_steps, public.batch, public.learning_rate)
        case "surrogate" if public.local_steps > 1:
            return Surrogate(case.network, torch.from_numpy(case.observed.update).to(case.network.device))
    if case.gradient.numel() >= _LARGE:
        return Differenced(case.network, recipe.half)
    return SingleGradient(case.network)
