"""How soon a run learned: when, and for how many bytes, the models of a run first reached a level of accuracy.

A peer measures its model after so many steps of its own, so peers measure at different times and a slow one rarely.
Between two measurements its latest counts; before its first it counts as 0. What is looked at is the median over those
who count (`who_counts`): the moment at which half of the models have the level. A mean would wait for the slowest one's
next measurement, or, where one died, for ever. What the median does not show is how good the slowest model became:
`accuracy_lowest` of the summary does.

Seconds count from the first training that anybody finished: what a mesh takes to come up is not learning. Bytes are
what a peer (no server) had sent by then, the mean over the peers, from the latest line of each.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

__all__ = ["LEVELS", "Counted", "Reached", "levels_reached", "time_and_bytes_to", "typical_accuracy", "who_counts"]

LEVELS = (80, 90, 95)
"""Levels of accuracy, in percent, for which a summary says `seconds_to_90` and `bytes_to_90`."""

Metrics = Iterable[Mapping[str, Any]]
"""Lines of metrics.jsonl, in any order: `t`, `peer`, `accuracy` (or None), `bytes_sent`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Members by number: whose accuracy counts, and whose bytes."""

    models: frozenset[int]
    senders: frozenset[int]


@dataclass(frozen=True, slots=True)
class Reached:
    """When the median model had the level, in seconds, and the mean bytes that a peer had sent by then."""

    seconds: float
    bytes_per_peer: float


def who_counts(summary: Mapping[str, Any]) -> Counted:
    """Who counts in a run, from its summary: honest peers; where there is a server, its model is the only one."""
    members = summary["peers"]
    adversary = summary["scenario"].get("adversary") or {}
    liars = set(adversary.get("peers") or ()) if adversary.get("tamper") else set()
    if adversary.get("tamper") and not liars:
        liars = {m["index"] for m in members if m["name"] == adversary["vantage"]}
    honest = {m["index"] for m in members if m["role"] == "peer"} - liars
    servers = {m["index"] for m in members if m["role"] == "server"}
    return Counted(frozenset(servers or honest), frozenset(honest))


def time_and_bytes_to(metrics: Metrics, level: float, who: Counted) -> Reached | None:
    """When the median of the latest accuracies first was `level` (0 to 1) or more; None if it never was."""
    lines = sorted(metrics, key=_time)
    for at, accuracy in typical_accuracy(lines, who.models):
        if accuracy >= level:
            return Reached(at - _time(lines[0]), _sent(lines, at, who.senders))
    return None


def typical_accuracy(metrics: Metrics, models: Collection[int]) -> Iterator[tuple[float, float]]:
    """(t, median of the latest accuracies of `models`) at every time somebody measured, in order of time."""
    latest = dict.fromkeys(models, 0.0)
    for line in sorted(metrics, key=_time):
        if line["accuracy"] is not None and line["peer"] in latest:
            latest[line["peer"]] = line["accuracy"]
            yield _time(line), median(latest.values())


def levels_reached(metrics: Metrics, who: Counted) -> dict[str, float | None]:
    """`seconds_to_N` and `bytes_to_N` for every one of `LEVELS`; None where it was not reached."""
    lines = list(metrics)
    figures: dict[str, float | None] = {}
    for percent in LEVELS:
        reached = time_and_bytes_to(lines, percent / 100, who)
        figures[f"seconds_to_{percent}"] = reached.seconds if reached else None
        figures[f"bytes_to_{percent}"] = reached.bytes_per_peer if reached else None
    return figures


def _time(line: Mapping[str, Any]) -> float:
    return float(line["t"])


def _sent(lines: Sequence[Mapping[str, Any]], until: float, senders: Collection[int]) -> float:
    """The mean over `senders` of what each had sent at `until`, in bytes."""
    sent = dict.fromkeys(senders, 0)
    for line in lines:
        if _time(line) <= until and line["peer"] in sent:
            sent[line["peer"]] = max(sent[line["peer"]], line["bytes_sent"])
    return fmean(sent.values()) if sent else 0.0
