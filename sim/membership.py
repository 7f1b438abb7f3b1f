"""The membership game and its score: candidates without a word about who is a member, and then the truth.

Members are training examples that the victim used in some round. The others come from the same source and were trained
on by nobody: test pictures, and training pictures that fell to no peer. There are as many of them, of the same classes
as the members, and no two victims share one while there are enough. Floors stand beside the figures: scores that know
nothing have an AUC of 0.5, within an interval that says how much is chance.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.inference.base import INFERENCES, Candidates, Inference, Scores
from veilmesh.attacks.inference.models import KINDS
from veilmesh.core import BadInput, LocalError, generator
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.intervals import share_interval
from veilmesh.sim.observation import observation, randomness
from veilmesh.sim.roc import Split, auc, auc_floor, auc_gap_interval, auc_interval, balanced_accuracy, hits
from veilmesh.sim.scenario import Choice

__all__ = ["Game", "infer", "link_figures", "member_figures", "property_figures"]

_MOST = 250  # members of one victim; with more of them the figures are no sharper than other things make them
_ALARMS = {"tpr_1": 0.01, "tpr_01": 0.001}


@dataclass(frozen=True)
class Game:
    """One victim's candidates, and which of them are members: (N,), for the scorer alone."""

    candidates: Candidates
    members: NDArray[np.bool_]


def infer(folder: Path, cast: Cast, ids: Sequence[PeerId], choice: Choice, vantage: str) -> dict[str, Any]:
    """Run one inference on a finished run from `vantage`; its row for the summary. Raises BadInput."""
    from veilmesh.attacks.inference.activation_property import ActivationProperty  # here: they bring torch
    from veilmesh.attacks.inference.property import Property

    attack: Inference = choice.build(INFERENCES)
    if cast.dataset.per_pixel:
        raise BadInput(f"Attack {choice.name!r} needs one label for a picture; this task labels pixels; take another.")
    view = observation(folder, cast, ids, vantage)
    games = _games(cast, ids, view.vantage.controls)
    begin = time.process_time()
    given = {victim: game.candidates for victim, game in games.items()}
    scores = list(attack.run(view, given, randomness(view.public, choice.name)))
    seconds = time.process_time() - begin
    if isinstance(attack, Property | ActivationProperty):
        truth = [_had(cast, ids, one, partial(attack.holds, public=view.public)) for one in scores]
        found = property_figures(scores, truth)
    elif attack.infers == "peers":
        found = link_figures(scores)
    else:
        found = member_figures(scores, {victim: game.members for victim, game in games.items()})
    return {
        "attack": choice.name,
        "options": choice.options,
        "vantage": vantage,
        "infers": attack.infers,
        "guesses_made": len(scores),
        "cpu_seconds": round(seconds, 3),
        "labels_right": None,
        **found,
    }


def member_figures(scores: Iterable[Scores], truth: Mapping[PeerId, NDArray[np.bool_]]) -> dict[str, Any]:
    """The figures for each kind of model, by its name; and those of the best kind to have, as its own: the victim's
    own model where it was seen, else the consensus. Raises LocalError on scores for other candidates."""
    kinds: dict[str, list[Scores]] = {}
    for one in scores:
        if one.victim not in truth or one.values.shape != truth[one.victim].shape:
            raise LocalError("an inference scored candidates that it was not given")
        kinds.setdefault(one.model, []).append(one)
    found: dict[str, Any] = {kind: _figures(kinds[kind], truth) for kind in KINDS if kind in kinds}
    first = next((kind for kind in ("local", "consensus", "marginalised") if kind in found), None)
    base = kinds.get("consensus", [])
    gaps = {f"{kind}_gap": _gap(kinds[kind], base, truth) for kind in KINDS[:2] if base and kind in kinds}
    return {"model": first, **(found[first] if first else {"auc": None}), **found, **gaps}


def property_figures(scores: Sequence[Scores], truth: Sequence[bool]) -> dict[str, Any]:
    """The figures of a property, over victims and rounds; without an AUC where all of them had it, or none."""
    having = np.array([float(s.values[0]) for s, has in zip(scores, truth, strict=True) if has])
    others = np.array([float(s.values[0]) for s, has in zip(scores, truth, strict=True) if not has])
    share = {"updates": len(scores), "share": float(np.mean(truth)) if scores else None}
    if not len(having) or not len(others):
        return share | {"auc": None}
    rates = _rates([(having, others)], [scores[0].threshold])
    return share | rates | {"told": rates}


def link_figures(scores: Sequence[Scores]) -> dict[str, Any]:
    """How often the highest score is that of the peer itself (`top_1`), with its 95 % interval and what chance has.

    The interval counts peers and not updates: those of one peer are alike, and so right or wrong together.
    """
    peers = sorted({one.victim for one in scores})
    if not peers:
        return {"auc": None, "updates": 0, "top_1": None, "top_1_low": None, "top_1_high": None, "top_1_floor": None}
    share = fmean(peers[int(one.values.argmax())] == one.victim for one in scores)
    low, high = share_interval(share, len(peers))
    figures = {"top_1": share, "top_1_low": low, "top_1_high": high, "top_1_floor": 1 / len(peers)}
    return {"auc": None, "updates": len(scores)} | {name: round(value, 5) for name, value in figures.items()}


def _figures(scores: Sequence[Scores], truth: Mapping[PeerId, NDArray[np.bool_]]) -> dict[str, Any]:
    """AUC and balanced accuracy as means over victims, each with its own threshold; hits at one threshold for all."""
    splits = [_split(one, truth) for one in scores]
    single = [auc(*split) for split in splits]
    spread = {"auc_worst": max(single), "auc_least": min(single), "victims": len(single)}
    return _rates(splits, [one.threshold for one in scores]) | spread


def _gap(better: Sequence[Scores], base: Sequence[Scores], truth: Mapping[PeerId, NDArray[np.bool_]]) -> dict[str, Any]:
    """By how much the AUC of one kind of model exceeds that of another, on the victims that both were seen of."""
    both = {one.victim: one for one in base}
    pairs = [(one, both[one.victim]) for one in better if one.victim in both]
    if not pairs:
        return {"auc": None}
    splits, lesser = ([_split(pair[i], truth) for pair in pairs] for i in (0, 1))
    low, high = auc_gap_interval(splits, lesser, generator(0, "interval"))
    gap = fmean(auc(*a) - auc(*b) for a, b in zip(splits, lesser, strict=True))
    return {"auc": round(gap, 5), "auc_low": round(low, 5), "auc_high": round(high, 5)}


def _split(one: Scores, truth: Mapping[PeerId, NDArray[np.bool_]]) -> Split:
    return one.values[truth[one.victim]], one.values[~truth[one.victim]]


def _rates(splits: Sequence[Split], thresholds: Sequence[float]) -> dict[str, Any]:
    low, high = auc_interval(splits, generator(0, "interval"))
    floor_low, floor_high = auc_floor(splits)
    members, others = (np.concatenate([split[i] for split in splits]) for i in (0, 1))
    single = zip(splits, thresholds, strict=True)
    figures: dict[str, Any] = {
        "auc": fmean(auc(*split) for split in splits),
        "auc_low": low,
        "auc_high": high,
        "auc_floor": 0.5,
        "auc_floor_low": floor_low,
        "auc_floor_high": floor_high,
        "accuracy_balanced": fmean(balanced_accuracy(*split, threshold) for split, threshold in single),
        "candidates": len(members) + len(others),
    }
    for name, alarms in _ALARMS.items():
        rate = hits(members, others, alarms)
        at_least, at_most = share_interval(rate, len(members)) if rate is not None else (None, None)
        figures |= {name: rate, f"{name}_low": at_least, f"{name}_high": at_most}
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}


def _games(cast: Cast, ids: Sequence[PeerId], controls: frozenset[PeerId]) -> dict[PeerId, Game]:
    """A game for every honest peer that the adversary does not control."""
    rng = generator(cast.scenario.seed, "candidates")
    pool = _Strangers(cast, rng)
    found: dict[PeerId, Game] = {}
    for index in range(cast.scenario.peers):
        if ids[index] not in controls and index not in cast.tampering:
            found[ids[index]] = _game(cast, index, pool, rng)
    return found


def _game(cast: Cast, index: int, pool: "_Strangers", rng: np.random.Generator) -> Game:
    used = np.unique(np.concatenate([cast.drawn(index, round_) for round_ in range(cast.scenario.rounds)]))
    kept, x, y = pool.like(rng.permutation(used)[:_MOST])
    pictures = np.concatenate([cast.dataset.train_x[kept], x])
    labels = np.concatenate([cast.dataset.train_y[kept], y])
    order = rng.permutation(len(labels))
    members = np.arange(len(labels)) < len(kept)
    return Game(Candidates(pictures[order], labels[order]), members[order])


class _Strangers:
    """Pictures that nobody trained on, handed out class by class, none twice while there are others."""

    def __init__(self, cast: Cast, rng: np.random.Generator) -> None:
        data = cast.dataset
        spare = np.setdiff1d(np.arange(len(data.train_y)), np.concatenate(cast.shards))
        self._x = np.concatenate([data.test_x, data.train_x[spare]])
        self._y = np.concatenate([data.test_y, data.train_y[spare]])
        self._labels = data.train_y
        trained = {data.train_x[i].tobytes() for shard in cast.shards for i in shard}
        fresh = np.array([i for i, picture in enumerate(self._x) if picture.tobytes() not in trained], dtype=np.int64)
        self._queues = {int(c): rng.permutation(fresh[self._y[fresh] == c]) for c in np.unique(self._y[fresh])}

    def like(self, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Of these training examples those for which there is a stranger of the same class; and these strangers."""
        kept: list[NDArray[np.int64]] = []
        taken: list[NDArray[np.int64]] = []
        for label in np.unique(self._labels[members]):
            queue = self._queues.get(int(label), np.zeros(0, np.int64))
            of_class = members[self._labels[members] == label][: len(queue)]
            kept.append(of_class)
            taken.append(queue[: len(of_class)])
            self._queues[int(label)] = np.roll(queue, -len(of_class))
        at = np.concatenate(taken)
        return np.concatenate(kept), self._x[at], self._y[at]


def _had(cast: Cast, ids: Sequence[PeerId], one: Scores, holds: Callable[..., bool]) -> bool:
    """Whether what the victim trained on in that round had the property."""
    drawn = cast.drawn(ids.index(one.victim), one.round)
    return holds(cast.dataset.train_x[drawn], cast.dataset.train_y[drawn])
