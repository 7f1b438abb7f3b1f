"""Push-sum (`swarm/strategies/push_sum.py`), as the receiver of a share sees it.

Peer v has mass y_v (from the common beginning on) and weight w_v, trains at y_v / w_v, and gives each of r receivers
the same share of both, (s, g) = (y_v + u_v, w_v) g / w_v. So a share says the model after training, s / g; and since
the rule by which g follows from w_v is public (an (r + 1)th, but never so much that less than `FLOOR` is kept), it says
w_v, and with it all of the mass, y_v + u_v = s w_v / g.

Everybody begins with no mass and weight 1: in round 0, s w_v / g is the update. Later the mass before training is what
v kept, y_v + u_v - r s, and what it was told since. Who told it something follows from the public schedule, and what is
on record where the coalition was told the same, or said it. And the weights say how much is missing: they add up, so
what w_v has beyond the terms that are known came with mass that is not. That is taken to have come from the mean of
what everybody on record said last; `coverage` is the other part. On the exponential graph everybody speaks to one peer
a round, so nobody hears a victim twice in a row: one member alone knows no start but the first, and what it takes for a
later update is mostly what others did.

What a codec left out of a share stayed with its sender, in mass and weight: `said`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.seen.schedules import Schedule, said_by_round
from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import RANGE
from veilmesh.swarm.strategies.push_sum import FLOOR, PushSum

__all__ = ["shares_of_mass"]

Floats = NDArray[np.float64]

_ROUNDING = 1e-5  # of a weight: what is missing in rounding alone


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """One share: `values` s (d,), `given` g, `whole` w, each (d,) or (1,), with g = 0 where nothing was said."""

    samples: int
    values: Floats
    given: Floats
    whole: Floats
    receivers: int
    said: Mask | None
    lossless: bool

    @property
    def model(self) -> Floats:
        """The sender's model after training (d,), as a deviation; 0 where nothing was said of it."""
        return np.divide(self.values, self.given, out=np.zeros_like(self.values), where=self.given > 0)

    @property
    def kept(self) -> tuple[Floats, Floats]:
        """What the sender keeps: mass (d,) and weight, as far as they were said."""
        weight = np.where(self.given > 0, self.whole - self.receivers * self.given, 0.0)
        return self.model * weight, weight


def shares_of_mass(view: View, across: bool = False) -> Iterator[Observed]:
    """Every update behind a share that was told to the coalition."""
    public, schedule = view.public, _schedule(view.public)
    before: Mapping[PeerId, _Told] = {}
    latest: dict[PeerId, _Told] = {}
    last = -1
    for round_, said in said_by_round(view, messages.Share).items():
        if round_ and not schedule.known:
            return
        heard, centre = _read(public, schedule, round_, said), _centre(public, latest)
        for victim, one in heard.items():
            known = before if last == round_ - 1 else {}
            yield _observed(public, schedule, round_, victim, one, known, centre)
        latest |= heard
        before, last = heard, round_


def _schedule(public: Public) -> Schedule:
    graph, out = public.options.get("graph", PushSum().graph), public.options.get("out", PushSum().out)
    return Schedule(public, int(out) if graph == "random" else 0)


def _read(
    public: Public, schedule: Schedule, round_: int, said: Mapping[PeerId, messages.Share]
) -> dict[PeerId, _Told]:
    found: dict[PeerId, _Told] = {}
    for sender, message in said.items():
        receivers = max(1, len(schedule.receivers(round_, sender)))
        try:
            decoded = table.decode(message.blob, public.initial.size)
            given = _weights(message.weights, public.initial.size, decoded.said)
        except RemoteError:
            continue
        lossless = table.WIRE_IDS[message.blob[0]].lossless
        if not (given > 0).any() or (np.abs(decoded.values) > RANGE * given.clip(0)).any():
            continue  # nothing was given, or what its receiver refuses too
        whole = np.where(given >= FLOOR, given * (1 + receivers), given * receivers + FLOOR)
        found[sender] = _Told(
            message.samples, decoded.values.astype(np.float64), given, whole, receivers, decoded.said, lossless
        )
    return found


def _weights(blob: bytes, dimension: int, said: Mask | None) -> Floats:
    """A weight for all coordinates (1,), or one for each (d,). Raises RemoteError."""
    if said is None:
        try:
            return table.decode_lossless(blob, 1).astype(np.float64)
        except RemoteError:
            return table.decode_lossless(blob, dimension).astype(np.float64)
    spread = np.zeros(dimension)
    spread[said] = table.decode_lossless(blob, int(said.sum()))
    return spread


def _observed(
    public: Public,
    schedule: Schedule,
    round_: int,
    victim: PeerId,
    one: _Told,
    heard: Mapping[PeerId, _Told],
    centre: Floats,
) -> Observed:
    mass, weight, lossless = _known(public, schedule, round_, victim, heard)
    told = one.given > 0
    whole = np.where(told, one.whole, np.maximum(weight, 1.0))
    missing = np.where(np.abs(whole - weight) > _ROUNDING * whole, whole - weight, 0.0)
    begun = mass + np.maximum(missing, 0) * centre
    update = np.where(told, one.model * whole - begun, 0.0).astype(np.float32)
    start = (public.initial + begun / whole).astype(np.float32)
    coverage = max(0.0, 1.0 - float((np.abs(missing) / whole)[told].mean()))
    exact = round_ == 0 or (coverage == 1 and lossless and one.lossless)
    return Observed(victim, round_, start, update, one.said, one.samples, exact, coverage)


def _known(
    public: Public, schedule: Schedule, round_: int, victim: PeerId, heard: Mapping[PeerId, _Told]
) -> tuple[Floats, Floats, bool]:
    """The mass (d,) and weight with which `victim` began a round, as far as they are known; and whether nothing of
    that was lost in a codec."""
    if round_ == 0:
        return np.zeros(public.initial.size), np.ones(1), True
    mass, weight = heard[victim].kept if victim in heard else (np.zeros(public.initial.size), np.zeros(1))
    terms = [heard[peer] for peer in schedule.senders(round_ - 1, victim) if peer in heard]
    for term in terms:
        mass, weight = mass + term.values, weight + term.given
    lossless = all(heard[p].lossless for p in (victim, *schedule.senders(round_ - 1, victim)) if p in heard)
    return mass, weight, lossless


def _centre(public: Public, latest: Mapping[PeerId, _Told]) -> Floats:
    """The mean (d,) of the latest models, as a deviation, each coordinate of those that said it; of none, none."""
    total, count = np.zeros(public.initial.size), np.zeros(1)
    for peer in sorted(latest):
        total, count = total + latest[peer].model, count + (latest[peer].given > 0)
    return np.asarray(total / np.maximum(count, 1), np.float64)
