"""How sure a figure is: 95 % intervals of means over pictures, of shares, and of means over the cells of a study."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean, stdev

import numpy as np

from veilmesh.core import generator

__all__ = ["batches", "bootstrap", "share_interval", "t_interval"]

RESAMPLES = 2000
_NORMAL = 1.959963984540054  # 97.5 % of a normal distribution lie below


def batches(clusters: Sequence[Hashable]) -> int:
    """How many independent things there are: batches, or, where all is of one batch, its pictures."""
    different = len(set(clusters))
    return different if different > 1 else len(clusters)


def bootstrap(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean of `values`, resampled by cluster (Davison and Hinkley
    1997), since pictures of one batch are recovered or lost together.

    Where all are of one cluster it is over its pictures. None of fewer than two; of few clusters it is too narrow.
    By a fixed generator: the same values have the same interval.
    """
    if len(values) < 2:
        return None
    groups: dict[Hashable, list[float]] = defaultdict(list)
    alone = len(set(clusters)) < 2
    for at, (value, cluster) in enumerate(zip(values, clusters, strict=True)):
        groups[at if alone else cluster].append(value)
    sums = np.array([sum(group) for group in groups.values()], np.float64)
    counts = np.array([len(group) for group in groups.values()], np.float64)
    drawn = generator(0, "bootstrap").integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a `share` of `count` independent things (Wilson 1927); not empty where it is 0 or 1."""
    square = _NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent `values`, by Student's t. None of fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # here, so that reading a study stays quick

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
