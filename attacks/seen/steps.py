"""Steps towards where a function of several vectors is nothing, or as little as can be, where only values are known."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["anderson", "gauss_newton"]

Floats = NDArray[np.float64]

_STEPS = 4
_TINY = 1e-6  # of a move, to see what it changes
_SCALES = (1.0, 0.5, 0.25, 0.1, 0.03)
_STALLED = 0.999


def anderson(history: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The next iterate of Anderson's method (1965), of points and the steps proposed there, each (...): of the last
    ones, the combination whose steps nearly cancel, and its step."""
    points = np.stack([x.reshape(-1) for x, _ in history])
    steps = np.stack([f.reshape(-1) for _, f in history])
    here = points[-1] + steps[-1]
    if len(history) > 1:
        change, moved = steps[1:] - steps[:-1], points[1:] - points[:-1]
        share = np.linalg.lstsq(change.T, steps[-1], rcond=1e-12)[0]
        here = here - share @ (moved + change)
    mixed: Floats = here.reshape(history[-1][0].shape)
    return mixed


def gauss_newton(
    points: Floats, left: Callable[[Floats], Floats], moves: Callable[[Floats], list[Floats]], enough: float
) -> tuple[Floats, float]:
    """`points` (...) after a few Gauss-Newton steps within the span of `moves`, and the length of what is `left` (n,)
    there; no step is taken that does not shorten it, nor any once it is `enough`. `left` is asked there last."""
    rest = left(points)
    length = float(np.linalg.norm(rest))
    for _ in range(_STEPS):
        if length <= enough:
            break
        ways = moves(points)
        slopes = np.stack([(left(points + _TINY * way) - rest) / _TINY for way in ways], axis=1)
        share = np.linalg.lstsq(slopes.T @ slopes, -slopes.T @ rest, rcond=1e-12)[0]
        change = np.tensordot(share, np.stack(ways), 1)
        for scale in _SCALES:
            there = left(points + scale * change)
            if np.linalg.norm(there) < length:
                break
        else:
            break
        before, points, rest, length = length, points + scale * change, there, float(np.linalg.norm(there))
        if length > _STALLED * before:
            break
    left(points)
    return points, length
