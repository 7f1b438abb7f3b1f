"""Differential privacy of a run: what is refused, what record and report say, and that the noise is in force."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.core import BadInput
from veilmesh.crypto.accounting import correlated_multiplier, gaussian_epsilon, rdp_epsilon
from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import audit
from veilmesh.sim.cast import Cast
from veilmesh.sim.claims import Claim, judge
from veilmesh.sim.privacy import privacy_figures, privacy_of
from veilmesh.sim.report import write_report
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.tasks import Train

SMALL: dict[str, Any] = {
    "world": "virtual", "peers": 4, "rounds": 4, "evaluate_every": 4, "task": "digits",
    "model": {"name": "mlp", "hidden": []},
}  # fmt: skip
DP = {"clip": 1.0, "noise": 2.0, "delta": 1e-4}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scenario(private: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    training = {"batch": 16, "learning_rate": 0.1, **changes.pop("training", {})}
    return Scenario.parse({**SMALL, **changes, "training": {**training, **({"private": private} if private else {})}})


def ran(folder: Path, private: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return run_in_virtual_time(Cast.prepare(scenario(private, **changes)), folder, lambda *_: None)


def models(private: dict[str, Any] | None = None, rounds: int = 1, **changes: Any) -> np.ndarray:
    """Every peer's last model, by its own machine and trainer: (n, d)."""
    from veilmesh.sim.network import Player, VirtualNetwork

    cast = Cast.prepare(scenario(private, rounds=rounds, **changes))
    ids = tuple(PeerId(name) for name in cast.names)
    near = [frozenset(ids[n] for n in cast.neighbours(i)) for i in range(cast.size)]
    players = {p: Player(cast.machine(i, ids), cast.executor(i), near[i]) for i, p in enumerate(ids)}
    VirtualNetwork(players).run(1e6)
    return np.stack([player.result.parameters for player in players.values()])  # type: ignore[attr-defined]  # an Outcome


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "changes", "why"),
    [
        ({"clip": 0}, {}, "clip"),
        ({"noise": 0}, {}, "noise"),
        ({"delta": 0}, {}, "delta"),
        ({"delta": 1.0}, {}, "delta"),
        ({"epsilon": 3}, {}, "There is no field of training.private 'epsilon'"),
        (DP, {"checkpoints": {"every": 2}}, "leave out checkpoints"),
        ({**DP, "pair": 3}, {"strategy": "fedavg"}, "set strategy to gossip"),
        ({**DP, "pair": 3}, {"training": {"optimizer": "adam"}}, "take sgd, or pair = 0"),
        ({**DP, "pair": 3}, {"world": "libp2p", "door": {"open": True}}, "door.open to false"),
        (None, {"guards": ["correlated-noise"], "strategy": "choco"}, "set strategy to gossip"),
        (None, {"guards": ["private-update"], "checkpoints": {"every": 2}}, "leave out checkpoints"),
    ],
)
def test_what_cannot_be_kept_is_refused_when_it_is_read(private: Any, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(private, **changes)
    assert why in str(caught.value)


def test_without_an_accountant_a_private_run_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(BadInput, match=r"veilmesh\[privacy\]"):
        Cast.prepare(scenario(DP))
    Cast.prepare(scenario(None, guards=["private-update"]))  # its figure needs no library
    Cast.prepare(scenario(DP, training={"batch": 10_000}))  # nor does that of batches of everything
    Cast.prepare(scenario())


def test_so_little_noise_that_no_figure_follows_is_refused() -> None:
    with pytest.raises(BadInput, match="raise its noise"):
        Cast.prepare(scenario(None, guards=[{"name": "private-update", "noise": 0.001}]))


# --- what a run says -----------------------------------------------------------------------------------------------


def test_a_run_without_says_so(tmp_path: Path) -> None:
    summary = ran(tmp_path, guards=["noise"])
    assert (summary["epsilon"], summary["delta"]) == (None, None)
    assert summary["privacy"] == {"says": "no differential privacy", "guarantees": []}
    assert "no differential privacy" in write_report(tmp_path).read_text()
    cells = [{"axes": {}, "summary": summary}]
    assert judge(Claim("x", "worst(epsilon) > 0"), cells).holds is None  # not run, rather than true


def test_a_private_run_says_what_it_protects_from_whom(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    summary = ran(tmp_path, DP, training={"local_steps": 2})
    shard = min(len(s) for s in Cast.prepare(scenario()).shards)
    assert summary["epsilon"] == pytest.approx(rdp_epsilon(16 / shard, 2.0, 8, 1e-4))
    assert summary["delta"] == 1e-4
    [guarantee] = summary["privacy"]["guarantees"]
    assert guarantee["epsilon_prv"] < summary["epsilon"]
    assert (guarantee["steps"], guarantee["rate"]) == (8, 16 / shard)
    text = write_report(tmp_path).read_text()
    for words in ("epsilon = ", "delta = 0.0001", "one example of one peer", "all other members together"):
        assert words in text
    assert "but who knows the scenario&#39;s seed" in text
    assert judge(Claim("x", "worst(epsilon) > 0"), [{"axes": {}, "summary": summary}]).holds


def test_a_guard_protects_whole_updates_at_twice_the_sensitivity() -> None:
    cast = Cast.prepare(scenario(None, rounds=9, guards=[{"name": "private-update", "noise": 6.0, "delta": 1e-3}]))
    [guarantee] = privacy_of(cast)
    assert guarantee.epsilon == pytest.approx(gaussian_epsilon(3.0, 9, 1e-3))
    assert "all that one peer says" in guarantee.protects


def test_shared_noise_counts_against_the_curious_and_as_many_as_tamper() -> None:
    import networkx as nx

    def multiplier(**changes: Any) -> float:
        guard = {"name": "correlated-noise", "noise": 1.0, "pair": 30.0, **changes.pop("guard", {})}
        [guarantee] = privacy_of(Cast.prepare(scenario(None, peers=6, guards=[guard], **changes)))
        return 2 * guarantee.multiplier

    graph = nx.complete_graph(6)
    assert multiplier() == pytest.approx(correlated_multiplier(graph, 1.0, 30.0, 1))
    assert multiplier(guard={"colluders": 3}) == pytest.approx(correlated_multiplier(graph, 1.0, 30.0, 3))
    adversary = {"vantage": "peer:0", "tamper": "sign-flip", "peers": [0, 1]}
    assert multiplier(adversary=adversary) == pytest.approx(correlated_multiplier(graph, 1.0, 30.0, 2))
    assert multiplier(topology="ring", guard={"colluders": 2}) == 1.0  # both neighbours of somebody


def test_one_that_did_not_finish_may_have_said_one_round_more() -> None:
    cast = Cast.prepare(scenario(None, rounds=9, guards=["private-update"]))

    def steps(trained: dict[int, int], unfinished: list[int]) -> int:
        [guarantee] = privacy_figures(cast, trained, unfinished)["privacy"]["guarantees"]
        return int(guarantee["steps"])

    assert steps({0: 5, 1: 5}, []) == 5
    assert steps({0: 5, 1: 5}, [1]) == 6
    assert steps({0: 5, 1: 3}, [1]) == 5
    assert steps({}, [0]) == 1


# --- that it is in force -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["training", "guard"])
def test_on_a_complete_graph_shared_noise_cancels_and_on_a_ring_it_does_not_yet(where: str) -> None:
    pytest.importorskip("opacus")

    def end(pair: float, **changes: Any) -> np.ndarray:
        if where == "training":
            return models({**DP, "pair": pair}, **changes)
        return models(None, guards=[{"name": "correlated-noise", "noise": 0.1, "pair": pair}], **changes)

    np.testing.assert_allclose(end(100.0), end(0.0), rtol=0, atol=3e-4)
    assert np.abs(end(100.0, topology="ring", peers=6) - end(0.0, topology="ring", peers=6)).max() > 0.5


@pytest.mark.parametrize("name", [n for n in ("gossip", "fedavg", "scaffold", "choco") if n in STRATEGIES.names()])
def test_private_training_runs_under_any_protocol(tmp_path: Path, name: str) -> None:
    pytest.importorskip("opacus")
    summary = ran(tmp_path, {**DP, "noise": 20.0}, strategy=name)
    assert summary["finished"] == 4 + (name in ("fedavg", "scaffold"))
    assert 0 < summary["epsilon"] < 1


def test_the_scorer_knows_the_poisson_samples_and_a_round_without_any_has_no_row(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    given = {"adversary": {"vantage": "peer:1"}, "rounds": 5, "training": {"batch": 1}}
    summary = ran(tmp_path, DP, **given)
    assert summary["epsilon"] > 0
    cast = Cast.prepare(scenario(DP, **given))
    ids = [PeerId(name) for name in cast.names]
    sizes = {len(cast.drawn(i, r)) for i in range(4) for r in range(5)}
    assert 0 in sizes
    assert max(sizes) > 1
    assert audit(tmp_path, cast, ids, Choice(name="label-recovery"), "peer:1")["labels_right"] is not None
    assert audit(tmp_path, cast, ids, Choice(name="analytic"), "peer:1")["pictures"] > 0


def test_where_others_may_join_noise_is_drawn_from_the_systems_randomness() -> None:
    pytest.importorskip("opacus")
    cast = Cast.prepare(scenario(DP, world="libp2p", door={"open": True}))
    task = Train(0, cast.initial)
    first, second = (cast.learner(0).run([task])[0].update for _ in range(2))  # type: ignore[attr-defined]  # a Trained
    assert not np.array_equal(first, second)
    with pytest.raises(BadInput, match="in secret"):
        cast.drawn(0, 0)
