"""How well scores tell members from others: AUC, the rate of hits at few false alarms, and their intervals.

As Carlini et al. 2022 (arXiv 2112.03570) ask for: a mean over all thresholds says little of the few whom an attacker is
sure of, so the true-positive rate at low false-positive rates stands beside it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["auc", "auc_floor", "auc_gap_interval", "auc_interval", "balanced_accuracy", "hits"]

Floats = NDArray[np.float64]
Split = tuple[Floats, Floats]
"""The scores of members, and of others; for one victim."""

_RESAMPLED = 1000
_WIDE = 1.959964  # of a normal distribution, the middle 95 %


def auc(members: Floats, others: Floats) -> float:
    """The chance that a member scores above another, ties counting half."""
    return float(_above(members, others).mean())


def auc_interval(splits: Sequence[Split], rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean AUC over victims: of each victim, members and others are drawn again."""
    return _interval([_above(*split) for split in splits], rng)


def auc_gap_interval(splits: Sequence[Split], lesser: Sequence[Split], rng: np.random.Generator) -> tuple[float, float]:
    """The same of the difference between the mean AUC of `splits` and that of `lesser`, which score the same members
    and others in the same order."""
    return _interval([_above(*a) - _above(*b) for a, b in zip(splits, lesser, strict=True)], rng)


def auc_floor(splits: Sequence[Split]) -> tuple[float, float]:
    """Where the mean AUC of scores that know nothing lies 95 times in 100: around 0.5, by the variance of Mann and
    Whitney's statistic."""
    variance = sum((len(m) + len(o) + 1) / (12 * len(m) * len(o)) for m, o in splits) / len(splits) ** 2
    return 0.5 - _WIDE * variance**0.5, 0.5 + _WIDE * variance**0.5


def hits(members: Floats, others: Floats, alarms: float) -> float | None:
    """The share of members above the lowest threshold that at most `alarms` of the others exceed; None where they are
    too few to tell so small a share."""
    if len(others) < 1 / alarms:
        return None
    threshold = np.sort(others)[-1 - int(alarms * len(others))]
    return float((members > threshold).mean())


def balanced_accuracy(members: Floats, others: Floats, threshold: float) -> float:
    """The mean of the share of members above the threshold and that of others who are not."""
    return float(((members > threshold).mean() + (others <= threshold).mean()) / 2)


def _interval(tables: Sequence[Floats], rng: np.random.Generator) -> tuple[float, float]:
    """Of the mean over victims of the mean of their tables (members, others)."""
    means = np.zeros(_RESAMPLED)
    for table in tables:
        up, down = (_counts(n, rng) for n in table.shape)
        means += ((up @ table) * down).sum(axis=1) / table.size
    low, high = np.percentile(means / len(tables), [2.5, 97.5])
    return float(low), float(high)


def _above(members: Floats, others: Floats) -> Floats:
    a, b = members[:, None], others[None]
    above: Floats = (a > b) / 2 + (a >= b) / 2
    return above


def _counts(n: int, rng: np.random.Generator) -> Floats:
    return rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLED).astype(np.float64)
