"""Who said that: matching updates without a name to peers whose earlier updates are known.

Peers train on their own data, so what a peer says in different rounds has a direction in common, the more the more its
data differs from the others'. Every message of this project is signed, so nothing said under one key is anonymous; the
question is there where a key is changed or shared: a peer that leaves and comes back as a newcomer, peers that a proxy
hides from each other, and Sybils with one set of data. Cosine with earlier updates, as the linkability attack in the
evaluation of ZIP-DL does; measured as top-1 accuracy, against 1/n.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["link", "link_once", "similarities"]

Floats = NDArray[np.float64]


def similarities(anonymous: NDArray[np.floating], known: Mapping[PeerId, NDArray[np.floating]]) -> Floats:
    """The cosine (m, n) of each anonymous update (m, d) with the mean of each peer's (k, d), in the order of `known`.

    What all peers have in common, the mean over them, says nothing of a single one and is taken away first. Raises
    BadInput where there is nobody to choose from, or shapes differ.
    """
    if not known or anonymous.ndim != 2 or any(one.shape[1:] != anonymous.shape[1:] for one in known.values()):
        raise BadInput("To link updates, give them as (m, d), and of at least one peer earlier ones as (k, d).")
    profiles = np.stack([one.astype(np.float64).mean(axis=0) for one in known.values()])
    unknown = anonymous.astype(np.float64)
    return _unit(unknown - _common(unknown, profiles)) @ _unit(profiles - profiles.mean(axis=0)).T


def link(anonymous: NDArray[np.floating], known: Mapping[PeerId, NDArray[np.floating]]) -> list[PeerId]:
    """For each anonymous update (m, d) the peer whose earlier ones (k, d) it is most like."""
    peers = list(known)
    return [peers[i] for i in similarities(anonymous, known).argmax(axis=1)]


def link_once(anonymous: NDArray[np.floating], known: Mapping[PeerId, NDArray[np.floating]]) -> list[PeerId]:
    """As `link`, where no two of the updates are of one peer: the assignment with the largest sum of cosines.

    Greedy, the most certain first, which is what it comes to where peers can be told apart at all. Raises BadInput
    where there are more updates than peers.
    """
    peers, alike = list(known), similarities(anonymous, known)
    if len(anonymous) > len(peers):
        raise BadInput(f"{len(anonymous)} updates cannot be of {len(peers)} different peers.")
    chosen: dict[int, PeerId] = {}
    for place in np.argsort(-alike, axis=None, kind="stable"):
        row, column = divmod(int(place), len(peers))
        if row not in chosen and peers[column] not in chosen.values():
            chosen[row] = peers[column]
    return [chosen[row] for row in range(len(anonymous))]


def _common(unknown: Floats, profiles: Floats) -> Floats:
    """What to take away of the anonymous updates: their own mean where there are many; else the known peers'."""
    mean: Floats = unknown.mean(axis=0) if len(unknown) >= len(profiles) > 1 else profiles.mean(axis=0)
    return mean


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit
