"""What a tamper promises: a malicious peer is an honest machine with a wrapper around it, a machine like the others.

It knows what any peer knows (its kit, the public matrix W) and who its accomplices are; of the others it knows what
they told it, and nothing is passed between accomplices. It has no guards on itself (`sim/cast.py` gives it none):
nobody clips his own lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, Registry
from veilmesh.peer.machine import Machine, PeerId
from veilmesh.swarm.strategies.base import Kit

__all__ = ["TAMPERS", "Insider", "Labels", "Pictures", "Tamper", "peers_only"]

Pictures: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Insider:
    """What a malicious peer knows when the run begins."""

    kit: Kit
    malicious: frozenset[PeerId]  # everybody the adversary controls, itself included
    rows: Mapping[PeerId, Mapping[PeerId, float]]  # W, which is public; empty in a star
    public: Public | None = None  # what the protocol announces to everybody; None: nothing is crafted for a network


class Tamper(Protocol):
    """An active attack: on what a malicious peer says, on what it trains on, or on both."""

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        """Raises BadInput where this attack has no meaning: in that protocol, on a task with so many classes, or as
        what the `server` of a star does, where it is not a peer that does it."""
        ...

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        """The malicious machine around `honest`."""
        ...

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        """What a malicious peer trains on instead of `x` (n, C, H, W) and `y`, which are not written to."""
        ...


TAMPERS: Registry[Tamper] = Registry("tamper", "veilmesh.attacks.tampers")


def peers_only(server: bool) -> None:
    """Raises BadInput for a server: what most tampers lie about, an update of one's own, it does not have."""
    if server:
        raise BadInput(
            "The server trains on nothing and says no update, so this tamper has nothing to change there; name peers "
            "in adversary.peers, or take crafted-model."
        )
