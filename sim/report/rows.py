"""The one table: who attacked from where, what came out, what knowing nothing scores, and what the run cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veilmesh.sim.report.model import Adversary, Attacked, Division, Peer, Summary

__all__ = ["Row", "malicious", "position", "rows", "staged"]


@dataclass(frozen=True, slots=True)
class Row:
    """One attack on the `run`-th run, or a run nobody attacked (`attacked` is None)."""

    run: int
    label: str
    attacker: str
    summary: Summary
    attacked: Attacked | None


def rows(runs: Sequence[tuple[str, Summary | None]]) -> Iterator[Row]:
    """A row for each attack on each (label, summary); a run without attacks, or without a result, still gets one."""
    for run, (label, summary) in enumerate(runs):
        result = summary or Summary()
        for attacked in result.attacks or (None,):
            yield Row(run, label, position(result, attacked), result, attacked)


def malicious(summary: Summary) -> tuple[int, ...]:
    """Indices of the peers the adversary controls."""
    if summary.adversary is None:
        return ()
    named = [peer.index for peer in summary.peers if peer.name in summary.adversary.vantage.split("+")]
    return summary.adversary.controls or tuple(named)


def position(summary: Summary, attacked: Attacked | None) -> str:
    """Where an attacker sat, in words: "peer:3, neighbour of 4", "the server", "tail, stage 1", "wire, tapping every
    link"."""
    adversary = summary.adversary or Adversary()
    vantage = (attacked.vantage if attacked else "") or adversary.vantage
    if "+" in vantage:
        return _coalition(vantage.split("+"))
    if attacked and vantage == "wire":
        return "wire, tapping every link"
    held = [peer for peer in summary.peers if peer.name == vantage]
    held = held or [peer for peer in summary.peers if peer.index in malicious(summary)]
    names = [] if vantage == "server" and _serves(held) else [vantage]
    taps = "tapping every link" if adversary.taps_wire else ""
    return ", ".join(part for part in (*names, _place(summary, held), taps) if part)


def _coalition(places: Sequence[str]) -> str:
    named = places if len(places) <= 3 else (places[0], "...", places[-1])
    return f"{len(places)} who collude: {', '.join(named)}"


def _place(summary: Summary, held: Sequence[Peer]) -> str:
    if _serves(held):
        return "the server"
    if summary.split and len(held) == 1:
        return staged(summary.split, held[0].name)
    mine = {peer.index for peer in held}
    near = {end for edge in summary.edges if mine & set(edge) for end in edge} - mine
    return f"neighbour of {len(near)}" if near else ""


def staged(split: Division, name: str) -> str:
    """Which stages a member plays, in words."""
    numbers = [str(number) for number in split.played(name)]
    if not numbers:
        return "stands by" if name.startswith("standby:") else ""
    return f"stage{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"


def _serves(held: Sequence[Peer]) -> bool:
    return any(peer.role == "server" for peer in held)
