"""What times still tell where everybody covers what it says: an observer who knows the guard, and looks where it gives.

Slots leave at a fixed pace, full or empty, so an observer has: how late each slot was (a machine that trains, adds up
or is asked for much is late), slots that were left out, who ends when, and who moves together with whom. From each
follows a suspicion, as a number that is higher where it is stronger; which of them tells anything is for whoever knows
the truth to say, and to hold against what the same suspicions are worth about another truth.

Without cover the same numbers are what frames tell by being there.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.traffic import learn, passing, spoken
from veilmesh.attacks.view import View
from veilmesh.peer.machine import PeerId

__all__ = ["Suspicions", "suspect"]

Link: TypeAlias = tuple[PeerId, PeerId]
Times: TypeAlias = NDArray[np.float64]

_AROUND: Final = 2  # slots before and after one that are looked at with it
_CLOCK: Final = 1e-6  # seconds: what is no later than that, is not late


@dataclass(frozen=True, slots=True)
class Suspicions:
    """All of an observer's, by what it looks at; one that sees no difference is the same number for all."""

    times: Mapping[Link, Times]  # (n,) when the frames of a link passed, in seconds
    full: Mapping[str, Mapping[Link, Times]]  # (n,) that one of these says something
    slow: Mapping[str, Mapping[PeerId, float]]  # that a peer holds the others up
    near: Mapping[str, Mapping[Link, float]]  # that two are neighbours; of all ordered pairs of those seen
    round: float | None  # seconds a round takes, as far as lateness comes and goes; None: it does not


def suspect(view: View) -> Suspicions:
    """What somebody suspects who saw the frames of `view` pass."""
    links = spoken(passing(view))
    times = {link: np.array([record.now for record in links[link]]) for link in sorted(links)}
    late = {link: lateness(at) for link, at in times.items()}
    peers = sorted({*view.public.peers, *(end for link in links for end in link)})
    lags, ends = learn(view).lags, defaultdict[PeerId, float](float)
    for (sender, _), at in times.items():
        ends[sender] = max(ends[sender], float(at[-1]))
    return Suspicions(
        times=times,
        full={"late": late, "late around": {link: _around(of) for link, of in late.items()}},
        slow={
            "late": {peer: _mean([late[link] for link in late if link[0] == peer]) for peer in peers},
            "left out": {peer: _mean([_left_out(times[link]) for link in late if link[0] == peer]) for peer in peers},
            "behind": {peer: round(lags.get(peer, 0.0), 6) for peer in peers},
            "ends": {peer: round(ends[peer], 6) for peer in peers},
        },
        near=_near(peers, times, late, ends),
        round=_period(times, late),
    )


def lateness(times: Times) -> Times:
    """(n,) seconds by which times (n,) are behind the earliest grid of their usual gap; of fewer than 3, zeros."""
    pace = _pace(times)
    if not pace:
        return np.zeros(len(times))
    off = times - times[0] - np.round((times - times[0]) / pace) * pace
    late = off - off.min()
    return np.where(late > _CLOCK, late, 0.0)


def _pace(times: Times) -> float:
    return float(np.median(np.diff(times))) if len(times) > 2 else 0.0


def _around(late: Times) -> Times:
    """(n,) the latest of a few slots around each."""
    wide = np.pad(late, _AROUND)
    latest: Times = np.stack([wide[i : i + len(late)] for i in range(2 * _AROUND + 1)]).max(axis=0)
    return latest


def _left_out(times: Times) -> Times:
    """(n - 1,) how many slots are missing between each two."""
    pace = _pace(times)
    return np.round(np.diff(times) / pace) - 1 if pace else np.zeros(1)


def _mean(parts: Sequence[Times]) -> float:
    return round(float(np.concatenate(parts).mean()), 6) if parts else 0.0


def _near(
    peers: Sequence[PeerId], times: Mapping[Link, Times], late: Mapping[Link, Times], ends: Mapping[PeerId, float]
) -> dict[str, dict[Link, float]]:
    pairs = [(a, b) for a in peers for b in peers if a != b]
    return {
        "frames": {pair: float(len(times.get(pair, ()))) for pair in pairs},
        "ends": {(a, b): -round(abs(ends[a] - ends[b]), 6) for a, b in pairs},
        "together": {pair: _together(late.get(pair), late.get((pair[1], pair[0]))) for pair in pairs},
    }


def _together(one: Times | None, other: Times | None) -> float:
    """How alike two links are late: the correlation, slot by slot from the first on; 0 where one never is."""
    if one is None or other is None or (n := min(len(one), len(other))) < 3:
        return 0.0
    a, b = one[:n] - one[:n].mean(), other[:n] - other[:n].mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return round(float((a * b).sum()) / scale, 6) if scale else 0.0


def _period(times: Mapping[Link, Times], late: Mapping[Link, Times]) -> float | None:
    """The gap after which lateness is likest to itself: the median over links; None where nothing is late."""
    found = [period for link in late if (period := _repeats(late[link], _pace(times[link]))) is not None]
    return median(found) if found else None


def _repeats(late: Times, pace: float) -> float | None:
    centred = late - (fmean(late) if len(late) else 0.0)
    if len(late) < 8 or not centred.any():
        return None
    alike = np.correlate(centred, centred, "full")[len(late) :][: len(late) // 2]  # from a lag of one slot on
    return pace * (1 + int(alike.argmax()))
