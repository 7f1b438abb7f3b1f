"""One job: run a scenario in its world, then let the attacks look at it."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.store import writing
from veilmesh.sim.audit import attach, audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.continuation import claimed, cut_figures, stored_identity
from veilmesh.sim.engines import ForkEngine, Progress
from veilmesh.sim.invite import Invite
from veilmesh.sim.record import Watch, fresh, read_json
from veilmesh.sim.resume import (
    Resumption,
    checkpoints_of,
    last_cut,
    refuse_what_cannot_resume,
    scenario_digest,
)
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.traffic import attach_traffic

__all__ = ["COMPLETE", "Assignment", "RunJob", "attack_run", "join_run", "run_scenario", "take_up"]

COMPLETE = "complete"
"""The file that is written last: a run without it was broken off."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attack, from where it is made (None: from where the scenario's adversary sits), and what it is called."""

    attack: Choice
    vantage: str | None = None
    title: str = ""


def run_scenario(cast: Cast, folder: Path, progress: Progress, resumed: Resumption | None = None) -> dict[str, Any]:
    """Run a prepared scenario in the world it names, or go on with it from `take_up`; its summary. Raises BadInput."""
    refuse_what_cannot_resume(cast)
    with claimed(folder) if cast.scenario.checkpoints.every else contextlib.nullcontext():
        if resumed:
            _rewind(cast, folder, resumed)
        else:
            fresh(folder)
        _run(cast, folder, progress, resumed)
        return attach_traffic(folder, cast)


def take_up(folder: Path, rounds: int | None = None) -> tuple[Cast, Resumption]:
    """A broken-off run's cast, and where it is to go on, until `rounds` (None: as many as it was to have).

    Changes nothing. Raises BadInput if there is nothing to go on from, or nothing left to do.
    """
    cast, ids = open_run(folder)
    run, was = read_json(folder / "run.json"), cast.scenario.rounds
    cast = replace(cast, scenario=cast.scenario.model_copy(update={"rounds": rounds or was}))
    if run.get("digest", digest := scenario_digest(cast.scenario)) != digest:
        raise BadInput(
            f"{folder} is of a scenario that means something else here: another version of veilmesh made it, or its "
            "run.json was changed; run it again."
        )
    _unfinished(folder, rounds or was)
    resumed = last_cut(folder, cast, ids, run.get("resumed_from", ()))
    if cast.scenario.world != "virtual" and [stored_identity(folder, cast, i) for i in range(cast.size)] != ids:
        raise BadInput(f"{folder / 'identities'} does not hold the keys of this run's members; run it again.")
    if resumed.round > cast.scenario.rounds:
        raise BadInput(f"{folder} has done {resumed.round} rounds already; give --rounds with more.")
    return cast, resumed


def _unfinished(folder: Path, rounds: int) -> None:
    if not (folder / "summary.json").exists():
        return
    done = [(p["ended"], p["rounds"]) for p in read_json(folder / "summary.json")["peers"]]
    if all(how == "finished" and n >= rounds for how, n in done):
        raise BadInput(f"{folder} has finished its {rounds} rounds; to go on with it, give --rounds with more.")


def _rewind(cast: Cast, folder: Path, resumed: Resumption) -> None:
    """Take what lies after the cut out of the folder. Broken off itself, it can be done again."""
    ids = [PeerId(m["id"]) for m in read_json(folder / "run.json")["members"]]
    cut_figures(folder, resumed.round)
    for index, peer in enumerate(ids):
        checkpoints_of(folder, cast, index, peer).rewind(resumed.round)
    with writing(folder):
        for name in ("summary.json", "report.html", COMPLETE):
            (folder / name).unlink(missing_ok=True)


def join_run(cast: Cast, folder: Path, progress: Progress, invite: Invite, identity: Identity | None) -> dict[str, Any]:
    """Take part in a mesh that runs elsewhere, as the one member of `cast`; this member's summary. Raises BadInput."""
    from veilmesh.sim.mesh import run_mesh

    fresh(folder)
    return run_mesh(cast, folder, _watching(cast, progress), invite=invite, identity=identity)


def _watching(cast: Cast, progress: Progress) -> Watch:
    def watch(index: int, note: Note, t: float, traffic: tuple[int, int]) -> None:
        what = {"note": note.kind, "data": dict(note.data), "t": t, "sent": traffic[0], "received": traffic[1]}
        name = cast.names[index] if index < cast.size else f"peer:{index}"  # one that joined
        progress({"kind": "note", "peer": name, **what})

    return watch


def _run(cast: Cast, folder: Path, progress: Progress, resumed: Resumption | None) -> dict[str, Any]:
    watch = _watching(cast, progress)
    # Imported here: a run in one world does not need the others.
    if cast.scenario.world == "virtual":
        from veilmesh.sim.virtual import run_in_virtual_time

        return run_in_virtual_time(cast, folder, watch, resumed)
    if cast.scenario.world == "memory":
        from veilmesh.sim.memory import run_in_memory

        return run_in_memory(cast, folder, watch, resumed)
    from veilmesh.sim.mesh import run_mesh

    return run_mesh(cast, folder, watch, resumed)


@dataclass(frozen=True)
class RunJob:
    """Run a scenario into a folder, and attack it."""

    title: str
    scenario: Scenario
    attacks: tuple[Assignment, ...]
    folder: Path

    @property
    def name(self) -> str:
        return self.title

    @property
    def deadline(self) -> float:
        """The run has its own; what comes after it does not wait for anybody."""
        return 4 * self.scenario.timing.run

    def run(self, progress: Progress) -> dict[str, Any]:
        shutil.rmtree(self.folder, ignore_errors=True)  # a run that was broken off is begun anew
        cast = Cast.prepare(self.scenario)
        progress({"kind": "training", "rounds": self.scenario.rounds, "members": list(cast.names)})
        run_scenario(cast, self.folder, progress)
        members = read_json(self.folder / "run.json")["members"]
        ids = [PeerId(m["id"]) for m in members]
        jobs = [AuditJob(self.folder, cast, ids, a.attack, self._vantage(a), a.title) for a in self.attacks]

        def passed_on(job: Any, message: Mapping[str, Any]) -> None:
            progress(message)

        for job, result in ForkEngine(workers=os.cpu_count() or 1).map(jobs, passed_on):
            attach(self.folder, result)
            progress({"kind": "attacked", "attack": job.name})
        (self.folder / COMPLETE).touch()
        return dict(read_json(self.folder / "summary.json"))

    def _vantage(self, assignment: Assignment) -> str:
        if assignment.vantage:
            return assignment.vantage
        if self.scenario.adversary is None:
            raise BadInput(f"{self.title}: an attack needs a vantage, here or as scenario.adversary.vantage.")
        return self.scenario.adversary.vantage


@dataclass(frozen=True)
class AuditJob:
    """One attack on a finished run."""

    folder: Path
    cast: Cast
    ids: list[PeerId]
    attack: Choice
    vantage: str
    title: str = ""

    @property
    def name(self) -> str:
        return f"{self.attack.name} from {self.vantage}"

    @property
    def deadline(self) -> float:
        return self.cast.scenario.timing.run

    def run(self, progress: Progress) -> dict[str, Any]:
        progress({"kind": "attacking", "attack": self.attack.name, "vantage": self.vantage})
        return {**audit(self.folder, self.cast, self.ids, self.attack, self.vantage), "title": self.title}


def attack_run(folder: Path, attack: Choice, vantage: str) -> dict[str, Any]:
    """Attack a finished run and put the result into its summary; the result."""
    cast, ids = open_run(folder)
    result = audit(folder, cast, ids, attack, vantage)
    attach(folder, result)
    return result
