"""What a BREA round is agreed to be: how many lie, how many collude, how many are chosen, and how fine values are.

So, Guler and Avestimehr 2021, "Byzantine-resilient secure federated learning": of N members A lie, D fall silent and T
collude, and m updates are added up:  N >= 2A + 1 + max(m + 2, D + 2T).  The second part is decoding (distances are of
degree 2T, and 2A is the price of A wrong values), and is always asked for. The first is Krum's proof, and allows for
few: `proven` asks for it; otherwise up to N - A are chosen, as multi-Krum does everywhere in this project. Two more
conditions come from there being no server: two majorities must share an honest member, and be there without the liars
and the silent (N >= 3A + 2D + 1); and a sum of m < T + 2 updates would be no secret to T members whose own are in it.
"""

from dataclasses import dataclass, replace
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.field import PRIME

__all__ = ["LARGEST", "Terms", "dequantised", "finest", "quantised", "terms"]

LARGEST = 64
"""Members, at most: everybody is sent a vector by everybody, twice a round."""


@dataclass(frozen=True)
class Terms:
    """N = `members`, T = `colluding`, A = `liars`, m = `chosen`; `length` coordinates, within [-levels, levels]."""

    members: int
    colluding: int
    liars: int
    chosen: int
    proven: bool = False
    length: int = 0
    levels: int = 0

    @property
    def quorum(self) -> int:
        """So many that any two sets of them share more members than lie."""
        return (self.members + self.liars) // 2 + 1

    def chosen_of(self, dealers: int, liars: int) -> int:
        """How many of so many updates are to be chosen, with `liars` among them; fewer than T + 2: none may be."""
        proven = dealers - 2 * liars - 3 if self.proven and liars else dealers - liars
        most = min(self.chosen, proven) if dealers >= 2 * liars + 3 or not liars else 0
        return most if most >= self.colluding + 2 else 0

    def measured(self, length: int, levels: int | None) -> "Terms":
        """The same for so many coordinates; None: as fine as the field has room for. Raises BadInput where a squared
        distance could reach p, and would be taken for a smaller one."""
        room = finest(length)
        if room < 1 or (levels or 0) > room:
            raise BadInput(
                f"Distances between {length} coordinates of {levels or 1} levels can exceed the field of brea; "
                f"{f'set levels to {room} at most' if room else 'share fewer coordinates (keep)'}."
            )
        return replace(self, length=length, levels=levels or room)


def finest(length: int) -> int:
    """The most levels L with which squared distances, at most length x (2 L)^2, stay below p."""
    return isqrt((PRIME - 1) // (4 * length))


def terms(members: int, colluding: int | None, liars: int | None, chosen: int | None, proven: bool) -> Terms:
    """Terms that can be kept; where `liars` and then `colluding` are None, as many as there may be if one member is
    gone. Raises BadInput."""
    if members > LARGEST:
        raise BadInput(f"brea among {members} peers would cost each {2 * members} vectors a round; take {LARGEST}.")
    if liars is None:
        candidates = range((members - 1) // 3, 0, -1)
        liars = next((f for f in candidates if not _complaint(members, colluding or 1, f, chosen, proven, 1)), 0)
    if colluding is None:
        candidates = range(members // 2, 1, -1)
        colluding = next((t for t in candidates if not _complaint(members, t, liars, chosen, proven, 1)), 1)
    if complaint := _complaint(members, colluding, liars, chosen, proven):
        raise BadInput(f"brea with {members} peers, {liars} liars and {colluding} colluding: {complaint}.")
    return Terms(members, colluding, liars, _most(members, liars, chosen, proven), proven)


def _most(members: int, liars: int, chosen: int | None, proven: bool) -> int:
    most = members - 2 * liars - 3 if proven and liars else members - liars
    return min(chosen or most, most)


def _complaint(
    members: int, colluding: int, liars: int, chosen: int | None, proven: bool, silent: int = 0
) -> str | None:
    """What of the conditions does not hold, if so many fall silent."""
    if members < (wanted := 2 * liars + 2 * colluding + 1 + silent):
        return f"distances can be decoded with {wanted} peers (2 f + 2 colluding + 1); add peers, or lower one of them"
    if members < (wanted := max(3 * liars + 2 * silent + 1, 2 * liars + 3 + silent if liars else 0)):
        return f"the liars can be outvoted among {wanted} peers (3 f + 1 and 2 f + 3); lower f, or add peers"
    members -= silent
    most = _most(members, liars, None, proven)
    if (chosen or most) > most:
        return f"at most {most} updates can be chosen; lower chosen{', or set proven to false' if proven else ''}"
    if (chosen or most) < colluding + 2:
        return (
            f"a sum of {chosen or most} updates hides none from {colluding} colluding; choose {colluding + 2} or more"
            f"{', or set proven to false' if proven else ''}"
        )
    return None


def quantised(x: Vector, reach: float, levels: int) -> NDArray[np.int64]:
    """`x` as whole numbers in [-levels, levels], `levels` meaning `reach`; what is further out is cut."""
    scaled = np.clip(x.astype(np.float64) / reach, -1, 1) * levels
    return np.rint(scaled).astype(np.int64)


def dequantised(x: NDArray[np.int64], count: int, reach: float, levels: int) -> Vector:
    """The mean of `count` vectors of which `x` is the sum."""
    return (x * (reach / levels / count)).astype(np.float32)
