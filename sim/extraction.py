"""How much of somebody's own model was put together by those who only got proxies of it, and the floors beside it."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from veilmesh.attacks.extraction.base import EXTRACTIONS, Extracted, Extraction
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.peer.store import load_parameters
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.observation import observation, randomness
from veilmesh.sim.record import read_json
from veilmesh.sim.scenario import Choice

__all__ = ["extract"]


def extract(folder: Path, cast: Cast, ids: Sequence[PeerId], choice: Choice, vantage: str) -> dict[str, Any]:
    """Run one extraction on a finished run from `vantage`; its row for the summary. Raises BadInput.

    Accuracies are on the test pictures, means over victims: of what was put together (`accuracy_rebuilt`), of the last
    proxy alone as it was told (`accuracy_proxy`), of the owner's model as the run scored it (`accuracy_owner`), of the
    common beginning (`accuracy_floor`), and of what those at the vantage have for taking part (`accuracy_colluders`).
    """
    attack: Extraction = choice.build(EXTRACTIONS)
    view = observation(folder, cast, ids, vantage)
    begin = time.process_time()
    found = list(attack.run(view, randomness(view.public, choice.name)))
    seconds = time.process_time() - begin
    if not found:
        raise BadInput(f"{vantage} got nobody's proxies in this run; take a place that does, as peer:0.")
    return {
        "attack": choice.name,
        "options": choice.options,
        "vantage": vantage,
        "infers": "model",
        "auc": None,
        "guesses_made": len(found),
        "cpu_seconds": round(seconds, 3),
        "labels_right": None,
        **_means([_figures(folder, cast, ids, view.vantage.controls, one) for one in found]),
    }


def _figures(
    folder: Path, cast: Cast, ids: Sequence[PeerId], controls: frozenset[PeerId], one: Extracted
) -> dict[str, float | None]:
    from veilmesh.sim.accuracy import accuracy_of  # here: it brings torch

    begun = cast.initial[: one.parameters.size]
    scored = {ids[m["index"]]: m["accuracy"] for m in read_json(folder / "summary.json")["peers"]}
    own = [accuracy for peer in sorted(controls) if (accuracy := scored[peer]) is not None]
    figures: dict[str, float | None] = {
        "accuracy_rebuilt": accuracy_of(cast, one.parameters),
        "accuracy_proxy": accuracy_of(cast, one.last),
        "accuracy_owner": scored[one.victim],
        "accuracy_colluders": fmean(own) if own else None,
        "accuracy_floor": accuracy_of(cast, begun),
        "words": one.words,
        "window": one.rounds,
        "seen": float(one.seen.mean()),
    }
    truth, hidden = _truth(folder, cast, ids, one.victim)
    if truth is not None and hidden is not None:
        figures |= _errors("hidden", one.parameters, begun, truth, hidden)
        figures |= _errors("shown", one.parameters, begun, truth, ~hidden)
        figures["error_proxy"] = _error(one.last, truth, ~hidden)
        figures["hidden_named"] = float((~one.seen[hidden]).mean()) if hidden.any() else None
        figures["shown_seen"] = float(one.seen[~hidden].mean())
    return figures


def _truth(folder: Path, cast: Cast, ids: Sequence[PeerId], victim: PeerId) -> tuple[Vector | None, Mask | None]:
    """A server's model (d,), and what it hides (d,). Of peers' own models nothing is written down."""
    path = folder / "checkpoints" / f"{stem(cast.names[ids.index(victim)])}.safetensors"
    hidden = cast.withheld
    if hidden is None or victim != ids[-1] or not path.exists():
        return None, None
    return load_parameters(path), hidden


def _errors(name: str, guess: Vector, begun: Vector, truth: Vector, where: Mask) -> dict[str, float | None]:
    """Relative errors where it was hidden, or shown: of the guess, and, as floors, of the common beginning and of
    guessing nothing, which is 1."""
    if not where.any():
        return {f"error_{name}": None, f"error_{name}_floor": None}
    return {f"error_{name}": _error(guess, truth, where), f"error_{name}_floor": min(1.0, _error(begun, truth, where))}


def _error(guess: Vector, truth: Vector, where: Mask) -> float:
    return float(np.linalg.norm(guess[where] - truth[where]) / max(float(np.linalg.norm(truth[where])), 1e-12))


def _means(figures: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in figures[0]:
        values = [value for one in figures if (value := one.get(name)) is not None]
        found[name] = round(fmean(values), 5) if values else None
    return found
