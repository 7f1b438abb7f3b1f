"""The figures of one attack on one run: over all private pictures behind its guesses, those it left out included.

Beside every figure stand its floor, what guesses score that know nothing, and its 95 % interval. The interval of a mean
is over pictures, by whole batches where there are several of them (`interval_over` says which); how much a figure
changes from seed to seed is for the cells of a study to say (`low` and `high` in its claims).
"""

from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from veilmesh.sim.identify import Identified
from veilmesh.sim.intervals import batches, bootstrap, share_interval
from veilmesh.sim.roc import auc
from veilmesh.sim.score import Scored

__all__ = ["SUCCESS_DB", "figures", "label_figures", "ordered_figures", "row"]

SUCCESS_DB = (20, 25, 30)
_FLOORS = ("grey", "mean", "nearest", "blind", "shifted")
_WHICH = [f"{name}_{which}" for name in ("psnr", "ssim", "gain", "floor") for which in ("best", "median")]
_MEANS = [f"{name}_{which}" for name in ("psnr", "gain") for which in ("mean", "low", "high")]
_IDENTIFIED = ["identified", "identified_low", "identified_high", "identified_floor"]
_OTHERS = [
    "gain_highest", "floor_blind", "psnr_std", "psnr_shifted_best", "psnr_shifted_median", "psnr_shifted_mean",
    "error_best", "error_worst",
]  # fmt: skip
_EMPTY = dict.fromkeys(
    [*_WHICH, *_MEANS, *_IDENTIFIED, *_OTHERS]
)  # there, and without a value: no claim passes it over

Rows = Sequence[Mapping[str, Any]]


def row(victim: str, label: int | None, scored: Scored, known: Identified) -> dict[str, Any]:
    """One private picture: whose, its label (None where pixels have labels), and how well it was guessed."""
    names = (
        "round", "psnr", "psnr_shifted", "ssim", "best_floor", "gain", "floor_grey", "floor_mean", "floor_nearest",
        "floor_blind", "floor_shifted", "ssim_floor", "ssim_gain", "label_ok", "loss",
    )  # fmt: skip
    values = {name: getattr(scored, name) for name in names}
    found = {"identified": known.found, "identified_floor": known.floor, "gallery": known.gallery}
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in (values | found).items()}
    error = float(f"{scored.error:.4g}")  # may be of the size of the last bits
    return {"victim": victim, "label": label, "guessed_label": scored.label, **rounded, "error": error}


def figures(rows: Rows, clusters: Sequence[Hashable]) -> dict[str, Any]:
    """One attack's figures over all rows; `clusters` says which of them are of one batch.

    "best" is picked by the truth: the attacker cannot know which one it is. "chosen" is what it would pick itself: the
    picture of the guess with the lowest loss of its own (in a batch, the middle one of that guess's pictures).
    """
    guessed = sum(bool(r["guess"]) for r in rows)
    if not guessed:  # gray for all of them would be no figure of the attack's
        return {"pictures": len(rows), "guessed": 0} | _EMPTY
    trusted = [r for r in rows if r["loss"] == min(r["loss"] for r in rows)]
    count = batches(clusters)
    return {
        "pictures": len(rows),
        "guessed": guessed,
        **_best_and_median(rows),
        "psnr_chosen": median(r["psnr"] for r in trusted),
        "gain_chosen": median(r["gain"] for r in trusted),
        "floors": {name: median(r[f"floor_{name}"] for r in rows) for name in _FLOORS},
        **_mean("psnr", rows, clusters),
        **_mean("gain", rows, clusters),
        "psnr_std": stdev(r["psnr"] for r in rows) if len(rows) > 1 else None,
        "error_best": min(r["error"] for r in rows),
        "error_worst": max(r["error"] for r in rows),
        "floor_blind": fmean(r["floor_blind"] for r in rows),
        "interval_over": "batches" if len(set(clusters)) > 1 else "pictures",
        **_success(rows, count),
        **_identified(rows, count),
    }


def label_figures(
    said: Sequence[tuple[np.ndarray, np.ndarray]], public_labels: np.ndarray, classes: int
) -> dict[str, Any]:
    """The share of private labels that were told rightly, in whatever order; and the share that is right without any
    information, by the public pictures' classes alone. `said`: for each guess, the true labels and the guessed ones."""
    right, blind, total = 0, 0, 0
    for labels, guessed in said:
        truth = np.bincount(labels, minlength=classes)
        right += int(np.minimum(truth, np.bincount(guessed[: len(labels)], minlength=classes)).sum())
        blind += int(np.minimum(truth, _usual(public_labels, classes, len(labels))).sum())
        total += len(labels)
    return {"labels_right": right / total, "labels_floor": blind / total} if total else {"labels_right": None}


def ordered_figures(
    said: Sequence[tuple[np.ndarray, np.ndarray]],
    scores: Sequence[tuple[np.ndarray | None, Sequence[int] | None]],
    public_labels: np.ndarray,
) -> dict[str, Any]:
    """The share of examples whose label was told rightly, with its 95 % interval, as if examples were met once; and the
    share that the most frequent class of the public pictures would have.

    `scores`: for each guess, of two classes, (B,) or (layers, B), higher for class 1, and the sizes of the batches in
    it. `leak_auc` is Li et al.'s (ICLR 2022, section 3): of every batch with both classes the AUC, of these the median,
    of layers the largest.
    """
    if not said:
        return {"labels_right": None}
    truth, guessed = np.concatenate([y for y, _ in said]), np.concatenate([g for _, g in said])
    share = float((truth == guessed).mean())
    low, high = share_interval(share, len(truth))
    usual = int(np.bincount(public_labels).argmax())
    return {
        "labels_right": share,
        "labels_low": low,
        "labels_high": high,
        "labels_floor": float((truth == usual).mean()),
        "leak_auc": _leak([y for y, _ in said], scores),
    }


def _leak(
    truth: Sequence[np.ndarray], scores: Sequence[tuple[np.ndarray | None, Sequence[int] | None]]
) -> float | None:
    layers: dict[int, list[float]] = {}
    for labels, (values, sizes) in zip(truth, scores, strict=True):
        if values is None or sizes is None or not np.size(values):
            continue
        ends = np.cumsum(sizes)[:-1]
        for at, row in enumerate(np.atleast_2d(values)):
            for y, s in zip(np.split(labels, ends), np.split(row, ends), strict=True):
                if 0 < (y == 1).sum() < len(y):
                    layers.setdefault(at, []).append(auc(s[y == 1], s[y != 1]))
    return max((median(found) for found in layers.values()), default=None)


def _usual(public_labels: np.ndarray, classes: int, count: int) -> np.ndarray:
    """How often each class would be among `count` pictures that are like the public ones: (K,), rounded to sum."""
    share = np.bincount(public_labels, minlength=classes) / len(public_labels)
    usual = np.floor(count * share).astype(np.int64)
    usual[np.argsort(usual - count * share, kind="stable")[: count - usual.sum()]] += 1
    return usual


def _best_and_median(rows: Rows) -> dict[str, Any]:
    best = max(rows, key=lambda r: r["psnr"])
    middle = {name: median(r[name] for r in rows) for name in ("psnr", "ssim", "gain", "best_floor", "psnr_shifted")}
    return {
        "psnr_best": best["psnr"],
        "ssim_best": best["ssim"],
        "gain_best": best["gain"],
        "gain_highest": max(r["gain"] for r in rows),  # of any picture: the best by PSNR may be one with a high floor
        "floor_best": best["best_floor"],
        "psnr_median": middle["psnr"],
        "ssim_median": middle["ssim"],
        "gain_median": middle["gain"],
        "floor_median": middle["best_floor"],
        "psnr_shifted_best": max(r["psnr_shifted"] for r in rows),
        "psnr_shifted_median": middle["psnr_shifted"],
        "psnr_shifted_mean": fmean(r["psnr_shifted"] for r in rows),
    }


def _mean(name: str, rows: Rows, clusters: Sequence[Hashable]) -> dict[str, Any]:
    """The mean of a figure with its interval, which one picture alone does not have."""
    values = [float(r[name]) for r in rows]
    low, high = bootstrap(values, clusters) or (None, None)
    return {f"{name}_mean": fmean(values), f"{name}_low": low, f"{name}_high": high}


def _success(rows: Rows, count: int) -> dict[str, Any]:
    """The share of pictures at so many decibels, with its interval, and the share whose best floor is there too."""
    shares = {str(db): fmean(r["psnr"] >= db for r in rows) for db in SUCCESS_DB}
    intervals = {db: share_interval(share, count) for db, share in shares.items()}
    return {
        "success": shares,
        "success_low": {db: low for db, (low, _) in intervals.items()},
        "success_high": {db: high for db, (_, high) in intervals.items()},
        "success_floor": {str(db): fmean(r["best_floor"] >= db for r in rows) for db in SUCCESS_DB},
    }


def _identified(rows: Rows, count: int) -> dict[str, Any]:
    """The share of pictures whose guess has them as its nearest of the gallery, and what knowing nothing would have."""
    share = fmean(r["identified"] for r in rows)
    low, high = share_interval(share, count)
    floor = fmean(r["identified_floor"] for r in rows)
    values = dict(zip(_IDENTIFIED, (share, low, high, floor), strict=True))
    return values | {"gallery": min(r["gallery"] for r in rows)}
