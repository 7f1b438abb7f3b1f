"""Public pictures that came with labels of the task."""

from dataclasses import dataclass

import numpy as np

from veilmesh.tasks.aligners.base import ALIGNERS, Aligned
from veilmesh.tasks.data.base import Labels, Pictures

__all__ = ["Given"]


@ALIGNERS.register("given")
@dataclass(frozen=True, slots=True)
class Given:
    """The public set's own labels, all of them certain; also where every pixel has one."""

    def align(self, x: Pictures, y: Labels, classes: int) -> Aligned:
        """As `Aligner.align`."""
        return Aligned(y, np.ones(len(x)))
