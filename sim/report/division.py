"""The report's sections on split mode: where a network is cut and who plays what, and what befell the run."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from veilmesh.sim.report.model import Division, Noticed, Run, Stage
from veilmesh.sim.report.numbers import NOTHING
from veilmesh.sim.report.sections import Grid

__all__ = ["divisions", "noticed"]

_STAGES = ("Run", "Stage", "Played by", "Layers", "Parameters", "What leaves it, of one example", "Has")
_NOTICED = ("Run", "Who", "What", "How often", "First", "In its words")
_MANY = 8  # layers that are all named


def divisions(runs: Sequence[Run]) -> Grid | None:
    """Every stage of every network that is cut: who plays it, what leaves it, and who has pictures and labels. Runs
    that are cut alike share their rows. None where nothing is cut."""
    alike: dict[Division, list[str]] = {}
    for run in runs:
        if run.summary and run.summary.split:
            alike.setdefault(run.summary.split, []).append(run.label)
    lines = tuple(line for split, labels in alike.items() for line in _stages(", ".join(labels), split))
    return Grid(_STAGES, lines) if lines else None


def noticed(runs: Sequence[Run]) -> Grid | None:
    """What guards sounded alarms about, and who was replaced; None where nothing happened."""
    lines = tuple(line for run in runs for line in _happened(run))
    return Grid(_NOTICED, lines) if lines else None


def _stages(labels: str, split: Division) -> Iterator[tuple[str, ...]]:
    for number, stage in enumerate(split.stages):
        parameters = NOTHING if stage.parameters is None else f"{stage.parameters:,}"
        has = _has(split, number) or NOTHING
        yield labels, str(number), ", ".join(stage.players), _layers(stage), parameters, _shape(stage), has


def _has(split: Division, number: int) -> str:
    """What a stage's player has besides what it is sent: labels are the data owner's, or held at the other end."""
    last = number == len(split.stages) - 1
    if number == 0:
        return "pictures" if split.labels == "held" else "pictures, labels"
    ends = {"own": "pictures, labels", "sent": "labels, as they are sent", "held": "labels, of its own"}
    return ends.get(split.labels, "") if last else ""


def _layers(stage: Stage) -> str:
    if len(stage.pieces) <= _MANY:
        return ", ".join(stage.pieces)
    return f"{', '.join(stage.pieces[:3])} ... {stage.pieces[-1]} ({len(stage.pieces)} layers)"


def _shape(stage: Stage) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, stage.leaves)) or NOTHING


def _happened(run: Run) -> Iterator[tuple[str, ...]]:
    alarms = sorted((n for n in run.noticed if n.kind != "replaced"), key=lambda n: (n.peer, n.kind))
    for (peer, kind), of in groupby(alarms, key=lambda n: (n.peer, n.kind)):
        several = list(of)
        yield run.label, _who(run, peer), kind, str(len(several)), _when(several[0]), several[0].why
    for change in run.noticed:
        if change.kind == "replaced":
            words = f"{change.by} plays stage {change.stage}, since {change.gone} is gone"
            yield run.label, _who(run, change.peer), change.kind, "1", _when(change), words


def _when(event: Noticed) -> str:
    if event.step is not None:
        return f"step {event.step}"
    if event.round is not None:
        return f"round {event.round}"
    return NOTHING if event.t is None else f"{event.t:.3g} s"


def _who(run: Run, index: int) -> str:
    named = [peer.name for peer in run.summary.peers if peer.index == index] if run.summary else []
    return named[0] if named else f"peer:{index}"
