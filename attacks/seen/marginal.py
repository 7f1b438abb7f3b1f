"""A weighted mean with some of its terms known: what is left of it without them, and what would complete it.

Both are the gossip average theta_v = sum_j W_vj theta_j, read by somebody who knows some of the theta_j: functional
marginalisation, and the equation behind state override (Pasquini, Raynal and Troncoso 2023, "On the (in)security of
peer-to-peer decentralized machine learning"). Pure arithmetic, in float64.
"""

from collections.abc import Collection, Mapping

import numpy as np

from veilmesh.core import LocalError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["completing", "marginalised"]

_NOTHING = 1e-6
"""A share of the mean below which nothing can be said of what is left: float32 has rounded it away."""


def marginalised(mixed: Vector, known: Mapping[PeerId, Vector], row: Mapping[PeerId, float]) -> tuple[Vector, float]:
    """What is left of a mixed model (d,) without the `known` terms (d,), rescaled; and their share of the row.

    theta_marg = (theta_v - sum_known W_vj theta_j) / (1 - sum_known W_vj). `row` is v's of W, own weight included; who
    is known and has no weight in it is left out. With nobody known this is `mixed`. Raises LocalError where the known
    ones are all there is.
    """
    rest, taken = mixed.astype(np.float64), 0.0
    for peer in sorted(known.keys() & row.keys()):
        rest = rest - row[peer] * known[peer].astype(np.float64)
        taken += row[peer]
    if 1 - taken < _NOTHING:
        raise LocalError("a mean has nothing left without all of its terms")
    return (rest / (1 - taken)).astype(np.float32), taken


def completing(
    wanted: Vector, own: Vector, others: Mapping[PeerId, Vector], row: Mapping[PeerId, float], ours: Collection[PeerId]
) -> tuple[Vector, float]:
    """What all of `ours` have to say (d,) for v's mean to become `wanted` (d,); and the share that had to be guessed.

    Solves own + sum_j W_vj (theta_j - own) = wanted for the one theta that all of `ours` say, where `own` (d,) is what
    v said itself, `others` what its neighbours said, and `row` v's of W without its own weight. A neighbour that was
    not heard is taken to have said the mean of those who were. Raises LocalError if none of `ours` has a weight.
    """
    weight = sum(w for peer, w in row.items() if peer in ours)
    if weight <= 0:
        raise LocalError("who has no weight in a mean cannot complete it")
    base = own.astype(np.float64)
    heard = {p: others[p] - base for p in sorted(others.keys() & row.keys()) if p not in ours}
    pull = np.zeros_like(base)
    for peer, offset in heard.items():
        pull += row[peer] * offset
    guessed = sum(w for peer, w in row.items() if peer not in heard and peer not in ours)
    if guessed:
        pull += guessed * sum(heard.values(), np.zeros_like(base)) / (len(heard) + 1)
    return (base + (wanted - base - pull) / weight).astype(np.float32), guessed
