"""What came of a run of `veilmesh up`, in a few lines."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from veilmesh.cli.standing import size

__all__ = ["INTERRUPTED", "say"]

INTERRUPTED = 130
STOPPED = ("stopped by Ctrl-C", "left")
LABELS = {"own": "stay with the data owner", "sent": "are sent to the last stage", "held": "are held at the last stage"}


def say(summary: dict[str, Any], measured: float | None, folder: Path) -> None:
    """Say what came of a run, and write its report. Raises typer.Exit if nobody finished."""
    from veilmesh.sim.report import write_report

    console = Console(highlight=False)
    cut = _stages(summary["split"]) if summary.get("split") else ()
    small = _devices(summary)
    for line in (
        *_endings(summary["peers"]),
        _outcome(summary, measured),
        *cut,
        *small,
        _in_force(summary["protections"]),
    ):
        console.print(line, markup=False)
    console.print(f"said between members: {summary['privacy']['says']}", markup=False)
    typer.echo(f"report: {write_report(folder)}")
    if summary["adversary"]:
        typer.echo(f"next: veilmesh attack {folder} --vantage {summary['adversary']['vantage']} --attack NAME")
    if not summary["finished"]:
        raise typer.Exit(INTERRUPTED if all(p["ended"] in STOPPED for p in summary["peers"]) else 1)


def _endings(peers: list[dict[str, Any]]) -> list[str]:
    """A line for everybody who did not finish, and one for all who stopped alike."""
    early: dict[tuple[str, int], list[str]] = {}
    for peer in peers:
        if peer["ended"] != "finished":
            early.setdefault((peer["ended"], peer["rounds"]), []).append(peer["name"])
    return [f"{', '.join(names)}, after {rounds} rounds: {ended}" for (ended, rounds), names in early.items()]


def _outcome(summary: dict[str, Any], measured: float | None) -> str:
    """How many finished, how well, and at what cost. Accuracy is of those who finished; else what was measured last."""
    members, finished = len(summary["peers"]), summary["finished"]
    accuracy = summary["accuracy"] if finished else measured
    of = "" if finished == members else " of those who finished" if finished else " when last measured"
    what = "-" if accuracy is None else f"{accuracy:.1%}{of}"
    where = {"wire": "on the wire", "frames": "in sealed frames, without a wire"}.get(
        summary["bytes_counted"], "simulated"
    )
    return (
        f"{finished} of {members} members finished {summary['rounds']} rounds in {summary['seconds']:.1f} s: "
        f"accuracy {what}, {_said(summary)} ({where})"
    )


def _said(summary: dict[str, Any]) -> str:
    """What was said in a round. In split mode a data owner says the smaller part of it."""
    each = size(summary["bytes_per_peer_round"])
    if not any(peer["role"] == "stage" for peer in summary["peers"]):
        return f"{each} a peer and round"
    return f"{each} a data owner and round, {size(summary['bytes_sent'] / max(summary['rounds'], 1))} by all members"


def _stages(split: dict[str, Any]) -> list[str]:
    """Who plays which part of a network that is cut."""
    parts = [f"{', '.join(s['players'])}: {' '.join(s['pieces'])}" for s in split["stages"]]
    return [f"cut: {' | '.join(parts)}; labels {LABELS[split['labels']]}"]


def _devices(summary: dict[str, Any]) -> list[str]:
    """What a round took of each edge device."""
    members = summary.get("edge", {}).get("members", ())
    return [_device(peer) for peer in summary["peers"] if peer["name"] in members and peer["peak_memory_mb"]]


def _device(peer: dict[str, Any]) -> str:
    lap, longest = peer["round_seconds"], peer["round_seconds_longest"]
    rounds = "" if lap is None else f"a round {lap:.2f} s, the longest {longest:.2f} s; "
    held = ", ".join(f"{what} {how.split(' (')[0]}" for what, how in peer["limits"].items()) or "nothing"
    traffic = f"sent {size(peer['bytes_sent'])}, received {size(peer['bytes_received'])}"
    used = f"{peer['peak_memory_mb']:.0f} MB at most, {peer['cpu_seconds']:.2f} s of processor time"
    return f"{peer['name']}, held to {held}: {rounds}{used}, {traffic}"


def _in_force(protections: dict[str, str]) -> str:
    """What protected this run. Long lists are counted: the report has them whole."""
    counts = {what: how.count(",") + 1 for what, how in protections.items()}
    words = [f"{what} {how if counts[what] < 5 else f'({counts[what]} measures)'}" for what, how in protections.items()]
    return f"in force: {'; '.join(words)}"
