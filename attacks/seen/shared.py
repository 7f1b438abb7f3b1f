"""What is left to see where updates are dealt in shares (`swarm/strategies/brea.py`).

A coalition of `colluding` peers or fewer has, of every update, shares that say nothing, and once a round the sum of the
chosen ones, which everybody is told. (The distances between updates, which everybody is told too, are not used here.)
One more peer, and it puts every update together from the shares that its members were dealt.

What the coalition's own peers dealt is taken off the sums, where its records say what that was.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.field import Elements, centred, matmul, unpack
from veilmesh.crypto.polynomial_shares import lagrange
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.brea import Brea
from veilmesh.swarm.strategies.brea_steps import CHECKS, Deal, Step, Sum, read
from veilmesh.swarm.strategies.brea_terms import Terms, dequantised

__all__ = ["SharedUpdate", "in_shares", "shared_updates"]


@dataclass(frozen=True, slots=True, eq=False)
class SharedUpdate:
    """The mean (d,) of the updates of `members`, in levels; of a single one where the coalition is large enough."""

    round: int
    members: tuple[PeerId, ...]
    start: Vector
    mean: Vector


@dataclass(slots=True)
class _Heard:
    """Of one round: shares of updates by dealer and holder, and of the sum by who was chosen and who says it."""

    deals: dict[PeerId, dict[PeerId, Elements]] = field(default_factory=dict)
    sums: dict[tuple[int, ...], dict[PeerId, Elements]] = field(default_factory=dict)


def in_shares(view: View, across: bool = False) -> Iterator[Observed]:
    """The sums of the chosen, and single updates where the coalition is large enough to put them together."""
    samples = view.public.batch * view.public.local_steps
    for one in shared_updates(view):
        members = tuple(p for p in one.members if p not in view.vantage.controls) or one.members
        alone = len(one.members) == 1
        among = () if alone else members
        count = samples * len(one.members)
        yield Observed(members[0], one.round, one.start, one.mean, None, count, alone, 1.0, among)


def shared_updates(view: View) -> Iterator[SharedUpdate]:
    """Every update and every sum that the coalition can put together, by round. Only of whole models (`keep` = 1)."""
    public, strategy = view.public, Brea(**view.public.options)
    if strategy.keep != 1.0:
        return
    agreed = strategy.terms(len(public.peers)).measured(public.initial.size, strategy.levels)
    reach = strategy.reach * public.local_steps * public.learning_rate
    x = public.initial
    for round_, heard in sorted(_heard(view, agreed).items()):
        opened = {dealer: _opened(public, shares, agreed) for dealer, shares in sorted(heard.deals.items())}
        for dealer, values in opened.items():
            if values is not None:
                yield SharedUpdate(round_, (dealer,), x, dequantised(values, 1, reach, agreed.levels))
        if (found := _sum(public, heard, agreed)) is None:
            continue  # a round of which nothing was taken
        members, total = found
        own = {p: values for p, values in opened.items() if values is not None and p in view.vantage.controls}
        others = tuple(p for p in members if p not in own)
        rest = total - sum((own[p] for p in members if p in own), np.zeros_like(total))
        if others:
            yield SharedUpdate(round_, others, x, dequantised(rest, len(others), reach, agreed.levels))
        x = x + dequantised(total, len(members), reach, agreed.levels)


def _heard(view: View, agreed: Terms) -> dict[int, _Heard]:
    found: dict[int, _Heard] = {}
    for record in view.records:
        if record.body is None or record.at not in view.vantage.controls:
            continue
        try:
            message = messages.decode(record.body)
            if isinstance(message, messages.Step):
                _take(found.setdefault(message.round, _Heard()), record.sender, record.to, message, agreed)
        except RemoteError:
            continue
    return found


def _take(heard: _Heard, sender: PeerId, to: PeerId, message: messages.Step, agreed: Terms) -> None:
    if message.step not in (Step.DEAL, Step.SUM):
        return
    body = read(Step(message.step), message.body, agreed)
    if isinstance(body, Deal):
        share = unpack(body.share, agreed.length + CHECKS)[: agreed.length]
        heard.deals.setdefault(sender, {}).setdefault(to, share)
    elif isinstance(body, Sum) and body.share:
        heard.sums.setdefault(body.chosen, {}).setdefault(sender, unpack(body.share, agreed.length))


def _sum(public: Public, heard: _Heard, agreed: Terms) -> tuple[tuple[PeerId, ...], NDArray[np.int64]] | None:
    """What most were told: the chosen, and their sum."""
    most = Counter({chosen: len(shares) for chosen, shares in heard.sums.items()}).most_common(1)
    if not most or (total := _opened(public, heard.sums[most[0][0]], agreed)) is None:
        return None
    within = (np.abs(total) <= len(most[0][0]) * agreed.levels).all()
    return (tuple(public.peers[i] for i in most[0][0]), total) if within else None


def _opened(public: Public, shares: Mapping[PeerId, Elements], agreed: Terms) -> NDArray[np.int64] | None:
    """What is behind shares of degree T; None of too few of them. Nobody is suspected of lying."""
    holders = sorted(shares, key=public.peers.index)[: agreed.colluding + 1]
    if len(holders) <= agreed.colluding:
        return None
    weights = np.array([lagrange([public.peers.index(holder) + 1 for holder in holders])], np.uint64)
    return centred(matmul(weights, np.stack([shares[holder] for holder in holders]))[0])
