"""Runs of split mode in tests: in one process, and what training without a cut comes to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario, override
from veilmesh.tasks.work import Train

__all__ = ["DEEP", "Played", "in_hand", "played", "prepared", "unsplit"]

DEEP = {"name": "mlp", "hidden": [64, 48, 32]}
"""A network with a place for every stage of a chain of four."""

BASE: dict[str, Any] = {
    "world": "virtual", "peers": 1, "rounds": 6, "evaluate_every": 3, "task": "digits", "strategy": "vanilla",
    "training": {"batch": 16, "local_steps": 4, "learning_rate": 0.1},
}  # fmt: skip


@dataclass(frozen=True)
class Played:
    """A run that has ended."""

    cast: Cast
    folder: Path
    summary: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def models(self) -> list[Vector]:
        """The whole network of every data owner."""
        return self.cast.models(self.folder / "checkpoints", self.cast.names)

    @property
    def ended(self) -> dict[str, str]:
        return {member["name"]: member["ended"] for member in self.summary["peers"]}

    def noted(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


def prepared(**changes: Any) -> Cast:
    """The cast of a small run; dots in names are double underscores here: `training__batch=8`."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return Cast.prepare(Scenario.parse(override(BASE, dotted)))


def played(folder: Path, **changes: Any) -> Played:
    """Play a small run to its end."""
    torch.set_num_threads(1)
    cast = prepared(**changes)
    summary = run_scenario(cast, folder, lambda message: None)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return Played(cast, folder, summary, events)


def unsplit(cast: Cast, head: int = 0) -> Vector:
    """What this project's own trainer makes of one data owner's examples in as many rounds, with nothing cut."""
    trainer, x = Cast.learner(cast, head), np.array(cast.initial)
    for round_ in range(cast.scenario.rounds):
        [trained] = trainer.run([Train(round_, x)])
        x = x + trained.update  # type: ignore[attr-defined]  # a Trained
    return x


def in_hand(cast: Cast, network: type[VirtualNetwork] = VirtualNetwork, **options: Any) -> VirtualNetwork:
    """The machines of a cast in virtual time, with no record of anything."""
    ids = tuple(PeerId(name) for name in cast.names)
    players = {
        ids[i]: Player(cast.machine(i, ids), cast.executor(i), frozenset(ids[n] for n in cast.neighbours(i)))
        for i in range(cast.size)
    }
    return network(players, **options)
