"""What an aligner promises: of public pictures, which class of the task each is of, and how sure that is.

Who trains on public pictures as well (GradientHide, ICLR 2026 submission 8522) needs them labelled in the task's own
classes. The paper asks CLIP, without training anything; here whatever can say it is a plug-in.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import Registry
from veilmesh.tasks.data.base import Labels, Pictures

__all__ = ["ALIGNERS", "Aligned", "Aligner"]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """`labels` (N,), or (N, H, W) where pixels have classes; `confidence` (N,) in [0, 1], of the whole picture."""

    labels: Labels
    confidence: NDArray[np.float64]


class Aligner(Protocol):
    """Its dataclass fields are its options. Pure: everybody who aligns the same pictures gets the same labels, an
    attacker too."""

    def align(self, x: Pictures, y: Labels, classes: int) -> Aligned:
        """The classes of public pictures `x` (N, C, H, W). Of the true ones `y` (N,), or (N, H, W), it uses no more
        than it says it does. Raises BadInput where it cannot work on pictures of this kind."""
        ...


ALIGNERS: Registry[Aligner] = Registry("aligner", "veilmesh.tasks.aligners")
