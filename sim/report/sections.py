"""The report's smaller tables: what was in force, what was refused, how peers ended, and with which settings."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veilmesh.sim.report.model import Claim, Guarantee, Report, Run
from veilmesh.sim.report.numbers import NOTHING, decibels, described
from veilmesh.sim.report.rows import rows

__all__ = ["Grid", "endings", "headline", "privacy", "protections", "refusals", "settings", "tally"]

ELSEWHERE = ("members", "versions")  # parts of run.json that the page shows in places of their own


@dataclass(frozen=True, slots=True)
class Grid:
    """A plain table: the names of its columns, and rows whose first cell names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tally(claims: Sequence[Claim]) -> str:
    """How many claims hold, fail, and were not run, in the words of the command line."""
    count = Counter(claim.holds for claim in claims)
    return f"claims: {count[True]} hold, {count[False]} fail, {count[None]} not run"


def headline(report: Report) -> str:
    """What came out, in a sentence: the best reconstruction of all, by whom, and how far above its floor."""
    table = list(rows([(run.label, run.summary) for run in report.runs]))
    scored = [(row.attacked.psnr_best, row) for row in table if row.attacked and row.attacked.psnr_best is not None]
    if not scored:
        return ""
    best, row = max(scored, key=lambda pair: pair[0])
    if row.attacked is None:
        return ""
    attack = row.attacked.called or "the attack"
    by = f"{attack} from {row.attacker} ({row.label})" if row.attacker else f"{attack} ({row.label})"
    above = row.attacked.gain_best
    side = "above" if (above or 0) >= 0 else "below"
    floor = "" if above is None else f", {decibels(abs(above))} dB {side} the best guess made without any information"
    return f"The closest reconstruction of all, by {by}, reaches {decibels(best)} dB{floor}."


def protections(runs: Sequence[Run]) -> Grid | None:
    """What each run says was in force; runs that say the same share a row. None if no run says anything."""
    facts = [(run.label, _facts(run)) for run in runs]
    columns = list(dict.fromkeys(name for _, fact in facts for name in fact))
    grouped: dict[tuple[str, ...], list[str]] = {}
    for label, fact in facts:
        if fact:
            grouped.setdefault(tuple(fact.get(name, NOTHING) for name in columns), []).append(label)
    lines = tuple((", ".join(labels), *cells) for cells, labels in grouped.items())
    return Grid(("Run", *columns), lines) if lines else None


def privacy(runs: Sequence[Run]) -> Grid | None:
    """What every run says of differential privacy; runs that say the same share a row. None if no run says anything."""
    grouped: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for run in runs:
        if run.summary and run.summary.privacy:
            said = tuple(_guarantee(g) for g in run.summary.privacy.guarantees)
            grouped.setdefault(said or (_NO_PRIVACY,), []).append(run.label)
    lines = [(", ".join(labels), *cells) for said, labels in grouped.items() for cells in said]
    head = ("Run", "Epsilon", "Delta", "Protects", "Against", "By", "Counted by")
    return Grid(head, tuple(lines)) if lines else None


def refusals(runs: Sequence[Run]) -> tuple[Grid | None, tuple[str, ...]]:
    """Frames dropped by reason, for the runs that dropped any; and the labels of the runs that counted and had none."""
    counted = {run.label: _refused(run) for run in runs if _counts(run)}
    reasons = sorted({reason for count in counted.values() for reason in count})
    lines = [
        (label, *(str(count[r]) for r in reasons), str(count.total())) for label, count in counted.items() if count
    ]
    clean = tuple(label for label, count in counted.items() if not count)
    return (Grid(("Run", *reasons, "total"), tuple(lines)) if lines else None), clean


def endings(run: Run) -> str:
    """How the peers of a run ended: "4 finished; 1 killed (peer:2)"."""
    peers = run.summary.peers if run.summary else ()
    by_end: dict[str, list[str]] = {}
    for peer in peers:
        by_end.setdefault(peer.ended or "unknown", []).append(peer.name or f"peer:{peer.index}")
    parts = [f"{len(names)} {end}{_named(end, names)}" for end, names in by_end.items()]
    return "; ".join(parts)


def settings(runs: Sequence[Run]) -> tuple[Grid | None, Grid | None]:
    """The recorded settings of the runs: those that differ between them, and those that all of them share."""
    records = [(run.label, {k: v for k, v in run.record.items() if k not in ELSEWHERE}) for run in runs]
    recorded = [(label, dict(_flat(record))) for label, record in records if record]
    if not recorded:
        return None, None
    names = list(dict.fromkeys(name for _, values in recorded for name in values))
    lines = {name: tuple(values.get(name, NOTHING) for _, values in recorded) for name in names}
    differ = tuple((name, *cells) for name, cells in lines.items() if len(set(cells)) > 1)
    common = tuple((name, cells[0]) for name, cells in lines.items() if len(set(cells)) == 1)
    labels = tuple(label for label, _ in recorded)
    return (
        Grid(("Setting", *labels), differ) if differ else None,
        Grid(("Setting", "Value"), common) if common else None,
    )


_NO_PRIVACY = ("no differential privacy", NOTHING, "nothing, provably", NOTHING, NOTHING, NOTHING)


def _guarantee(said: Guarantee) -> tuple[str, ...]:
    tighter = "" if said.epsilon_prv is None else f" ({said.epsilon_prv:.3g} by PRV)"
    epsilon = NOTHING if said.epsilon is None else f"{said.epsilon:.3g}{tighter}"
    delta = NOTHING if said.delta is None else f"{said.delta:.3g}"
    return epsilon, delta, said.protects, said.against, said.mechanism, said.accountant


def _facts(run: Run) -> dict[str, str]:
    if run.summary is None:
        return {}
    facts = {name: described(value) for name, value in run.summary.protections.items()}
    if run.summary.guards:
        facts["guards"] = "; ".join(described(guard) for guard in run.summary.guards)
    wrapped = run.summary.scenario.split
    if run.summary.split and wrapped:
        facts["guards at the cuts"] = "; ".join(described(guard) for guard in wrapped.guards) or "none"
        facts["codecs at the cuts"] = f"{described(wrapped.codec)}, gradients {described(wrapped.gradients)}"
    elif run.summary.codec:
        facts["codec"] = described(run.summary.codec)
    return facts


def _counts(run: Run) -> bool:
    return run.summary is not None and any(peer.refusals is not None for peer in run.summary.peers)


def _refused(run: Run) -> Counter[str]:
    """Frames dropped by all peers of a run together, by reason, without the zeros."""
    total: Counter[str] = Counter()
    for peer in run.summary.peers if run.summary else ():
        total.update(peer.refusals or {})
    return +total


def _named(end: str, names: Sequence[str]) -> str:
    return "" if end == "finished" else f" ({', '.join(names)})"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested settings; what is under `scenario` stands without that word."""
    for key, item in value.items():
        name = prefix if not prefix and key == "scenario" else f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{name}." if name else "")
        else:
            yield name, _value(item)


def _value(item: object) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Iterable) and all(isinstance(part, str | int | float) for part in item):
        return ", ".join(map(str, item)) or "none"
    return json.dumps(item)
