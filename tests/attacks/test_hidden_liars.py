"""Active adversaries where nobody is shown an update: what they say is well formed, and does not carry the day."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.attacks.seen.shared import shared_updates
from veilmesh.attacks.tampers.base import TAMPERS, Insider
from veilmesh.attacks.view import Public, Vantage, View, observe
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import Note, PeerId
from veilmesh.peer.transcript import Record
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Outcome
from veilmesh.swarm.topology import TOPOLOGIES

D, PEERS, LIARS = 30, 8, (2, 5)


@dataclass(frozen=True)
class Trained:
    update: Vector
    loss: float = 1.0
    samples: int = 7


@dataclass(frozen=True)
class Evaluated:
    accuracy: float = 0.5
    loss: float = 1.0


@dataclass(frozen=True)
class Bowl:
    """A step goes a quarter of the way to the bottom, which is nearly everybody's."""

    bottom: Vector

    def train(self, round_: int, parameters: Vector, proximal: float = 0.0, correction: Vector | None = None) -> object:
        return Trained(np.float32(0.25) * (self.bottom - parameters))

    def evaluate(self, parameters: Vector) -> object:
        return Evaluated()


def execute(tasks: Sequence[object]) -> list[object]:
    return list(tasks)  # a task is its own answer here


def bottom(index: int) -> Vector:
    common = generator(1, "bottom").uniform(-1, 1, D)
    return (common + 0.1 * generator(1, "bottom", index).standard_normal(D)).astype(np.float32)


BREA = {"f": 2, "colluding": 1, "reach": 2.0}


def run(
    tamper: str | None,
    options: Mapping[str, Any],
    rounds: int = 12,
    tap: Callable[[Record], None] = lambda record: None,
) -> tuple[list[Outcome], list[tuple[PeerId, Note]]]:
    """A mesh of brea in virtual time: how every peer ended, and what was noted."""
    made = STRATEGIES.build("brea", BREA)
    rows = made.weights(TOPOLOGIES.build("complete").graph(PEERS, 1))
    ids = [PeerId(f"p{i}") for i in range(PEERS)]
    named = {ids[i]: {ids[j]: w for j, w in row.items()} for i, row in rows.items()}
    players, notes = {}, list[tuple[PeerId, Note]]()
    for i, me in enumerate(ids):
        kit = Kit(
            me=me, order=tuple(ids), weights=named[me], server=None, initial=np.zeros(D, np.float32), rounds=rounds,
            patience=10.0, evaluate_every=100, sealer=Sealer([], Dense(), D, 1, i), work=Bowl(bottom(i)), private=i,
        )  # fmt: skip
        machine = made.machine(kit)
        if tamper and i in LIARS:
            inside = Insider(kit, frozenset(ids[j] for j in LIARS), named)
            machine = TAMPERS.build(tamper, options).wrap(machine, inside, generator(1, "tamper", i))
        players[me] = Player(machine, execute, frozenset(ids) - {me})
    VirtualNetwork(players, note=lambda peer, note, now: notes.append((peer, note)), tap=tap).run(1000.0)
    assert not any(player.refusals for player in players.values())
    return [outcome for player in players.values() if isinstance(outcome := player.result, Outcome)], notes


@pytest.mark.parametrize(
    ("tamper", "options"),
    [("sign-flip", {"scale": 5}), ("scaled", {"factor": 1000}), ("noise", {"std": 3}), ("scaled", {"factor": 3e38})],
)
def test_a_lie_about_a_hidden_update_is_well_dealt_and_not_chosen(tamper: str, options: dict[str, Any]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        outcomes, notes = run(tamper, options)
    chosen = [note.data["peers"] for peer, note in notes if note.kind == "chosen" and peer == "p0"]
    assert chosen[0] == [f"p{i}" for i in range(PEERS) if i not in LIARS]
    assert len([note for peer, note in notes if note.kind == "tampered"]) == len(LIARS) * 12
    assert not [note for peer, note in notes if note.kind in ("fault", "abandoned")]
    assert {outcome.reason for outcome in outcomes} == {"finished"}
    assert len({outcome.parameters.tobytes() for outcome in outcomes}) == 1
    centre = np.mean([bottom(i) for i in range(PEERS) if i not in LIARS], axis=0)
    assert np.abs(outcomes[0].parameters - centre).max() < 0.15


@pytest.mark.parametrize(
    ("options", "kind", "seen_by"),
    [
        ({}, "wrong-share", {"p0", "p1", "p3", "p4", "p6", "p7"}),
        ({"promised": False}, "broken-commitment", {"p0"}),
        ({"victims": 3}, "no-sharing", {"p0", "p1", "p3", "p4", "p6", "p7"}),
    ],
)
def test_a_wrong_share_names_its_dealer(options: dict[str, Any], kind: str, seen_by: set[str]) -> None:
    outcomes, notes = run("wrong-share", options, rounds=2)
    faults = [(peer, note.data) for peer, note in notes if note.kind == "fault"]
    honest = [(peer, data) for peer, data in faults if peer not in ("p2", "p5")]
    assert {data["peer"] for _, data in honest} == {"p2", "p5"}
    assert {data["kind"] for _, data in honest} == {kind}
    assert {peer for peer, _ in honest} == seen_by
    assert not [note for _, note in notes if note.kind == "abandoned"]
    assert len({outcome.parameters.tobytes() for outcome in outcomes}) == 1


@pytest.mark.parametrize(
    ("tamper", "options", "strategy"),
    [
        ("alie", {}, "brea"),
        ("dissensus", {}, "brea"),
        ("sign-flip", {"of": "model"}, "brea"),
        ("wrong-share", {}, "gossip"),
    ],
)
def test_a_lie_that_has_no_place_is_refused(tamper: str, options: dict[str, Any], strategy: str) -> None:
    with pytest.raises(BadInput, match=r"take"):
        TAMPERS.build(tamper, options).check(strategy, 10)


def view(*controlled: int) -> View:
    """What some peers see of three rounds in which everybody is honest."""
    records: list[Record] = []
    run(None, {}, rounds=3, tap=records.append)
    ids = tuple(PeerId(f"p{i}") for i in range(PEERS))
    public = Public(
        task="bowl", shape=(1, 1, 1), classes=2, model={}, initial=np.zeros(D, np.float32), learning_rate=1.0, batch=7,
        local_steps=1, strategy="brea", codec={}, guards=(), weights={}, peers=ids,
        options=vars(STRATEGIES.build("brea", BREA)),
    )  # fmt: skip
    return observe(Vantage(frozenset(ids[i] for i in controlled)), records, public)


def test_as_many_as_may_collude_see_the_sums_and_no_update() -> None:
    found = [one for one in shared_updates(view(1)) if one.members != ("p1",)]
    assert [one.round for one in found] == [0, 1, 2]
    assert all(len(set(one.members) - {"p1"}) >= PEERS - 3 for one in found)
    wanted = np.mean([np.float32(0.25) * bottom(int(peer[1:])) for peer in found[0].members], axis=0)
    np.testing.assert_allclose(found[0].mean, wanted, atol=1e-3)
    assert found[1].start.any()
    assert all(len(one.among) >= PEERS - 3 for one in observe_updates(view(1)))


def test_one_more_sees_every_update() -> None:
    alone = [one for one in observe_updates(view(1, 6)) if not one.among and one.round == 0]
    assert {one.victim for one in alone} == {f"p{i}" for i in range(PEERS) if i not in (1, 6)}
    for one in alone:
        np.testing.assert_allclose(one.update, np.float32(0.25) * bottom(int(one.victim[1:])), atol=1e-3)
