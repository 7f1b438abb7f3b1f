"""Merging by an elected leader (`swarm/strategies/leader.py`), as whoever leads sees it, and as the others do.

The leader of a round is told every update, as a star's hub is; where training began it knows as everybody does, for
everybody is told every merged model x_t. Whoever does not lead still sees what two successive models differ by,

    x_{t+1} - x_t = sum_i n_i u_i / sum_i n_i,

the mean of all updates. Its own it can take away, for it said it itself: what remains is the mean over the others, as
if they were one peer with a larger batch; `among` says that nobody can tell whose a picture is. All but one peer
together are left with that one's update. Leaders change with every term, so in time everybody is a hub.

Everybody is taken to stand behind an update with as many examples, as plain training has it; behind another aggregator
than the mean, or where some were late, a sum is not read exactly.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from veilmesh.attacks.seen.heard import Heard, Said, message_in
from veilmesh.attacks.seen.update import Observed, mean_of
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["around_leaders"]


@dataclass(slots=True)
class _Merged:
    """The models that rounds begin with, as far as they are on record, and how many updates made them."""

    initial: Vector
    made: set[int] = field(default_factory=set)  # rounds that begin with a model which the coalition itself merged
    _said: dict[int, messages.Merged] = field(default_factory=dict)

    def add(self, message: messages.Merged) -> None:
        """Of two for one round that of the later ballot counts; one that was only handed on says nothing new."""
        known = self._said.get(message.round)
        if known is None or (message.group > 0, message.ballot) > (known.group > 0, known.ballot):
            self._said[message.round] = message

    def group(self, round_: int) -> int:
        """How many updates of the round before are in the model that `round_` begins with; 0: not known."""
        return self._said[round_].group if round_ in self._said else 0

    def at(self, round_: int) -> Vector | None:
        """(d,), or None where it is not known."""
        if round_ == 0:
            return self.initial
        try:
            return table.decode_lossless(self._said[round_].blob, self.initial.size)
        except (KeyError, RemoteError):
            return None

    def rounds(self) -> list[int]:
        """The rounds of which something is known."""
        return sorted(self._said)


def around_leaders(view: View, across: bool = False) -> Iterator[Observed]:
    """Every update that was said to one of the coalition while it led; of other rounds the mean over the others."""
    public, heard, merged = view.public, Heard.of(view), _merged(view)
    for round_ in sorted({*heard.rounds(), *(r - 1 for r in merged.rounds() if r)}):
        said = heard.said(round_)
        start = merged.at(round_)
        for victim, one in said.items():
            exact = start is not None and (round_ == 0 or one.lossless)
            begun = public.initial if start is None else start
            yield Observed(victim, round_, begun, one.values, one.said, one.samples, exact, float(start is not None))
        if start is None or said.keys() - view.vantage.controls or round_ + 1 in merged.made:
            continue
        if (after := merged.at(round_ + 1)) is not None:
            yield from _rest(public, view, round_, start, after - start, merged.group(round_ + 1), said)


def _merged(view: View) -> _Merged:
    merged = _Merged(view.public.initial)
    for record in view.records:
        message = message_in(record.body)
        if isinstance(message, messages.Merged):
            merged.add(message)
            merged.made |= {message.round} if record.sender in view.vantage.controls else set()
    return merged


def _rest(
    public: Public, view: View, round_: int, start: Vector, mean: Vector, group: int, own: Mapping[PeerId, Said]
) -> Iterator[Observed]:
    """The mean (d,) of `group` updates without the coalition's `own`."""
    others = tuple(peer for peer in public.peers if peer not in view.vantage.controls)
    count = group - len(own)
    if not others or count < 1:
        return
    total = group * mean.astype(np.float64) - sum((one.values for one in own.values()), np.zeros(mean.size))
    everybody = group == len(public.peers) and count == len(others)
    exact = everybody and public.aggregator == "mean" and (round_ == 0 or public.codec.get("name") == "dense")
    yield mean_of(others, public, round_, start, (total / count).astype(np.float32), exact=exact)
