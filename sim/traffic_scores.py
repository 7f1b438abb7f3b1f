"""How right an observer of times is about a run, beside what its suspicions are worth about a truth that is not theirs.

The truth is in what members' own taps kept and in the run's events; no view has it. Every figure is that of the best of
the observer's suspicions, chosen with the truth in hand: stricter than any observer is. So is the floor: the best of
the same suspicions about the truth shifted in time, or about peers that changed places. A suspicion that is wrong more
often than not tells as much as one that is right: it counts turned round.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.attacks.traffic_cover import Suspicions
from veilmesh.core import generator
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record

__all__ = ["Truth", "auc", "scores", "truth"]

Link: TypeAlias = tuple[PeerId, PeerId]
Bools: TypeAlias = NDArray[np.bool_]

_OTHERS: Final = 100  # truths that are not theirs, for a floor


@dataclass(frozen=True, slots=True)
class Truth:
    """What happened in a run."""

    said: Mapping[Link, Sequence[tuple[float, float]]]  # from when to when each message of a link was on its way
    near: frozenset[Link]  # neighbours, both ways
    slow: frozenset[PeerId]
    round: float | None  # seconds a round took, the median
    peers: tuple[PeerId, ...]
    covered: bool


def truth(
    records: Iterable[Record], events: Path, peers: Sequence[PeerId], near: Iterable[Link], slow: Iterable[PeerId],
    covered: bool,
) -> Truth:  # fmt: skip
    """Of what all members' taps kept, and the run's events."""
    begun, come = defaultdict[Link, list[float]](list), defaultdict[Link, list[float]](list)
    for record in records:
        where = begun if record.at == record.sender else come
        where[record.sender, record.to].append(record.now)
    said = {link: list(zip(sorted(begun[link]), sorted(come[link]), strict=False)) for link in begun}
    return Truth(said, frozenset(near), frozenset(slow), _round(events), tuple(peers), covered)


def _round(events: Path) -> float | None:
    """Seconds between two rounds of a peer, the median over all."""
    ended = defaultdict[int, list[float]](list)
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "round":
            ended[event["peer"]].append(event["t"])
    gaps = [later - one for times in ended.values() for one, later in zip(times, times[1:], strict=False)]
    return median(gaps) if gaps else None


def scores(found: Suspicions, of: Truth) -> dict[str, Any]:
    """Figures in [0, 1], 1 where the observer is always right, each with its floor.

    `full`: AUC of telling frames that say something from those that do not. `near`: AUC of telling neighbours from
    others. `slow`: the chance of naming the slow peer first. `round`: how far the guessed pace of rounds is off, as a
    share of it. None where there is nothing to tell.
    """
    return {
        "full": _full(found, of),
        "near": _near(found, of),
        "slow": _slow(found, of),
        "round": _pace(found, of),
    }


def _full(found: Suspicions, of: Truth) -> dict[str, Any] | None:
    if not of.covered:  # whatever passes says something
        return _figure(1.0, [0.5], "being there")
    full = {link: _says_something(at, of.said.get(link, ())) for link, at in found.times.items()}
    told = [link for link, says in full.items() if 0 < says.sum() < len(says)]
    if not told:
        return None
    rng = generator(0, "traffic", "full")

    def worth(turned: Mapping[Link, int]) -> dict[str, float]:
        return {
            name: _either_way(float(np.mean([auc(by[link], np.roll(full[link], turned[link])) for link in told])))
            for name, by in found.full.items()
        }

    others = [
        max(worth({link: int(rng.integers(1, len(full[link]))) for link in told}).values()) for _ in range(_OTHERS)
    ]
    got = worth(dict.fromkeys(told, 0))
    return _figure(max(got.values()), others, max(got, key=lambda name: got[name]))


def _says_something(times: NDArray[np.float64], said: Sequence[tuple[float, float]]) -> Bools:
    """Which of a link's frames left while a message was on its way."""
    found = np.zeros(len(times), dtype=bool)
    for begin, end in said:
        found |= (times >= begin) & (times <= end)
    return found


def _near(found: Suspicions, of: Truth) -> dict[str, Any] | None:
    pairs = [(a, b) for a in of.peers for b in of.peers if a != b]
    if not 0 < len(of.near) < len(pairs):
        return None
    rng = generator(0, "traffic", "near")

    def worth(places: Sequence[PeerId]) -> dict[str, float]:
        at = dict(zip(of.peers, places, strict=True))
        true = np.array([(at[a], at[b]) in of.near for a, b in pairs])
        by_name = {name: np.array([by.get(pair, 0.0) for pair in pairs]) for name, by in found.near.items()}
        return {name: _either_way(auc(suspicion, true)) for name, suspicion in by_name.items()}

    others = [max(worth([of.peers[i] for i in rng.permutation(len(of.peers))]).values()) for _ in range(_OTHERS)]
    got = worth(of.peers)
    return _figure(max(got.values()), others, max(got, key=lambda name: got[name]))


def _slow(found: Suspicions, of: Truth) -> dict[str, Any] | None:
    if len(of.slow) != 1:
        return None

    def worth(peer: PeerId) -> dict[str, float]:
        first = {name: [p for p in of.peers if by.get(p, 0.0) == max(by.values())] for name, by in found.slow.items()}
        return {name: (peer in named) / max(1, len(named)) for name, named in first.items()}

    [peer] = of.slow
    got = worth(peer)
    return _figure(
        max(got.values()), [max(worth(other).values()) for other in of.peers], max(got, key=lambda n: got[n])
    )


def _pace(found: Suspicions, of: Truth) -> dict[str, Any] | None:
    if of.round is None:
        return None
    paces = [float(np.median(np.diff(at))) for at in found.times.values() if len(at) > 2]
    seen = median(paces) if paces else None
    guess = found.round if of.covered else seen
    off = [None if told is None else abs(told - of.round) / of.round for told in (guess, seen if of.covered else None)]
    return {"guess": guess, "was": of.round, "off": off[0], "off_by_slots": off[1]}


def _either_way(right: float) -> float:
    return max(right, 1 - right)


def _figure(got: float, others: Sequence[float], by: str) -> dict[str, Any]:
    return {
        "got": round(got, 4),
        "floor": round(float(np.mean(others)), 4),
        "floor_high": round(float(np.quantile(others, 0.95)), 4),
        "by": by,
    }


def auc(suspicion: NDArray[np.float64], true: Bools) -> float:
    """The chance that one of the true has a higher suspicion than one of the others; ties count half."""
    _, at, counts = np.unique(suspicion, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]
    yes, no = int(true.sum()), int((~true).sum())
    return float((ranks[true].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else 0.5
