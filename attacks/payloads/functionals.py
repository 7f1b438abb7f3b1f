"""Linear functionals of a picture, and their quantiles over pictures of that kind: what the bins of an imprint are.

Low modes of the discrete cosine transform: the first is the brightness. Pictures of one kind spread over them, and they
are nearly uncorrelated, so two pictures that share a bin of one mode seldom share one of another.
"""

from math import hypot
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["cosine_mode", "quantiles", "supposed_quantiles"]

Floats = NDArray[np.float64]

_BRIGHTNESS = NormalDist(0.47, 0.13)  # mean over a photograph in [0, 1]
_CONTRAST = 0.12  # standard deviation of a photograph's first other modes, at this file's scale


def cosine_mode(index: int, shape: tuple[int, int, int]) -> Floats:
    """Mode number `index` (0 is brightness), lowest frequencies first, as weights (C*H*W,) of a mean over the picture;
    the same for all channels. Indices past the last mode begin again."""
    channels, height, width = shape
    modes = sorted(((v, u) for v in range(height) for u in range(width)), key=lambda m: (m[0] + m[1], m))
    v, u = modes[index % len(modes)]
    down = np.cos(np.pi * v * (np.arange(height) + 0.5) / height)
    across = np.cos(np.pi * u * (np.arange(width) + 0.5) / width)
    plane = np.outer(down, across)
    return np.tile(plane.reshape(-1), channels) / (channels * height * width)


def quantiles(values: Floats, levels: Floats) -> Floats:
    """Quantiles at `levels` of the density behind a sample (N,): each value is spread as a normal one, whose width is
    half of Silverman's rule, so that a few pictures give many different quantiles, and tails. No edge is a value that
    occurs: pictures in few shades would lie on it."""
    width = 0.5 * 1.06 * float(values.std()) * len(values) ** -0.2
    spread = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
    found: Floats = np.quantile((values[:, None] + width * spread).reshape(-1), levels)
    return found


def supposed_quantiles(index: int, shape: tuple[int, int, int], levels: Floats) -> Floats:
    """Quantiles of mode `index` over photographs in [0, 1], where there are none: normal for the brightness, Laplace
    for the others, less wide the higher the frequency."""
    if index == 0:
        return np.array([_BRIGHTNESS.inv_cdf(level) for level in levels])
    modes = sorted(((v, u) for v in range(shape[1]) for u in range(shape[2])), key=lambda m: (m[0] + m[1], m))
    wide = _CONTRAST / hypot(*modes[index % len(modes)]) / np.sqrt(2)
    tail = np.minimum(levels, 1 - levels)
    laplace: Floats = wide * np.sign(levels - 0.5) * -np.log(2 * tail)
    return laplace
