"""Epidemic learning (`swarm/strategies/epidemic.py`), as one of the few that a peer speaks to in a round sees it.

Peer v says its model after training to s peers that are drawn anew, x_v^{t+1/2} = x_v^t + u_v^t, and goes on from the
plain average of that and of what it was told,

    x_v^{t+1} = (x_v^{t+1/2} + sum over those who spoke to v of x_j^{t+1/2}) / (1 + their number).

Everybody begins alike, so what v says in round 0 is its update. Later the start is known as far as the terms of that
average are: who spoke to v follows from the public seed, and what they said is on record where the same was said to one
of the coalition, or by it. The other terms are taken to stand at the mean of what everybody on record said last;
`coverage` is the share of terms that need not be. With s of n - 1 drawn, one peer hears v in s of n - 1 rounds, and
each of the terms again with that chance: in a large mesh, a single one hardly ever knows a start but the first.

What a codec left out of a model was not seen, and is not zero: `said`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from veilmesh.attacks.seen.schedules import Schedule, said_by_round
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.epidemic import Epidemic

__all__ = ["models_drawn_anew"]


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """One model as it was said: its deviation from the common beginning (d,), and which coordinates of it."""

    samples: int
    values: Vector
    said: Mask | None
    lossless: bool

    @property
    def counts(self) -> Vector:
        """(d,) or (1,): 1 where it was said."""
        return np.ones(1, np.float32) if self.said is None else self.said.astype(np.float32)


def models_drawn_anew(view: View, across: bool = False) -> Iterator[Observed]:
    """Every model that was said to the coalition, less where training began."""
    public = view.public
    schedule = Schedule(public, int(public.options.get("s", Epidemic().s)))
    before: Mapping[PeerId, _Model] = {}
    latest: dict[PeerId, _Model] = {}
    last = -1
    for round_, said in said_by_round(view, messages.Update).items():
        if round_ and not schedule.known:
            return
        heard, centre = _read(public, said), _centre(public, latest)
        for victim, one in heard.items():
            known = before if last == round_ - 1 else {}
            begun, coverage, lossless = _begun(public, schedule, round_, victim, known, centre)
            update = one.values - begun if one.said is None else np.where(one.said, one.values - begun, np.float32(0))
            exact = round_ == 0 or (coverage == 1 and lossless and one.lossless)
            yield Observed(victim, round_, public.initial + begun, update, one.said, one.samples, exact, coverage)
        latest |= heard
        before, last = heard, round_


def _read(public: Public, said: Mapping[PeerId, messages.Update]) -> dict[PeerId, _Model]:
    found: dict[PeerId, _Model] = {}
    for sender, message in said.items():
        try:
            decoded = table.decode(message.blob, public.initial.size)
        except RemoteError:
            continue
        lossless = table.WIRE_IDS[message.blob[0]].lossless
        found[sender] = _Model(message.samples, decoded.values, decoded.said, lossless)
    return found


def _begun(
    public: Public, schedule: Schedule, round_: int, victim: PeerId, heard: Mapping[PeerId, _Model], centre: Vector
) -> tuple[Vector, float, bool]:
    """Where `victim` began a round, as a deviation (d,), of what was `heard` in the round before, and `centre` for
    the rest; the share of its terms that were, and whether nothing was lost in these. Same order of sums as its own."""
    if round_ == 0:
        return np.zeros_like(public.initial), 1.0, True
    terms = (victim, *schedule.senders(round_ - 1, victim))
    known = [heard[peer] for peer in terms if peer in heard]
    total, count = np.zeros_like(public.initial), np.zeros(1, np.float32)
    for one in known:
        total, count = total + one.values, count + one.counts
    if missing := len(terms) - len(known):
        total, count = total + np.float32(missing) * centre, count + np.float32(missing)
    lossless = all(one.lossless for one in known)
    begun: Vector = (total / np.maximum(count, np.float32(1))).astype(np.float32)
    return begun, len(known) / len(terms), lossless


def _centre(public: Public, latest: Mapping[PeerId, _Model]) -> Vector:
    """The mean deviation (d,) of the latest models, each coordinate of those that said it; of none, none."""
    total, count = np.zeros(public.initial.size), np.zeros(1)
    for peer in sorted(latest):
        total, count = total + latest[peer].values, count + latest[peer].counts
    return (total / np.maximum(count, 1)).astype(np.float32)
