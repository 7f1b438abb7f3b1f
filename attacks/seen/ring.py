"""What members of a ring see of each other: parts in clear, and what is left of sums when their neighbours' are known.

In a ring (`swarm/strategies/ring_all_reduce.py`) every part of the models after training, x + u, walks once round, and
says at every step of how many models it is the mean. So a sum over k models, less the same part's sum over k - 1, is
one model's part. What a coalition has of these:

- the part that starts at the member just before one of it: k = 1, in clear;
- the part that ends at the member just after one of it: its average, which everybody is told, less what was passed on;
- with a neighbour on either side of a victim, what went in less what came out, of every part: the victim's whole model.

What is left is the victim's update where it is known from what training began: the common beginning, or the averages
of the round before, if all of them came. Coordinates that were not seen are not zero: `Chunk.said`. Sums over two or
more that are not in the coalition are left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.seen.chunks import Chunk
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.butterfly import Butterfly

__all__ = ["on_ring", "seen_on_ring"]

Sum = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Hop:
    """A part as it went from one member to the next: the sum over `count` models."""

    sender: PeerId
    to: PeerId
    count: int
    total: Sum


@dataclass(slots=True)
class _Round:
    """What went past the coalition in one round, by part."""

    hops: dict[int, list[_Hop]] = field(default_factory=dict)
    averages: dict[int, tuple[int, Vector]] = field(default_factory=dict)


def on_ring(view: View, across: bool = False) -> Iterator[Observed]:
    """Of a ring: the parts that can be told apart, as updates of which no other coordinates are known."""
    samples = view.public.batch * view.public.local_steps
    for one in seen_on_ring(view):
        known = float(one.known)
        yield Observed(one.victim, one.round, one.start, one.update, one.said, samples, one.exact, known)


def seen_on_ring(view: View) -> Iterator[Chunk]:
    """Every part of one model that the coalition has, by round and victim; parts of one vector are put together."""
    public = view.public
    cut = Butterfly(public.peers, public.initial.size, 0, 1)
    rounds = _rounds(view, cut)
    start, begun = public.initial, 0
    for t in sorted(rounds):
        found: dict[PeerId, dict[int, Sum]] = {}
        for part in cut.parts:
            for victim, values in _alone(rounds[t], part):
                if victim not in view.vantage.controls:
                    found.setdefault(victim, {}).setdefault(part, values)
        for victim in sorted(found):
            yield _chunk(public, cut, victim, t, start, found[victim], known=begun == t)
        if len(rounds[t].averages) == len(cut.parts):
            start, begun = _whole(cut, rounds[t]), t + 1


def _alone(one: _Round, part: int) -> Iterator[tuple[PeerId, Sum]]:
    """Members whose own part is known, and what it is (n,)."""
    hops = one.hops.get(part, [])
    into = {(hop.to, hop.count): hop.total for hop in hops}
    for hop in hops:
        if hop.count == 1:
            yield hop.sender, hop.total
        elif (hop.sender, hop.count - 1) in into:
            yield hop.sender, hop.total - into[hop.sender, hop.count - 1]
    if part in one.averages:
        count, mean = one.averages[part]
        last = {hop.to: hop.total for hop in hops if hop.count == count - 1}
        if len(last) == 1:  # of two, one was lost, and it is not known which
            [(victim, before)] = last.items()
            yield victim, count * mean.astype(np.float64) - before


def _rounds(view: View, cut: Butterfly) -> dict[int, _Round]:
    found: dict[int, _Round] = {}
    for record in view.records:
        if record.at not in view.vantage.controls or (message := _message(record.body, cut)) is None:
            continue
        try:
            mean = table.decode_lossless(message.blob, cut.length(message.part))
        except RemoteError:
            continue
        one = found.setdefault(message.round, _Round())
        if isinstance(message, messages.Averaged):
            one.averages.setdefault(message.part, (message.count, mean))
        else:
            hop = _Hop(record.sender, record.to, message.count, message.count * mean.astype(np.float64))
            one.hops.setdefault(message.part, []).append(hop)
    return found


def _message(body: bytes | None, cut: Butterfly) -> messages.Passed | messages.Averaged | None:
    try:
        message = None if body is None else messages.decode(body)
    except RemoteError:
        return None
    if not isinstance(message, messages.Passed | messages.Averaged) or message.part not in cut.parts:
        return None
    return message


def _whole(cut: Butterfly, one: _Round) -> Vector:
    """What everybody goes on from (d,)."""
    return np.concatenate([one.averages[part][1] for part in cut.parts])


def _chunk(
    public: Public, cut: Butterfly, victim: PeerId, round_: int, start: Vector, parts: dict[int, Sum], *, known: bool
) -> Chunk:
    update, said = np.zeros_like(public.initial), np.zeros(public.initial.size, bool)
    for part, values in parts.items():
        span = cut.span(part)
        update[span] = values - start[span]
        said[span] = True
    return Chunk(victim, round_, start, update, said, known, known)
