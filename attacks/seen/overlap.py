"""Solving sums for their members: what many sums over overlapping groups say together that none says alone.

A sum over a group hides its members from whoever sees that sum. Whoever sees several, over groups that differ, has a
system of linear equations: S_r = sum over i in G_r of u_i. Where a member says nearly the same thing again and again
(small steps on the same data), its u_i can be solved for as soon as the equations single it out; two groups that differ
by one member give that member away by subtraction (So et al., arXiv 2106.03328, "Securing secure aggregation",
section 3). Where members only ever come and go together, in cohorts, no number of sums singles one out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId

__all__ = ["Solved", "singled_out", "solve"]

_TOLERANCE = 1e-9  # below which a number that should be 0 or 1 is taken for it


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """What the equations give for `peer`: `update` (d,), the mean over rounds of what it said, as far as that is one
    thing; `noise`: how much the rounds' differences are amplified in it, as the length of its row of the pseudo-inverse
    (1: as if it had been seen alone once)."""

    peer: PeerId
    update: Vector
    noise: float


def singled_out(groups: Sequence[Collection[PeerId]]) -> frozenset[PeerId]:
    """Those for whom the sums over these groups can be solved: e_i lies in the row space of the incidence matrix."""
    peers = sorted({peer for group in groups for peer in group})
    if not peers:
        return frozenset()
    matrix = _incidence(peers, groups)
    leverage = np.diag(np.linalg.pinv(matrix) @ matrix)  # the projection on the row space; 1 where e_i is inside
    return frozenset(p for p, share in zip(peers, leverage, strict=True) if share > 1 - _TOLERANCE)


def solve(groups: Sequence[Collection[PeerId]], sums: Sequence[Vector]) -> list[Solved]:
    """Everybody who is singled out, by peer id; least squares over all equations.

    `groups`: the members behind each of `sums` (d,). Peers that the adversary controls are to be taken out of both
    first: what it knows it need not solve for.
    """
    alone = singled_out(groups)
    if not alone:
        return []
    peers = sorted({peer for group in groups for peer in group})
    inverse = np.linalg.pinv(_incidence(peers, groups))
    total = np.stack([np.asarray(s, np.float64) for s in sums])
    return [
        Solved(peer, (inverse[i] @ total).astype(np.float32), float(np.linalg.norm(inverse[i])))
        for i, peer in enumerate(peers)
        if peer in alone
    ]


def _incidence(peers: Sequence[PeerId], groups: Sequence[Collection[PeerId]]) -> NDArray[np.float64]:
    return np.array([[float(peer in group) for peer in peers] for group in groups])
