"""The run directory: what real peers and simulated ones write alike.

run.json        scenario, versions, members
events.jsonl    every note, as it came
metrics.jsonl   one line per peer and round: loss, accuracy, bytes
transcript/     what the tap kept
checkpoints/    every member's last model; where asked for, what it needs to go on from its last rounds
journal-*.jsonl which of those there are
identities/     the members' keys, only beside such checkpoints
summary.json    every figure of the run; written last, whole or not at all
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from veilmesh.core import BadInput
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.outcome import Outcome
from veilmesh.peer.store import save_parameters, writing
from veilmesh.sim.agreement import final_models
from veilmesh.sim.backdoor import backdoor_success
from veilmesh.sim.cast import Cast, stem
from veilmesh.sim.curves import levels_reached, who_counts
from veilmesh.sim.edge import edge_figures
from veilmesh.sim.privacy import privacy_figures
from veilmesh.sim.resume import Counted, Resumption, scenario_digest

__all__ = ["Ended", "Recorder", "Watch", "fresh", "read_json", "save_model", "versions", "write_json"]

Watch = Callable[[int, Note, float, tuple[int, int]], None]
"""Told every note of every member: index, note, seconds since the run began, bytes sent and received so far.

A mesh also tells it `waiting`, of nobody, while nothing comes: a display can then show that it is alive."""


@dataclass(slots=True)
class Ended:
    """How one member's run ended, and what it counted."""

    index: int
    name: str
    id: str
    role: str
    ended: str = "running"
    rounds: int = 0
    accuracy: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    dropped: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    alarms: int = 0  # sounded by guards that look for a hijacker
    first_alarm: int | None = None  # the step of the first
    memory_mb: float | None = None  # proportional share (PSS) at the end, where the system says it
    cover_bytes: int = 0  # of frames that said nothing, so that those that do look like all
    missed_slots: int = 0  # of cover traffic, that were left out because it was busy
    cpu_seconds: float | None = None  # its worker's included, where it is a process of its own
    peak_memory_mb: float | None = None  # the most that was resident (VmHWM), its worker's added; in 10^6 bytes
    round_seconds: float | None = None  # from the end of a round to that of the next, the median; of processes only
    round_seconds_longest: float | None = None
    limits: dict[str, str] = field(default_factory=dict)  # what an edge device was held to, in words


_RECORDS = (
    "run.json", "summary.json", "events.jsonl", "metrics.jsonl", "report.html", "complete", "transcript/*.records",
    "transcript/passing/*",
    "checkpoints/*.safetensors*", "checkpoints/*/round-*.safetensors*", "journal-*.jsonl*", "identities/*.key*",
    "pictures/*.png",
)  # fmt: skip


def fresh(folder: Path) -> None:
    """Make `folder` ready for a new run, before anything is started for it. Raises BadInput if nothing can be written.

    What an earlier run left there goes: its transcript would be taken for the new run's. Other people's files stay.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "run.json").exists() or list(folder.glob("transcript/*.records")):
            for old in (path for pattern in _RECORDS for path in folder.glob(pattern)):
                old.unlink()
        (folder / "events.jsonl").touch()


class Recorder:
    """Writes one run directory.

    Args:
        folder: made if need be; what an earlier run left there is replaced.
        cast: the run's scenario and members.
        ids: the members' peer ids, in roster order.
        pids: their processes, where they have one each.
        resumed: where the run is taken up again, if it is: what the folder holds is then added to, and bytes and
            messages go on from what was counted there.
    """

    def __init__(
        self,
        folder: Path,
        cast: Cast,
        ids: tuple[PeerId, ...],
        pids: Sequence[int] = (),
        resumed: Resumption | None = None,
    ) -> None:
        self.folder = folder
        self._cast = cast
        self._ids = ids
        self._cpu = time.process_time()
        self._resumed = resumed
        self._trained: Counter[int] = Counter()  # rounds, by member: what an accountant counts
        self._alarms: dict[int, list[int]] = {}  # the steps of alarms, by member
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").unlink(missing_ok=True)
            self._events: TextIO = _opened(folder / "events.jsonl", again=resumed is not None)
            self._metrics: TextIO = _opened(folder / "metrics.jsonl", again=resumed is not None)
        self._run: dict[str, Any] = {
            "scenario": cast.scenario.model_dump(mode="json"),
            "versions": versions(),
            "members": [
                {"index": i, "name": name, "id": str(peer), "pid": pids[i] if pids else None}
                for i, (name, peer) in enumerate(zip(cast.names, ids, strict=True))
            ],
            **({"digest": scenario_digest(cast.scenario)} if cast.scenario.checkpoints.every else {}),
            **({"resumed_from": list(resumed.rounds)} if resumed else {}),
        }
        self._write_run()
        if resumed:
            self.note(0, Note("resumed", {"round": resumed.round}), resumed.seconds)

    def joined(self, name: str, peer: PeerId, pid: int) -> None:
        """Another member has joined; its place is the next one."""
        self._ids = (*self._ids, peer)
        members = self._run["members"]
        members.append({"index": len(members), "name": name, "id": str(peer), "pid": pid})
        self._write_run()

    def _write_run(self) -> None:
        write_json(self.folder / "run.json", self._run)

    def note(self, index: int, note: Note, t: float, traffic: tuple[int, int] = (0, 0)) -> None:
        """Record what member `index` noted at `t` seconds; `traffic` is its bytes sent and received so far."""
        line = {"t": round(t, 4), "peer": index, "kind": note.kind, **note.data}
        with writing(self.folder):
            self._events.write(json.dumps(line) + "\n")
            if note.kind == "kept":  # a checkpoint outlives this process: so must what was noted before it
                self._events.flush()
                self._metrics.flush()
            self._trained[index] += note.kind == "trained"
            if note.kind == "alarm":
                self._alarms.setdefault(index, []).append(int(str(note.data["step"])))
            if note.kind in ("trained", "accuracy"):
                self._measure(index, note, t, traffic)

    def _measure(self, index: int, note: Note, t: float, traffic: tuple[int, int]) -> None:
        trained = note.kind == "trained"
        line: dict[str, Any] = {
            "t": round(t, 4),
            "peer": index,
            "round": note.data["round"],
            "loss": note.data["loss"] if trained else None,
            "accuracy": None if trained else note.data["accuracy"],
        }
        if not trained:
            line["test_loss"] = note.data["loss"]
        before = self._resumed.before[index] if self._resumed else Counted()
        sent, received = traffic[0] + before.bytes_sent, traffic[1] + before.bytes_received
        self._metrics.write(json.dumps(line | {"bytes_sent": sent, "bytes_received": received}) + "\n")

    def model(self, index: int, outcome: Outcome) -> None:
        """Keep member `index`'s last model."""
        save_model(self.folder, self._cast, index, self._ids[index], outcome)

    def finish(
        self, members: list[Ended], seconds: float, protections: Mapping[str, str], counted: str
    ) -> dict[str, Any]:
        """Close the files and write the summary."""
        with writing(self.folder):
            self._events.close()
            self._metrics.close()
        for member in members:
            steps = self._alarms.get(member.index, [])
            member.alarms, member.first_alarm = len(steps), min(steps, default=None)
        if self._resumed:
            _count_on(members, self._resumed)
        summary = _summary(self._cast, members, seconds, protections, counted)
        summary |= {"resumed_from": list(self._resumed.rounds)} if self._resumed else {}
        summary |= edge_figures(self._cast.scenario.edge, members)
        whole = [m.name for m in members if m.ended == "finished" and m.index not in self._cast.tampering]
        summary |= levels_reached(_lines(self.folder / "metrics.jsonl"), who_counts(summary))
        unfinished = [m.index for m in members if m.ended != "finished" and m.role == "peer"]
        summary |= privacy_figures(self._cast, self._trained, unfinished)
        summary["backdoor"] = backdoor_success(self._cast, self.folder / "checkpoints", whole)
        own = [m.cpu_seconds for m in members if m.cpu_seconds is not None]  # where members are processes
        summary["cpu_seconds"] = sum(own) if own else time.process_time() - self._cpu
        summary |= final_models(self._cast.models(self.folder / "checkpoints", whole))
        write_json(self.folder / "summary.json", summary)
        return summary


def _lines(path: Path) -> list[Any]:
    with writing(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _opened(path: Path, again: bool) -> TextIO:
    # By lines: whoever follows the run sees them at once.
    return path.open("a" if again else "w", buffering=1, encoding="utf-8")


def _count_on(members: Sequence[Ended], resumed: Resumption) -> None:
    """Add what members had counted when the run was taken up again; what it refused and dropped is of this part."""
    for member in members:
        before = resumed.before[member.index]
        member.bytes_sent += before.bytes_sent
        member.bytes_received += before.bytes_received
        member.messages_sent += before.messages_sent
        member.messages_received += before.messages_received
        member.rounds = max(member.rounds, resumed.round)


def save_model(folder: Path, cast: Cast, index: int, peer: PeerId, outcome: Outcome) -> None:
    """Keep member `index`'s last model in a run directory; `peer` is its id."""
    path = folder / "checkpoints" / f"{stem(cast.names[index])}.safetensors"
    save_parameters(path, outcome.parameters, {"rounds": str(outcome.rounds), "peer": str(peer)})


def _summary(
    cast: Cast, members: list[Ended], seconds: float, protections: Mapping[str, str], counted: str
) -> dict[str, Any]:
    scenario = cast.scenario
    peers = [m for m in members if m.role == "peer"]
    whole = [m for m in members if m.ended == "finished"]
    # A star has one model, and its clients hold copies of it: the mean over members is that model's accuracy.
    # Tampering peers are left out: what they say of themselves is not what the honest ones got.
    accuracies = [m.accuracy for m in whole if m.accuracy is not None and m.index not in cast.tampering]
    sent = [m.bytes_sent / max(m.rounds, 1) for m in peers if m.rounds]
    heard = [m.bytes_received / m.rounds for m in peers if m.rounds]
    vantage = scenario.adversary.vantage if scenario.adversary else None
    seats = scenario.adversary.places if scenario.adversary else ()
    return {
        "title": scenario.title or f"{scenario.task.name}, {scenario.strategy.name}",
        "world": scenario.world,
        "strategy": scenario.strategy.name,
        "task": scenario.task.name,
        "model": cast.model.model_dump(mode="json"),
        "parameters": int(cast.initial.size),
        "peers": [asdict(m) for m in members],
        "edges": [list(edge) for edge in cast.edges],
        "adversary": {
            "vantage": vantage,
            "controls": sorted(cast.tampering | {i for i, name in enumerate(cast.names) if name in seats}),
            "taps_wire": bool({"wire", "relay"} & set(seats)),
        }
        if vantage
        else None,
        "rounds": max((m.rounds for m in members), default=0),
        "finished": len(whole),
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "accuracy_lowest": min(accuracies, default=None),
        "accuracy_by_role": _by_role([m for m in whole if m.index not in cast.tampering]),
        "alarms": sum(m.alarms for m in members),
        "first_alarm": min((m.first_alarm for m in members if m.first_alarm is not None), default=None),
        "alarmed": int(any(m.alarms for m in members)),  # numbers: a study takes their means
        "stopped_by_alarm": int(any(m.ended.startswith("hijacked") for m in members)),
        "bytes_per_peer_round": sum(sent) / len(sent) if sent else None,
        "bytes_received_per_peer_round": sum(heard) / len(heard) if heard else None,
        "bytes_sent": sum(m.bytes_sent for m in members),
        "cover_bytes": sum(m.cover_bytes for m in members),
        "missed_slots": sum(m.missed_slots for m in members),
        "bytes_counted": counted,
        "seconds": seconds,
        "seconds_per_round": seconds / max(1, max((m.rounds for m in members), default=1)),
        "protections": dict(protections),
        "guards": [g.model_dump(mode="json") for g in scenario.guards],
        "codec": scenario.codec.model_dump(mode="json"),
        "split": cast.divided,
        "scenario": scenario.model_dump(mode="json"),
        "attacks": [],
    }


def _by_role(members: Sequence[Ended]) -> dict[str, float]:
    """Mean accuracy by role: a server whose clients are told less than its model has another one than they."""
    found: dict[str, list[float]] = {}
    for member in members:
        if member.accuracy is not None:
            found.setdefault(member.role, []).append(member.accuracy)
    return {role: sum(values) / len(values) for role, values in found.items()}


def versions() -> dict[str, str]:
    """What this run ran on."""
    found = {"python": platform.python_version(), "platform": platform.machine()}
    for package in ("veilmesh", "torch", "numpy", "libp2p", "cryptography"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path`, whole or not at all. Raises BadInput if it cannot be written."""
    part = path.with_name(path.name + ".part")
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    with writing(path):
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def read_json(path: Path) -> Any:
    """What is in `path`. Raises BadInput if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"There is no {path}; give the folder of a finished run.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); run it again.") from None
