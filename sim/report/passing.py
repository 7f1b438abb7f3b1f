"""The report's section on who sees frames pass: what sizes and times told, and what padding would have left of it."""

from collections.abc import Iterator, Sequence

from veilmesh.sim.report.model import Run, Traffic
from veilmesh.sim.report.numbers import NOTHING, amount, duration
from veilmesh.sim.report.sections import Grid

__all__ = ["told"]

_FACTS = ("Run", "Seen by", "Peers", "Links", "Frames", "Pace", "Slow", "Commonest body", "Codec guessed by it")
_LENGTHS = ("Run", "Padding", "Lengths on a link", "at most", "Entropy, bits a frame", "Sealed in all")


def told(runs: Sequence[Run]) -> tuple[Grid, Grid] | None:
    """What whoever saw frames pass was told, and how many lengths there were: as they were, and as padding would have
    made them. None if nobody sat there."""
    seen = [(run.label, run.summary.traffic) for run in runs if run.summary and run.summary.traffic]
    facts = tuple(_facts(label, traffic) for label, traffic in seen)
    lines = tuple(line for label, traffic in seen for line in _lengths(label, traffic))
    return (Grid(_FACTS, facts), Grid(_LENGTHS, lines)) if seen else None


def _facts(label: str, seen: Traffic) -> tuple[str, ...]:
    links = {frozenset(link) for link in seen.links}
    pace = f"{1000 * seen.pace:.3g} ms" if seen.pace is not None and seen.pace < 1 else duration(seen.pace)
    who = ", ".join(seen.slow) or "nobody"
    codec = " or ".join(seen.codecs) or NOTHING
    counts = (str(len(seen.participants)), str(len(links)), str(seen.frames))
    return (label, seen.vantage, *counts, pace, who, amount(seen.body), codec)


def _lengths(label: str, seen: Traffic) -> Iterator[tuple[str, ...]]:
    for at, (padding, of) in enumerate(seen.lengths.items()):
        figures = [NOTHING if value is None else f"{value:.3g}" for value in (of.distinct, of.most, of.entropy)]
        yield (label, f"had it been {padding}" if at else padding, *figures, amount(of.bytes))
