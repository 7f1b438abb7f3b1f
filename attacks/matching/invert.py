"""The loop that all inversions share: from updates seen to pictures guessed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from veilmesh.attacks.inversion.labels import infer_labels
from veilmesh.attacks.matching.descent import Adam, Found
from veilmesh.attacks.matching.device import choose_device
from veilmesh.attacks.matching.recipe import Case, Labels, Recipe
from veilmesh.attacks.matching.search import search, space_of
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import Guess, Public, View
from veilmesh.core import BadInput

__all__ = ["invert"]

_GLANCE = 60  # iterations that a label is tried for


def invert(view: View, recipe: Recipe, rng: np.random.Generator) -> Iterator[Guess]:
    """A guess for every update that `view` gives away, as `Attack.run`.

    One number is drawn from `rng`; starting pictures are named by it and by the update itself, so the same update gives
    the same pictures wherever it was seen from.
    """
    seed = int(rng.integers(1 << 62))
    network = Network(view.public, choose_device(recipe.device), per_pixel=recipe.labels != "inferred")
    seen = observe_updates(view, recipe.targets, recipe.across, recipe.first)
    cases = (_case(view, network, observed, recipe) for observed in seen)
    for some in _alike(list(cases)) if recipe.together else ([case] for case in cases):
        network.load(some[0].observed.start)
        some = [_decided(case, recipe, seed) for case in some]
        for case, found in zip(some, search(some, recipe, seed), strict=True):
            yield _guess(case, found, recipe)


def _decided(case: Case, recipe: Recipe, seed: int) -> Case:
    """`case`, with the label that explains it best where none can be read off: of one picture, all are tried."""
    labels, inferred = case.labels, recipe.labels == "inferred"
    shown = case.shows_labels and recipe.predictor is None
    if labels is None or not inferred or case.count > 1 or shown or not isinstance(recipe.descent, Adam):
        return case
    every = [replace(case, labels=torch.full_like(labels, c)) for c in range(case.network.classes)]
    steps = min(_GLANCE, recipe.descent.iterations)
    glance = replace(recipe, descent=replace(recipe.descent, iterations=steps, schedule="constant"), restarts=1)
    losses = [float(found.loss.min()) for found in search(every, glance, seed)]
    return every[int(np.argmin(losses))]


def _alike(cases: list[Case]) -> Iterator[list[Case]]:
    """Cases by what they have in common: the parameters that training began from, and the number of pictures."""
    groups: dict[tuple[bytes, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.observed.start.tobytes(), case.count), []).append(case)
    yield from groups.values()


def _case(view: View, network: Network, observed: Observed, recipe: Recipe) -> Case:
    public = view.public
    observed = observed if recipe.clean is None else recipe.clean(network, observed)
    count = _behind(observed, public, recipe.epochs)
    labels = _labels(view, network, observed, recipe.labels, count)
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


def _guess(case: Case, found: Found, recipe: Recipe) -> Guess:
    observed = case.observed
    best = found.best()
    with torch.no_grad():
        pictures = space_of(case, recipe).pictures(found.values["x"][best : best + 1])[0].clamp(0, 1).cpu().numpy()
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
