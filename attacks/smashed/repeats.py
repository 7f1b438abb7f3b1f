"""Which examples of a data owner were met before: by their activations, which change only slowly as training goes on.

Every example occurs once in an epoch, so what was inferred of it adds up over epochs: noise that is drawn afresh every
time averages out.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Repeats"]

Floats = NDArray[np.float64]


class Repeats:
    """The examples met so far, and what is known of each.

    Args:
        ratio: an example is one that was met if its nearest is nearer than so much of the second nearest's distance.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._places: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._epochs = np.zeros(0, np.int64)
        self.evidence: list[Floats] = []  # (K,) of each example, summed

    def find(self, rows: NDArray[np.float32], epoch: int, classes: int) -> NDArray[np.int64]:
        """The numbers (B,) of the examples with activations `rows` (B, ...) of one batch; new ones where none fits."""
        flat = rows.reshape(len(rows), -1)
        found = self._known(flat, epoch)
        for at in np.flatnonzero(found < 0):
            found[at] = len(self.evidence)
            self.evidence.append(np.zeros(classes))
        self._keep(found, flat, epoch)
        return found

    def _known(self, flat: NDArray[np.float32], epoch: int) -> NDArray[np.int64]:
        found = np.full(len(flat), -1, np.int64)
        before = np.flatnonzero(self._epochs < epoch)
        if len(before) < 2:
            return found
        places = self._places[before]
        square = np.square(flat).sum(1)[:, None] + np.square(places).sum(1) - 2 * flat @ places.T
        nearest = np.argsort(square, axis=1, kind="stable")[:, :2]
        first, second = (np.sqrt(np.maximum(np.take_along_axis(square, nearest[:, [i]], 1)[:, 0], 0)) for i in (0, 1))
        taken: set[int] = set()
        for at in np.argsort(first, kind="stable"):
            if first[at] < self._ratio * second[at] and int(nearest[at, 0]) not in taken:
                taken.add(int(nearest[at, 0]))
                found[at] = before[nearest[at, 0]]
        return found

    def _keep(self, found: NDArray[np.int64], flat: NDArray[np.float32], epoch: int) -> None:
        new = len(self.evidence) - len(self._epochs)
        if new:
            self._places = np.concatenate(
                [self._places.reshape(-1, flat.shape[1]), np.zeros((new, flat.shape[1]), np.float32)]
            )
            self._epochs = np.concatenate([self._epochs, np.zeros(new, np.int64)])
        self._places[found], self._epochs[found] = flat, epoch
