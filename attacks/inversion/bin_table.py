"""The contents of an imprint's bins, and single pictures taken out of them one after the other.

A bin that holds one picture says it outright. Where rows compute several functionals, a picture that is known is taken
away from its bins in the others, until nothing changes any more: an invertible Bloom lookup table (Goodrich and
Mitzenmacher, arXiv 1101.2245) whose hash functions are functionals of the picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.inversion.analytic import plausible_pictures
from veilmesh.attacks.inversion.bins import Bins, effects
from veilmesh.attacks.network import Network

__all__ = ["BinTable", "Found"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_EMPTY = 1e-6  # a bin whose bias part is below this share of the largest is empty
_OUTSIDE = 2e-2  # how far rounding may carry a picture out of [0, 1]
_AGREES = 2e-3  # relative error below which a bias part is that of one picture
_ALIKE = 1e-2  # pictures nearer than this (largest difference) are one


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Pictures (n, C, H, W) with their labels, -1 where they are not known; the first `sure` fit their bias parts."""

    pictures: NDArray[np.float32]
    labels: Labels
    sure: int = 0
    filled: int = 0  # bins that are not empty

    @classmethod
    def nothing(cls, shape: tuple[int, int, int]) -> "Found":
        return cls(np.zeros((0, *shape), np.float32), np.zeros(0, np.int64))

    def first(self, count: int) -> "Found":
        return Found(self.pictures[:count], self.labels[:count], min(self.sure, count), self.filled)


@dataclass(frozen=True, slots=True, eq=False)
class _Single:
    """A picture (in,) that was alone in a bin, whose row and bias part are kept; label -1 while it is not known."""

    x: Floats
    label: int
    row: int
    bias: float


class BinTable:
    """The bins' contents, from which known pictures are taken away: of all of them the bias parts (bins,), and of those
    that are not empty the weight parts.

    `weight` (out, in) and `bias` (out,): what the update says of the layer.
    """

    def __init__(self, network: Network, bins: Bins, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
        self._network, self._bins = network, bins
        self._bias = bins.contents(bias)
        self._rows = bins.rows
        self._largest = float(np.abs(self._bias).max(initial=0.0))
        filled = self._open()
        self.filled = len(filled)
        self._slot = np.full(len(self._rows), -1)
        self._slot[filled] = np.arange(len(filled))
        self._weight = bins.contents(weight, filled)
        self._said = self._weight.copy(), self._bias.copy()

    def plausible(self, count: int) -> Found:
        """Contents as they are, the most plausible first, at most `count`: of no more than that, all."""
        x = _distinct(self._pictures(self._open()))
        if len(x) > count:
            pictures = plausible_pictures(x, self._network.shape, count)
        else:
            order = np.argsort(_outside(x), kind="stable")
            pictures = self._shaped(x[order])
        return Found(pictures, np.full(len(pictures), -1), 0, self.filled)

    def peeled(self, scale: float | None, count: int) -> Found:
        """All pictures that are alone in a bin once the others are taken away, and then what is plausible in the rest,
        at most `count`.

        Alone is what two bins say in the same words, or, where the `scale` of bias parts is known, what fits its own.
        """
        found = self._exhausted(scale)
        if scale is None and (scale := self._calibrated(found)) is not None:
            self._weight, self._bias = self._said[0].copy(), self._said[1].copy()  # two pictures may agree in two bins
            found = self._exhausted(scale)
        x = np.array([one.x for one in found]).reshape(len(found), self._weight.shape[1])
        rest = self.plausible(max(0, count - len(found))).pictures
        pictures = np.concatenate([x.clip(0, 1).astype(np.float32).reshape(-1, *self._network.shape), rest])
        labels = np.array([one.label for one in found] + [-1] * len(rest), np.int64)
        return Found(pictures, labels, len(found), self.filled).first(count)

    def _exhausted(self, scale: float | None) -> list["_Single"]:
        found: list[_Single] = []
        changed = self._open()
        while len(changed):
            changed = self._round(changed, scale, found)
        return found

    def _calibrated(self, found: list["_Single"]) -> float | None:
        """The scale with which most pictures in `found` fit their bias parts, each with some label; None if there is
        none: behind several local steps, or noise."""
        if len(found) < 3:
            return None
        x, rows = np.array([one.x for one in found]), np.array([one.row for one in found])
        possible = effects(self._network, self._bins.layer, self._shaped(x), rows)
        scales = possible / np.array([one.bias for one in found])[:, None]
        fits = [(np.abs(scales / s - 1).min(axis=1) < _AGREES).sum() if s else 0 for s in scales.reshape(-1)]
        best = int(np.argmax(fits))
        scale = float(scales.reshape(-1)[best])
        return None if fits[best] < 0.6 * len(found) else scale

    def _round(self, changed: Labels, scale: float | None, found: list["_Single"]) -> Labels:
        """Take the single pictures in the bins `changed` away from everywhere; the bins to look at again."""
        x, answers = self._candidates(changed)
        places, speaking = self._places(changed, answers)
        inside = _outside(x) < _OUTSIDE
        good = np.flatnonzero(inside & (places == changed[:, None]).any(axis=1))
        if not len(good):
            return good
        if scale is None:
            labels = np.full(len(good), -1)
            misfits = np.array([self._disagreement(int(changed[i]), x[i], places[i]) for i in good])
        else:
            labels, misfits = self._labels(x[good], changed[good], speaking[good], scale)
        touched: set[int] = set()
        for at in np.argsort(misfits, kind="stable"):
            one, mine = int(good[at]), {int(p) for p in places[good[at]] if p >= 0}
            if misfits[at] > _AGREES or int(changed[one]) in touched:
                continue
            single = _Single(x[one], int(labels[at]), int(speaking[one]), float(self._bias[changed[one]]))
            if self._take(int(changed[one]), mine):
                touched |= mine
                found.append(single)
        return np.array(sorted(set(self._open().tolist()) & touched), np.int64)

    def _take(self, bin_: int, places: set[int]) -> bool:
        """Take the content of `bin_` away from `places`; False where one of these is empty, so it was never there."""
        if any(abs(self._bias[p]) <= _EMPTY * self._largest for p in places):
            return False
        weight, bias = self._weight[self._slot[bin_]].copy(), float(self._bias[bin_])
        for place in sorted(places):
            self._weight[self._slot[place]] -= weight
            self._bias[place] -= bias
            if abs(self._bias[place]) < _AGREES * abs(bias):
                self._bias[place] = 0.0  # what is left is rounding
        return True

    def _disagreement(self, bin_: int, x: Floats, places: Labels) -> float:
        """How far the content of the bin nearest to it of `places`, of other groups, is from that of `bin_`: 0 if each
        holds the picture `x` (in,) alone."""
        nearest = np.inf
        for place in places[(places >= 0) & (places != bin_)]:
            if abs(self._bias[place]) > _EMPTY * self._largest:
                there = self._pictures(place[None])[0]
                apart = abs(self._bias[place] / self._bias[bin_] - 1)
                nearest = min(nearest, max(apart, float(np.abs(there - x).max()) / 10))
        return float(nearest)

    def _places(self, bins: Labels, answers: Floats) -> tuple[Labels, Labels]:
        """The bins (n, groups) of what was read in `bins`, and a row (n,) that is active for it. What lies on the edge
        of the bin that it was read in is in that one."""
        places = self._bins.places(answers)
        group = np.searchsorted(np.cumsum([len(g) for g in self._bins.groups]), bins, side="right")
        own = places[np.arange(len(bins)), group] if len(bins) else bins
        speaking = self._rows[np.where(own >= 0, own, bins)]
        edge = np.flatnonzero(self._bins.on_edge(answers, bins, own))
        places[edge, group[edge]] = bins[edge]
        return places, speaking

    def _labels(self, x: Floats, bins: Labels, rows: Labels, scale: float) -> tuple[Labels, Floats]:
        """The label with which each of `x` (n, in) fits its bin's bias part best, and its relative error there."""
        possible = effects(self._network, self._bins.layer, self._shaped(x), rows)
        seen = (scale * self._bias[bins])[:, None]
        misfit = np.abs(seen - possible) / np.maximum(np.maximum(np.abs(seen), np.abs(possible)), 1e-30)
        return misfit.argmin(axis=1), misfit.min(axis=1)

    def _candidates(self, bins: Labels) -> tuple[Floats, Floats]:
        """The quotients of `bins` as pictures (n, in), and the layer's answers to them (n, out)."""
        x = self._pictures(bins)
        return x, self._bins.answers(x.clip(0, 1))

    def _pictures(self, bins: Labels) -> Floats:
        """The quotients of `bins` (n,), none of them empty, as pictures (n, in)."""
        x: Floats = self._weight[self._slot[bins]] / self._bias[bins, None]
        x -= self._bins.offset
        x /= self._bins.factor
        return x

    def _shaped(self, x: Floats) -> NDArray[np.float32]:
        return x.clip(0, 1).astype(np.float32).reshape(-1, *self._network.shape)

    def _open(self) -> Labels:
        return np.flatnonzero(np.abs(self._bias) > _EMPTY * self._largest)


def _outside(x: Floats) -> Floats:
    """How far each picture (n, in) leaves [0, 1], (n,)."""
    above: Floats = np.maximum(x.max(axis=1, initial=1.0) - 1, -x.min(axis=1, initial=0.0))
    return above


def _distinct(x: Floats) -> Floats:
    """The rows (n, in) that are not nearly an earlier one. Only such are compared whose means by parts are near."""
    parts = np.add.reduceat(x, np.arange(0, x.shape[1], max(1, x.shape[1] // 16)), axis=1)
    parts /= max(1, x.shape[1] // 16)
    kept: list[int] = []
    for i in range(len(x)):
        near = [k for k in kept if np.abs(parts[k] - parts[i]).max() <= _ALIKE]
        if all(np.abs(x[k] - x[i]).max() > _ALIKE for k in near):
            kept.append(i)
    return x[kept]
