"""How near a picture is to another: PSNR, the same over circular shifts, SSIM, and one-to-one matching of batches.

All of it is per picture, in [0, 1] after clamping, and knows nothing of attacks.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CAP", "Pictures", "clamped", "match", "psnr", "psnr_shifted", "relative_error", "ssim"]

CAP = 60.0
"""PSNR is capped here (dB): an exact recovery would otherwise decide every mean."""

Pictures: TypeAlias = NDArray[np.floating[Any]]
"""(N, C, H, W), or one picture (C, H, W); values are clamped to [0, 1]."""


def psnr(x: Pictures, truth: Pictures) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each picture, (N,) in dB, at most `CAP`: -10 log10 of the mean squared error."""
    error = np.square(clamped(x) - clamped(truth)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(CAP, -10 * np.log10(error)), np.float64)


def relative_error(x: Pictures, truth: Pictures) -> NDArray[np.float64]:
    """The length of each picture's error over that of the picture itself, (N,): it has no cap, so it tells what is
    exact to the last bits from what is merely above `CAP`."""
    x, truth = clamped(x), clamped(truth)
    lengths = np.maximum(np.linalg.norm(truth.reshape(len(truth), -1), axis=1), 1e-12)
    return np.asarray(np.linalg.norm((x - truth).reshape(len(x), -1), axis=1) / lengths, np.float64)


def psnr_shifted(x: Pictures, truth: Pictures) -> NDArray[np.float64]:
    """The best PSNR (N,) of each picture over all its circular shifts, never below that of no shift.

    The gradient of a network with circular padding and pooling over all places does not say where in the picture things
    are, so a reconstruction may be right but for a shift. The shift is where the circular cross-correlation, summed
    over channels, is highest: the squared error is lowest there, for shifting changes no energy.
    """
    x, truth = clamped(x), clamped(truth)
    if not len(x):
        return np.zeros(0)
    spectrum = np.fft.rfft2(truth) * np.conj(np.fft.rfft2(x))
    likeness = np.fft.irfft2(spectrum.sum(axis=1), s=truth.shape[2:])
    places = [np.unravel_index(int(one.argmax()), one.shape) for one in likeness]
    rolled = [np.roll(picture, place, axis=(1, 2)) for picture, place in zip(x, places, strict=True)]
    return np.asarray(np.maximum(psnr(np.array(rolled), truth), psnr(x, truth)), np.float64)


def ssim(x: Pictures, truth: Pictures) -> NDArray[np.float64]:
    """Structural similarity of each picture, (N,), at most 1: Gaussian window 11x11, sigma 1.5, range 1, mean over
    channels (Wang et al. 2004).

    As scikit-image does with `gaussian_weights`: pictures are continued by reflection, and the mean leaves out a border
    of half a window, 5 pixels. Where a side is shorter than 11 the border is half of the largest odd window that fits
    (3 pixels for 8x8), the weights staying as they are.
    """
    x, truth = clamped(x), clamped(truth)
    border = (min(11, *x.shape[2:]) - 1) // 2
    return np.array([_ssim(a, b, border) for a, b in zip(x, truth, strict=True)], np.float64)


def match(guesses: Pictures, truths: Pictures) -> list[tuple[int, int]]:
    """Pairs (guess, truth), one to one, of least total squared error; as many as the fewer of the two has."""
    from scipy.optimize import linear_sum_assignment  # late: half a second of every run that has no pictures to match

    guesses, truths = clamped(guesses), clamped(truths)
    cost = [np.square(truths - g).mean(axis=(1, 2, 3)) for g in guesses]
    rows, columns = linear_sum_assignment(np.array(cost).reshape(len(guesses), len(truths)))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def clamped(x: Pictures | Sequence[Pictures]) -> NDArray[np.float64]:
    """Pictures (N, C, H, W) in float64, cut to [0, 1]; one picture becomes a batch of one."""
    array = np.asarray(x, np.float64)
    return (array if array.ndim == 4 else array[None]).clip(0, 1)


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64], border: int) -> float:
    """Of one picture (C, H, W)."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    map_ = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    height, width = map_.shape[1:]
    return float(map_[:, border : height - border, border : width - border].mean())


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter  # as above

    return np.asarray(gaussian_filter(x, sigma=(0, 1.5, 1.5), radius=(0, 5, 5), mode="reflect"), np.float64)
