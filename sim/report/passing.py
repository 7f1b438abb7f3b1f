"""The report's section on who sees frames pass: what sizes and times told, what padding would have left of it, who came
and left, and how much of what could be suspected was so."""

from collections.abc import Iterator, Sequence

from veilmesh.sim.report.model import Run, Traffic
from veilmesh.sim.report.numbers import NOTHING, amount, duration
from veilmesh.sim.report.sections import Grid

__all__ = ["told"]

_FACTS = ("Run", "Seen by", "Peers", "Links", "Frames", "Pace", "Slow", "Commonest body", "Codec guessed by it")
_LENGTHS = ("Run", "Padding", "Lengths on a link", "at most", "Entropy, bits a frame", "Sealed in all")
_CAME = ("Run", "Peer", "Came", "Connection broke", "Left")
_RIGHT = ("Run", "What", "Right", "By chance", "of 20 such, one has more than", "Looked at")
_WHAT = {
    "full": "frames that say something, among all (AUC)",
    "near": "neighbours, among all pairs (AUC)",
    "slow": "the slow peer, named first",
    "codec": "the codec",
}


def told(runs: Sequence[Run]) -> tuple[Grid, Grid, Grid | None, Grid | None] | None:
    """What whoever saw frames pass was told, and how many lengths there were: as they were, and as padding would have
    made them; who came and left; and how right suspicions are. None if nobody sat there."""
    seen = [(run.label, run.summary.traffic) for run in runs if run.summary and run.summary.traffic]
    facts = tuple(_facts(label, traffic) for label, traffic in seen)
    lines = tuple(line for label, traffic in seen for line in _lengths(label, traffic))
    came = tuple(line for label, traffic in seen for line in _came(label, traffic))
    right = tuple(line for label, traffic in seen for line in _right(label, traffic))
    if not seen:
        return None
    return Grid(_FACTS, facts), Grid(_LENGTHS, lines), Grid(_CAME, came) if came else None, _grid(right)


def _grid(right: tuple[tuple[str, ...], ...]) -> Grid | None:
    return Grid(_RIGHT, right) if right else None


def _came(label: str, seen: Traffic) -> Iterator[tuple[str, ...]]:
    for one in seen.presence.attendance if seen.presence else ():
        failed = ", ".join(duration(at) for at in one.failed) or NOTHING
        yield (label, one.peer, duration(one.joined), failed, duration(one.left))


def _right(label: str, seen: Traffic) -> Iterator[tuple[str, ...]]:
    if (right := seen.right) is None:
        return
    for name, what in _WHAT.items():
        if (of := getattr(right, name)) is not None:
            figures = [NOTHING if value is None else f"{value:.2f}" for value in (of.got, of.floor, of.floor_high)]
            yield (label, what, *figures, of.by or "lengths")
    if (pace := right.round) is not None:
        words = (
            "nothing that comes back"
            if pace.guess is None
            else f"{duration(pace.guess)}, off by {100 * (pace.off or 0):.0f} %"
        )
        yield (label, f"seconds a round takes: {duration(pace.was)}", words, NOTHING, NOTHING, "lateness, or frames")


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
