"""What edge devices were held to, and what a round took of them, beside the other peers of their runs."""

from collections.abc import Sequence

from veilmesh.sim.report.model import Peer, Run
from veilmesh.sim.report.numbers import NOTHING, amount, described, duration, percent
from veilmesh.sim.report.sections import Grid

__all__ = ["devices"]

_HEAD = (
    "Member", "Run", "Held to", "Rounds", "Accuracy", "A round, median", "A round, longest", "Peak memory",
    "Processor time", "Sent", "Received",
)  # fmt: skip


def devices(runs: Sequence[Run]) -> Grid | None:
    """A row for every member of a run with edge devices; None if no run has any."""
    lines = [
        _line(run.label, peer, peer.name in run.summary.edge.members)
        for run in runs
        if run.summary and run.summary.edge
        for peer in run.summary.peers
    ]
    return Grid(_HEAD, tuple(lines)) if lines else None


def _line(label: str, peer: Peer, is_edge: bool) -> tuple[str, ...]:
    limits = "; ".join(f"{what}: {described(how)}" for what, how in peer.limits.items())
    peak = None if peer.peak_memory_mb is None else 1e6 * peer.peak_memory_mb
    return (
        peer.name or f"peer:{peer.index}",
        label,
        limits or ("nothing" if is_edge else NOTHING),
        NOTHING if peer.rounds is None else str(peer.rounds),
        percent(peer.accuracy),
        duration(peer.round_seconds),
        duration(peer.round_seconds_longest),
        amount(peak),
        duration(peer.cpu_seconds),
        amount(peer.bytes_sent),
        amount(peer.bytes_received),
    )
