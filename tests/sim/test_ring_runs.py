"""All-reduce on a ring on real data, in virtual time: what it learns, what deaths cost, what its members see."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.attacks import View, observe
from veilmesh.attacks.inversion.analytic import Analytic
from veilmesh.attacks.inversion.cosine import CosineInversion
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.observation import own_data
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm.strategies.butterfly import Butterfly
from veilmesh.tasks.work import Train

torch.set_num_threads(1)

PEERS, ROUNDS = 5, 3
SCENARIO: dict[str, Any] = {
    "world": "virtual", "peers": PEERS, "rounds": ROUNDS, "evaluate_every": ROUNDS, "seed": 3, "task": "digits",
    "model": {"name": "mlp", "hidden": [32], "activation": "tanh"}, "training": {"batch": 1, "learning_rate": 0.05},
}  # fmt: skip


def ring(order: str = "roster") -> dict[str, Any]:
    return {"name": "ring-all-reduce", "order": order}


@lru_cache(maxsize=4)
def meshed(order: str) -> tuple[Cast, tuple[PeerId, ...], tuple[Record, ...]]:
    """A run of a ring, with everything that was said."""
    cast = Cast.prepare(Scenario.parse({**SCENARIO, "strategy": ring(order)}))
    ids, records = tuple(PeerId(name) for name in cast.names), list[Record]()
    players = {
        ids[i]: Player(cast.machine(i, ids), cast.learner(i).run, frozenset(ids[n] for n in cast.neighbours(i)))
        for i in range(cast.size)
    }
    VirtualNetwork(players, tap=records.append).run(1e6)
    return cast, ids, tuple(records)


def seen(order: str, place: str) -> tuple[Cast, View]:
    cast, ids, records = meshed(order)
    return cast, observe(cast.vantage(place, ids), records, cast.public(ids))


def trained(cast: Cast, victim: PeerId, round_: int, start: np.ndarray) -> np.ndarray:
    """What the victim's own data make of `start`."""
    update: np.ndarray = cast.learner(list(cast.names).index(victim)).run([Train(round_, start)])[0].update  # type: ignore[attr-defined]  # a Trained
    return update


def test_it_learns_what_a_star_learns_whatever_the_order(tmp_path: Path) -> None:
    settings = {"world": "virtual", "peers": 8, "rounds": 30, "evaluate_every": 30, "partition": "label-skew"}
    accuracy = [
        run_scenario(Cast.prepare(Scenario.parse({**settings, "strategy": s})), tmp_path / str(i), lambda _: None)[
            "accuracy"
        ]
        for i, s in enumerate(["fedavg", ring(), ring("drawn")])
    ]
    assert max(accuracy) - min(accuracy) < 0.01


@pytest.mark.parametrize("order", ["roster", "drawn"])
def test_two_deaths_and_the_rest_finishes_soon_and_alike(tmp_path: Path, order: str) -> None:
    faults = [{"at": 0.2, "kill": "peer:2"}, {"at": 0.4, "kill": "peer:5"}]
    settings = {"world": "virtual", "peers": 8, "rounds": 40, "evaluate_every": 40, "partition": "label-skew"}
    cast = Cast.prepare(Scenario.parse({**settings, "strategy": ring(order), "faults": faults}))
    summary = run_scenario(cast, tmp_path, lambda _: None)
    assert summary["finished"] == 6
    assert summary["models"] == 1
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["kind"] in ("partial", "refused")]
    assert max(event["t"] for event in events) < 12  # a second to notice each death, and a quarter of the patience


@pytest.mark.parametrize("order", ["roster", "drawn"])
@pytest.mark.parametrize("place", ["peer:0", "peer:3"])
def test_a_member_reads_a_part_of_the_one_before_it_and_one_of_the_one_after_it(order: str, place: str) -> None:
    cast, view = seen(order, place)
    found = observe_updates(view)
    assert [sum(o.round == t for o in found) for t in range(ROUNDS)] == [2] * ROUNDS
    cut = Butterfly(view.public.peers, view.public.initial.size, 0, 1)
    for o in found:
        assert o.exact
        assert o.said is not None
        assert o.said.sum() in {cut.length(part) for part in cut.parts}
        np.testing.assert_allclose(o.update[o.said], trained(cast, o.victim, o.round, o.start)[o.said], atol=1e-5)
        assert not o.update[~o.said].any()
    if order == "roster":
        here = view.public.peers.index(PeerId(place))
        near = {view.public.peers[(here + step) % PEERS] for step in (-1, 1)}
        assert {o.victim for o in found} == near


@pytest.mark.parametrize(("place", "victim"), [("peer:0+peer:2", "peer:1"), ("peer:4+peer:1", "peer:0")])
def test_its_neighbours_on_both_sides_read_a_victims_whole_update(place: str, victim: str) -> None:
    cast, view = seen("roster", place)
    whole = [o for o in observe_updates(view) if o.said is None or o.said.all()]
    assert [(o.victim, o.round) for o in whole] == [(victim, t) for t in range(ROUNDS)]
    for o in whole:
        np.testing.assert_allclose(o.update, trained(cast, o.victim, o.round, o.start), atol=1e-5)


def test_on_a_drawn_ring_two_who_collude_read_whoever_is_drawn_between_them() -> None:
    cast, view = seen("drawn", "peer:0+peer:2+peer:4")
    found = observe_updates(view)
    for o in found:
        truth = trained(cast, o.victim, o.round, o.start)
        np.testing.assert_allclose(o.update[o.said], truth[o.said], atol=1e-5)
    assert any(o.said is None or o.said.all() for o in found)
    assert {o.round for o in found} == set(range(ROUNDS))


def test_an_inversion_runs_on_a_part_and_an_exact_one_on_the_whole() -> None:
    _, view = seen("roster", "peer:0")
    guesses = list(CosineInversion(iterations=20, match="said").run(view, np.random.default_rng(0)))
    assert {g.victim for g in guesses} == {"peer:1", "peer:4"}
    cast, view = seen("roster", "peer:0+peer:2")
    [guess] = [g for g in Analytic(targets=1).run(view, np.random.default_rng(0)) if g.victim == "peer:1"]
    ids = view.public.peers
    pictures, _ = own_data(cast, ids, cast.vantage("peer:1", ids))(guess.victim, guess.round)
    assert np.abs(guess.pictures - pictures).max() < 0.02
