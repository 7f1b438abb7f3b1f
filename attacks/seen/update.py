"""One local update of somebody else, as far as an adversary can tell: what every reading of `seen/` gives."""

from dataclasses import dataclass

from veilmesh.attacks.view import Public
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId

__all__ = ["Observed", "mean_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One local update of `victim`, as far as the adversary can tell.

    `start` (d,): the parameters training began from. `update` (d,): estimate of u_v, after guards and codec. `said`
    (d,): which coordinates the message told; None means all. `samples`: examples behind it, by the victim's own word.
    `exact`: nothing but the victim's own guards and codec stands between the truth and this (supposing that nobody was
    late in the round before). `coverage`: share of what determines `start` that was heard, 0 to 1. `among`: where only
    a sum was seen, the peers in it, the victim first; `update` is then their mean, and `samples` is of all of them.
    """

    victim: PeerId
    round: int
    start: Vector
    update: Vector
    said: Mask | None
    samples: int
    exact: bool
    coverage: float
    among: tuple[PeerId, ...] = ()


def mean_of(
    members: tuple[PeerId, ...], public: Public, round_: int, start: Vector, mean: Vector, *, exact: bool
) -> Observed:
    """The mean (d,) of what `members` said, whom nobody can tell apart, as if they were one peer."""
    count = public.batch * public.local_steps * len(members)
    among = members if len(members) > 1 else ()
    return Observed(members[0], round_, start, mean, None, count, exact, 1.0, among)
