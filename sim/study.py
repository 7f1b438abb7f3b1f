"""A study: a scenario with axes, attacks and claims, read from TOML and run cell by cell.

The quick form of a study is smaller, never softer: it checks the same claims, at the sizes its file says.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from veilmesh.attacks.inference.base import registry_of
from veilmesh.core import BadInput
from veilmesh.core.registry import first_complaint, unknown
from veilmesh.sim.cell import Cell, shrunk
from veilmesh.sim.claims import Claim, Verdict, judge
from veilmesh.sim.engines import ForkEngine, Job
from veilmesh.sim.record import read_json, versions, write_json
from veilmesh.sim.run import Assignment, RunJob
from veilmesh.sim.scenario import Choice, Scenario, override, read_toml

__all__ = ["Cell", "Study", "find_studies", "run_study"]

Axis = list[Any] | dict[str, dict[str, Any]]
"""Values of one dotted field; or named sets of changes, where several fields move together."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Head(_Strict):
    title: str
    source: str = ""
    about: str = ""


class _Attack(BaseModel):
    """An attack by name with its options; `where` chooses cells by their axes."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    title: str = ""
    vantage: str | None = None
    where: dict[str, Any | list[Any]] = {}

    def matches(self, axes: Mapping[str, Any]) -> bool:
        return all(axes.get(k) in (v if isinstance(v, list) else [v]) for k, v in self.where.items())

    def check(self, axes: Mapping[str, list[Any]]) -> None:
        """Raises BadInput if there is no such attack, option, axis or value: before anything is run for it."""
        self.assignment().attack.build(registry_of(self.name))
        for axis, wanted in self.where.items():
            for value in wanted if isinstance(wanted, list) else [wanted]:
                _require_place(f"attack {self.name!r}", axis, value, axes)

    def assignment(self) -> Assignment:
        return Assignment(Choice(name=self.name, **(self.model_extra or {})), self.vantage, self.title)


class _ClaimText(_Strict):
    says: str
    check: str
    source: str = ""


class _Quick(_Strict):
    scenario: dict[str, Any] = {}
    axes: dict[str, Axis] = {}


class Study(_Strict):
    """A study file, checked."""

    study: _Head
    scenario: dict[str, Any] = {}
    axes: dict[str, Axis] = {}
    attacks: tuple[_Attack, ...] = ()
    claims: tuple[_ClaimText, ...] = ()
    quick: _Quick = Field(default_factory=_Quick)
    _changed: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def changed(self) -> Mapping[str, Any]:
        """What was set otherwise than its file says, by dotted field."""
        return self._changed

    def changing(self, changes: Mapping[str, Any]) -> Self:
        """This study with other values of its scenario, in every cell of either form.

        `changes` are by dotted field, as `override` takes them: another data set, say. Raises BadInput where an axis
        says the same field: its cells would all be alike, or say what they are not.
        """
        for path in changes:
            for axis, fields in self._set_by_axes():
                if any(_clashes(path, field) for field in fields):
                    raise BadInput(
                        f"{self.study.title}: {path!r} cannot be set, since axis {axis!r} of the study says it in "
                        "every cell; leave it out, or write a study of your own."
                    )
        quick = self.quick.model_copy(update={"scenario": {**self.quick.scenario, **changes}})
        changed = self.model_copy(update={"scenario": override(self.scenario, changes), "quick": quick})
        changed._changed = {**self._changed, **changes}
        return changed

    def _set_by_axes(self) -> Iterator[tuple[str, list[str]]]:
        """Every axis, of either form, with the fields that it sets."""
        for axis, values in [*self.axes.items(), *self.quick.axes.items()]:
            yield axis, [f for arm in values.values() for f in arm] if isinstance(values, dict) else [axis]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The study in a file. Raises BadInput: one sentence."""
        try:
            study = cls.model_validate(read_toml(path))
        except ValidationError as error:
            raise BadInput(f"{path} is not a study: {first_complaint(error)}.") from None
        for claim in study.claims:
            Claim(claim.says, claim.check).tree()
        return study

    def cells(self, quick: bool = False) -> list[Cell]:
        """Every cell. Raises BadInput if one of them is not a possible scenario."""
        base = override(self.scenario, self.quick.scenario) if quick else self.scenario
        axes = {**self.axes, **self.quick.axes} if quick else self.axes
        self._check_places()
        for axis, values in axes.items():
            if not values:
                raise BadInput(f"{self.study.title}: axis {axis!r} has no values; give it some, or leave it out.")
        return [self._cell(base, point) for point in _points(axes)]

    def size(self) -> str:
        """How the quick form is smaller than the whole, in words."""
        return shrunk(self.cells(), self.cells(quick=True))

    def _check_places(self) -> None:
        """Raises BadInput where an attack or a claim asks for cells that no form of this study has.

        A misspelt place would otherwise be an attacker that never came, or a claim that is quietly not run.
        """
        every = {**self.axes, **self.quick.axes}
        axes = {axis: [*self.axes.get(axis, ()), *self.quick.axes.get(axis, ())] for axis in every}
        for attack in self.attacks:
            attack.check(axes)
        named = {"attack": [a.name for a in self.attacks], "title": [a.title for a in self.attacks]}
        known: dict[str, list[Any]] = {**axes, **named}
        for claim in self.claims:
            where = f"claim {claim.says!r}"
            for place in Claim(claim.says, claim.check).places():
                _require_place(where, place.pop("by", None), ..., axes)
                place.pop("vantage", None)
                for name, value in place.items():
                    _require_place(where, name, value, known)

    def _cell(self, base: Mapping[str, Any], point: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> Cell:
        scenario = override(base, {path: v for _, changes in point.values() for path, v in changes.items()})
        axes = {axis: value for axis, (value, _) in point.items()}
        scenario.setdefault("title", ", ".join(map(str, axes.values())))
        where = f"{self.study.title}, {scenario['title'] or 'scenario'}"
        attacks = tuple(a.assignment() for a in self.attacks if a.matches(axes))
        parsed = Scenario.parse(scenario, where)
        for attack in attacks:
            vantage = attack.vantage or (parsed.adversary.vantage if parsed.adversary else None)
            if vantage is None:
                raise BadInput(f"{where}: an attack needs a vantage, its own or scenario.adversary.vantage.")
            if not parsed.keeps(vantage):
                raise BadInput(
                    f"{where}: what {vantage} sees would not be kept for {attack.attack.name!r}; set transcript.keep "
                    "to 'all', or scenario.adversary.vantage to that place."
                )
        return Cell(axes, parsed, attacks)


def _clashes(change: str, field: str) -> bool:
    """Whether an axis that sets `field` would undo a change, or part of it. A name on an axis sets all of the thing."""
    whole = field.removesuffix(".name")
    return change == whole or change.startswith(f"{whole}.") or field.startswith(f"{change}.")


def _require_place(who: str, axis: str | None, value: Any, axes: Mapping[str, list[Any]]) -> None:
    """Raises BadInput unless there is that axis (None: none was asked for) and, but for `...`, that value on it."""
    if axis is None:
        return
    if axis not in axes:
        raise BadInput(f"{who}: {unknown('axis', axis, list(axes))}")
    if value is not ... and value not in axes[axis]:
        raise BadInput(f"{who}: {unknown(f'value of {axis!r}', str(value), [str(v) for v in axes[axis]])}")


def _points(axes: Mapping[str, Axis]) -> Iterator[dict[str, tuple[Any, Mapping[str, Any]]]]:
    """Every combination: {axis: (its value, the changes that value stands for)}."""
    columns = []
    for axis, values in axes.items():
        pairs = values.items() if isinstance(values, dict) else [(v, {axis: v}) for v in values]
        columns.append([(axis, pair) for pair in pairs])
    for combination in itertools.product(*columns):
        yield {axis: (value, changes) for axis, (value, changes) in combination}


@dataclass
class StudyResult:
    """What a study came to."""

    folder: Path
    verdicts: list[Verdict]
    cells: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tally(self) -> tuple[int, int, int]:
        """How many claims hold, fail, and were not run."""
        holds = [v.holds for v in self.verdicts]
        return holds.count(True), holds.count(False), holds.count(None)


def run_study(
    study: Study, folder: Path, *, quick: bool, progress: Callable[[Job, Mapping[str, Any]], None]
) -> StudyResult:
    """Run what has not been run, judge the claims, write `folder`/summary.json. Raises BadInput."""
    cells = study.cells(quick)
    fresh = [cell for cell in cells if not cell.is_done(folder)]
    jobs = [RunJob(cell.name, cell.scenario, cell.attacks, cell.folder(folder)) for cell in fresh]
    # Real meshes are timed, so they have the machine to themselves; simulations share it.
    alone = [job for job in jobs if job.scenario.world == "libp2p"]
    shared = [job for job in jobs if job.scenario.world != "libp2p"]
    for some, workers in ((alone, 1), (shared, os.cpu_count() or 1)):
        for _ in ForkEngine(workers).map(some, progress):
            pass
    done = [
        {"key": cell.key, "axes": dict(cell.axes), "summary": read_json(cell.folder(folder) / "summary.json")}
        for cell in cells
    ]
    verdicts = [judge(Claim(c.says, c.check, c.source or study.study.source), done) for c in study.claims]
    form = {"quick": quick, "size": study.size() if quick else "", "changed": dict(study.changed)}
    write_json(
        folder / "summary.json",
        {
            "study": study.study.model_dump() | form,
            "cells": done,
            "claims": [asdict(v) for v in verdicts],
            "versions": versions(),
        },
    )
    return StudyResult(folder, verdicts, done)


def find_studies(path: Path) -> Sequence[Path]:
    """The study files at `path`: itself, or every *.toml below it. Raises BadInput if there is none."""
    if path.is_dir():
        found = sorted(path.rglob("*.toml"))
        if not found:
            raise BadInput(f"There is no study (*.toml) in {path}.")
        return found
    if not path.exists():
        raise BadInput(f"There is no study {path}; check the path.")
    return [path]
