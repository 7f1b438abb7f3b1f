"""What accuracy costs: its curves against time and against bytes, and when each arm of a study had which level.

As in `sim.curves`, whose levels these are: a run is as accurate as the median of its models' latest measurements, its
seconds count from the first training that was done, and its bytes are what a peer had sent, the mean over the peers.
Runs that differ in nothing but their seed are one arm: a curve is the mean over them, its band their range.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import log10
from statistics import fmean, median

import numpy as np

from veilmesh.sim.curves import LEVELS, Counted, who_counts
from veilmesh.sim.report.curves import MOST_POINTS, Point, Series
from veilmesh.sim.report.model import Metric, Run

__all__ = ["Arm", "Cost", "Spent", "arms", "by_bytes", "by_time", "costs", "spending"]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run had spent by the moment at which it was so accurate: seconds, and bytes sent by a peer."""

    seconds: float
    bytes_per_peer: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that differ in their seed only, each as what it had spent at every moment somebody measured."""

    label: str
    runs: tuple[tuple[Spent, ...], ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm took to a level, means over its runs; None where one of them never had it. `fewer`: how many times
    as many bytes the first arm took."""

    seconds: float | None = None
    bytes_per_peer: float | None = None
    fewer: float | None = None


def arms(runs: Iterable[Run]) -> list[Arm]:
    """The arms of some runs, in their order, of those runs that say when they measured."""
    found: dict[str, list[tuple[Spent, ...]]] = {}
    for run in runs:
        if spent := spending(run):
            found.setdefault(run.kind or run.arm, []).append(spent)
    return [Arm(label, tuple(of)) for label, of in found.items()]


def spending(run: Run) -> tuple[Spent, ...]:
    """A run's accuracy at every moment at which one of its models was measured."""
    lines = sorted((m for m in run.metrics if m.t is not None), key=_time)
    who = _counted(run)
    if not who.models or not who.senders:
        return ()
    latest, sent = dict.fromkeys(who.models, 0.0), dict.fromkeys(who.senders, 0.0)
    moments = []
    for at, at_once in groupby(lines, key=_time):
        measured = False
        for line in at_once:
            if line.peer in sent:
                sent[line.peer] = max(sent[line.peer], line.bytes_sent or 0.0)
            if line.peer in latest and line.accuracy is not None:
                latest[line.peer], measured = line.accuracy, True
        if measured:
            moments.append(Spent(at - _time(lines[0]), fmean(sent.values()), median(latest.values())))
    return tuple(moments)


def by_time(of: Sequence[Arm]) -> list[Series]:
    """Accuracy by seconds, one line an arm."""
    return [_mean_curve(arm, lambda spent: spent.seconds) for arm in of]


def by_bytes(of: Sequence[Arm]) -> list[Series]:
    """Accuracy by the decimal logarithm of the bytes that a peer had sent, one line an arm; none for one that counted
    no bytes."""
    counted = [arm for arm in of if all(spent.bytes_per_peer > 0 for run in arm.runs for spent in run)]
    return [_mean_curve(arm, lambda spent: log10(spent.bytes_per_peer)) for arm in counted]


def costs(of: Sequence[Arm]) -> list[tuple[Arm, dict[int, Cost]]]:
    """What each arm took to those `LEVELS`, in percent, that any of them reached."""
    table = [(arm, {level: _cost(arm, level / 100) for level in LEVELS}) for arm in of]
    reached = [level for level in LEVELS if any(row[level].seconds is not None for _, row in table)]
    first = table[0][1] if table else {}
    return [(arm, {level: _compared(row[level], first[level]) for level in reached}) for arm, row in table]


def _cost(arm: Arm, level: float) -> Cost:
    reached = [next((spent for spent in run if spent.accuracy >= level), None) for run in arm.runs]
    there = [spent for spent in reached if spent is not None]
    if len(there) < len(reached):
        return Cost()
    return Cost(fmean(s.seconds for s in there), fmean(s.bytes_per_peer for s in there))


def _compared(cost: Cost, first: Cost) -> Cost:
    fewer = first.bytes_per_peer / cost.bytes_per_peer if cost.bytes_per_peer and first.bytes_per_peer else None
    return Cost(cost.seconds, cost.bytes_per_peer, fewer)


def _mean_curve(arm: Arm, x: Callable[[Spent], float]) -> Series:
    """Where one run measured and another did not, it lies on the line between its neighbours; after its end, there."""
    xs = [np.array([x(spent) for spent in run]) for run in arm.runs]
    grid = np.unique(np.concatenate(xs))
    grid = grid[grid >= max(own[0] for own in xs)]
    every = -(-len(grid) // MOST_POINTS)
    grid = grid[::-1][::every][::-1]  # thinned from its end, which is what is read first
    values = np.array([np.interp(grid, own, [s.accuracy for s in run]) for own, run in zip(xs, arm.runs, strict=True)])
    rows = zip(grid, values.mean(0), values.min(0), values.max(0), strict=True)
    return Series(arm.label, tuple(Point(*map(float, row)) for row in rows), every)


def _counted(run: Run) -> Counted:
    """Who counts, as in the figures of the summary."""
    peers = [asdict(peer) for peer in run.summary.peers] if run.summary else []
    if not peers:
        everybody = frozenset(metric.peer for metric in run.metrics)
        return Counted(everybody, everybody)
    adversary = run.summary.scenario.adversary if run.summary else None
    return who_counts({"peers": peers, "scenario": {"adversary": asdict(adversary) if adversary else None}})


def _time(metric: Metric) -> float:
    return metric.t or 0.0
