"""What guesses that know nothing of the victim score on its pictures: what every figure of an attack stands beside."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.sim.blind import blind_guesses
from veilmesh.sim.measures import Pictures, clamped, psnr, psnr_shifted, ssim

__all__ = ["Floors", "floors", "pairs"]


@dataclass(frozen=True, slots=True)
class Floors:
    """What four guesses that know nothing of the victim score on one picture: (PSNR in dB, SSIM), or the PSNR alone.

    `grey`: 0.5 everywhere. `mean`: the mean of the public pictures. `nearest`: that public picture which is nearest to
    the truth by MSE, chosen with the truth in hand: the strictest floor. `blind`: what as many public pictures as the
    batch has, drawn at random, score once they are matched to it as guesses are, the mean of several draws;
    `blind_shifted` the same, each at its best circular shift. All but grey are None without public pictures.
    """

    grey: tuple[float, float]
    mean: tuple[float, float] | None = None
    nearest: tuple[float, float] | None = None
    nearest_index: int | None = None  # which public picture that is
    blind: float | None = None
    blind_shifted: float | None = None

    @property
    def best(self) -> tuple[float, float]:
        """The best PSNR and the best SSIM of any floor; not necessarily of the same one. The blind one, a mean over
        public pictures, is never above the nearest of them."""
        known = [f for f in (self.grey, self.mean, self.nearest) if f is not None]
        return max(f[0] for f in known), max(f[1] for f in known)


def floors(truths: Pictures, public: Pictures | None) -> list[Floors]:
    """The floors of each of `truths` (N, C, H, W), one batch, against `public` pictures (M, C, H, W).

    Matching cannot raise the first three: each truth already has its own best public picture.
    """
    truths = clamped(truths)
    grey = pairs(np.full_like(truths, 0.5), truths)
    if public is None or not len(public):
        return [Floors(g) for g in grey]
    public = clamped(public)
    mean = pairs(np.broadcast_to(public.mean(axis=0), truths.shape), truths)
    closest = [int(np.square(public - t).mean(axis=(1, 2, 3)).argmin()) for t in truths]
    nearest = pairs(public[closest], truths)
    blind = _blind(truths, public)
    return [Floors(*found) for found in zip(grey, mean, nearest, closest, *blind, strict=True)]


def pairs(x: Pictures, truth: Pictures) -> list[tuple[float, float]]:
    """(PSNR, SSIM) of each picture."""
    return list(zip(psnr(x, truth).tolist(), ssim(x, truth).tolist(), strict=True))


def _blind(truths: NDArray[np.float64], public: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """The mean over draws of what blind guesses score, (N,) each: as they are, and at their best shifts."""
    drawn = [public[places] for places in blind_guesses(truths, public)]
    plain = np.mean([psnr(pictures, truths) for pictures in drawn], axis=0)
    shifted = np.mean([psnr_shifted(pictures, truths) for pictures in drawn], axis=0)
    return plain.tolist(), shifted.tolist()
