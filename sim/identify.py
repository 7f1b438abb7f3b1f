"""Whether a guess tells which picture it was: among many of the same class, is the true one the nearest?

PSNR alone is no privacy: reconstructions at the level of a gray picture have had the true picture as their nearest
neighbour among a thousand of its class (the image identification precision of Yin et al., arXiv 2104.07586).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import generator
from veilmesh.sim.blind import blind_guesses
from veilmesh.sim.measures import Pictures, clamped

__all__ = ["GALLERY", "Gallery", "Identified", "identify"]

GALLERY = 1000
"""At most so many pictures are looked among, the true one included."""

_VALUES = 30_000_000  # of large pictures fewer, so that a gallery is never more than this many numbers


@dataclass(frozen=True, slots=True)
class Gallery:
    """Where a guess is looked up: the data set's training pictures (N, C, H, W) and their labels, (N,) or (N, H, W)."""

    pictures: Pictures
    labels: NDArray[np.int64]

    def around(self, index: int) -> NDArray[np.int64]:
        """Which pictures picture `index` is looked for among: itself, and others of its class, all of them or as many
        as a gallery may hold, drawn by a generator that the picture names. Where pixels have labels, any others."""
        alike = self.labels == self.labels[index] if self.labels.ndim == 1 else np.ones(len(self.labels), bool)
        others = np.flatnonzero(alike)
        others = others[others != index]
        most = max(1, min(GALLERY, _VALUES // int(np.prod(self.pictures.shape[1:]))) - 1)
        if len(others) > most:
            others = np.sort(generator(0, "gallery", index).choice(others, most, replace=False))
        return np.concatenate([[index], others])


@dataclass(frozen=True, slots=True)
class Identified:
    """Whether one guess has the true picture as its nearest of `gallery`, and how likely a guess is to have it that
    knows nothing: the best of gray, the mean of public pictures, blind guesses matched in the same way, and chance."""

    found: bool
    floor: float
    gallery: int


def identify(
    shown: Pictures, guessed: NDArray[np.bool_], drawn: NDArray[np.int64], gallery: Gallery, public: Pictures
) -> list[Identified]:
    """For each private picture of a batch, number `drawn` (N,) of the gallery, whether `shown` (N, C, H, W) tells it.

    What was not `guessed` (N,) at is not found. Nearest is by squared error; of equal pictures any is the right one.
    """
    public = clamped(public)
    blind = blind_guesses(gallery.pictures[drawn], public)
    still = [np.full(shown.shape[1:], 0.5), public.mean(axis=0)]
    found = []
    for j, index in enumerate(drawn):
        asked = np.array([shown[j], *still, *public[blind[:, j]]])
        around = gallery.around(int(index))
        hits = _nearest(clamped(asked), gallery.pictures, around)
        floor = max(float(hits[1]), float(hits[2]), float(hits[3:].mean()), 1 / len(around))
        found.append(Identified(bool(hits[0] and guessed[j]), floor, len(around)))
    return found


def _nearest(asked: NDArray[np.float64], pictures: Pictures, around: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the first of `around` is the nearest to each of `asked` (Q, C, H, W): (Q,)."""
    flat = asked.reshape(len(asked), -1)
    step = max(1, 4_000_000 // flat.shape[1])
    parts = [_distances(flat, clamped(pictures[around[at : at + step]])) for at in range(0, len(around), step)]
    distances = np.concatenate(parts, axis=1)
    slack = 1e-9 * flat.shape[1]  # equal pictures are equally far, up to rounding
    return np.asarray(distances[:, 0] <= distances.min(axis=1) + slack)


def _distances(flat: NDArray[np.float64], pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (Q, N), less what is the same for all N."""
    other = pictures.reshape(len(pictures), -1)
    return np.asarray(np.square(other).sum(axis=1) - 2 * flat @ other.T)
