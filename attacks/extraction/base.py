"""What a model extraction promises: somebody's own model, from the adversary's view alone.

An owner's model that is never said as it is can be told apart from what is said of it: how good the reconstruction is
at the task, and how far it lies from the truth, is measured in `sim/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from veilmesh.attacks.view import View
from veilmesh.core import Registry
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId

__all__ = ["EXTRACTIONS", "Extracted", "Extraction"]


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """What the adversary says `victim`'s own model is, after `round`.

    `parameters` (d,); `seen` (d,): the coordinates that it ever saw anything of; the rest is a guess. `last` (d,): the
    victim's last word alone, as whoever got it would run it: what the attack has to beat. `words`: how many messages
    are behind it; `rounds`: of how many of the latest rounds, as the adversary chose.
    """

    victim: PeerId
    round: int
    parameters: Vector
    seen: Mask
    last: Vector
    words: int
    rounds: int


class Extraction(Protocol):
    """A model extraction: pure in its view and its generator."""

    extracts: ClassVar[str]  # "model"
    sharings: ClassVar[tuple[str, ...]]  # the sharing schemes whose messages it reads

    def run(self, view: View, rng: np.random.Generator) -> Iterable[Extracted]:
        """At most one for each victim. Raises BadInput on a run of another sharing scheme."""
        ...


EXTRACTIONS: Registry[Extraction] = Registry("extraction", "veilmesh.attacks.extraction")
