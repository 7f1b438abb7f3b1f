"""What an inference promises: a score for every candidate, from the adversary's view alone.

The membership game. For each victim the adversary is given candidates: pictures with their labels, of which half were
among that peer's training examples and half were not, from the same source, shuffled, and with no word about which.
It answers with a score for each, higher where it holds membership for likelier. Who was a member is known in `sim/`
alone. An inference of a property of a victim's data is a score in the same form, and looks at no candidate; so is one
of which peer somebody used to be, with a score for every peer that was seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.extraction.base import EXTRACTIONS
from veilmesh.attacks.view import ATTACKS, View
from veilmesh.core import BadInput, Registry
from veilmesh.core.registry import unknown
from veilmesh.peer.machine import PeerId

__all__ = ["INFERENCES", "Candidates", "Inference", "Kind", "Scores", "registry_of"]

Kind: TypeAlias = Literal["local", "marginalised", "consensus"]
"""Which model a score was read from: the victim's own, that without what its neighbours put into it, or everybody's."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Pictures (N, C, H, W) in [0, 1] and labels (N,), half of them a peer's training examples; nobody says which."""

    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the adversary says of `victim`'s candidates, from the model of `round`, in the order they were given in.

    `values` (N,): higher is more likely a member; those of properties are (1,), and of the victim's own data; those of
    who it used to be (n,), over all victims in the order of their ids.
    `threshold`: above it the adversary itself would say "member", or "has it".
    """

    victim: PeerId
    model: Kind
    round: int
    values: NDArray[np.float64]
    threshold: float


class Inference(Protocol):
    """An inference: pure in its view, its candidates and its generator."""

    infers: ClassVar[str]  # "members", "property", or "peers"

    def run(self, view: View, candidates: Mapping[PeerId, Candidates], rng: np.random.Generator) -> Iterable[Scores]:
        """Scores, as they come; at most one set for each victim, kind of model and round."""
        ...


INFERENCES: Registry[Inference] = Registry("inference", "veilmesh.attacks.inference")


def registry_of(name: str) -> Registry[Any]:
    """Where the attack of that name is registered: those that reconstruct, infer, or extract. Raises BadInput,
    naming all of them."""
    for registry in (ATTACKS, INFERENCES, EXTRACTIONS):
        if name in registry.names():
            return registry
    raise BadInput(unknown("attack", name, [*ATTACKS.names(), *INFERENCES.names(), *EXTRACTIONS.names()]))
