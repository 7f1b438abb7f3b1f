"""Crafted models and echoes: what a victim trains from when a neighbour, or a server, decides it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.attacks.seen.marginal import completing, marginalised
from veilmesh.core import BadInput, LocalError, generator
from veilmesh.peer.machine import PeerId
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.scenario import Scenario
from veilmesh.tasks.work import Train

PEERS = 5
CRAFTED = {"name": "crafted-model", "payload": "untrained"}


def scenario(tamper: Any, **changes: Any) -> Scenario:
    adversary = {"vantage": changes.pop("vantage", "peer:1"), "tamper": tamper}
    data: dict[str, Any] = {
        "world": "virtual", "task": "digits", "peers": PEERS, "rounds": 5, "evaluate_every": 100, "seed": 3,
        "model": {"name": "mlp", "hidden": [12]}, "transcript": {"keep": "none"}, "adversary": adversary,
    }  # fmt: skip
    return Scenario.parse(data | changes)


class Run:
    """A whole run, with what every peer trained from and what it learned there, by (peer, round)."""

    def __init__(self, scenario: Scenario) -> None:
        self.cast = Cast.prepare(scenario)
        self.ids = [PeerId(name) for name in self.cast.names]
        self.starts: dict[tuple[int, int], np.ndarray] = {}
        self.updates: dict[tuple[int, int], np.ndarray] = {}
        self.notes: list[dict[str, Any]] = []
        players = {
            me: Player(self.cast.machine(i, self.ids), self.executor(i), self.near(i)) for i, me in enumerate(self.ids)
        }
        self.end = VirtualNetwork(players, note=self.noted).run(1000.0)
        assert not any(player.refusals for player in players.values())
        self.reasons = {getattr(player.result, "reason", None) for player in players.values()}

    def near(self, index: int) -> frozenset[PeerId]:
        return frozenset(self.ids[n] for n in self.cast.neighbours(index))

    def executor(self, index: int) -> Any:
        execute = self.cast.executor(index)

        def executed(tasks: Any) -> Any:
            results = execute(tasks)
            for task, result in zip(tasks, results, strict=True):
                if isinstance(task, Train):
                    self.starts[index, task.round] = task.parameters
                    self.updates[index, task.round] = result.update
            return results

        return executed

    def noted(self, peer: PeerId, note: Any, now: float) -> None:
        if note.kind == "tampered":
            self.notes.append({"peer": peer, **note.data})

    @property
    def initial(self) -> np.ndarray:
        return self.cast.initial


def test_state_override_sets_where_a_victim_trains() -> None:
    run = Run(scenario({**CRAFTED, "victims": [3], "first": 2, "rounds": 2}))
    assert run.reasons == {"finished"}
    for round_ in (2, 3):
        np.testing.assert_allclose(run.starts[3, round_], run.initial, atol=2e-6)
        assert np.linalg.norm(run.starts[2, round_] - run.initial) > 0.05
    for round_ in (1, 4):
        assert np.linalg.norm(run.starts[3, round_] - run.initial) > 0.05
    assert [n["guessed"] for n in run.notes] == [0.0] * 5
    assert [n["overridden"] for n in run.notes] == [0, 1, 1, 0, 0]


def test_what_the_attacker_did_not_hear_is_guessed_and_said_to_be() -> None:
    """Peer 1 of a ring hears peer 2, and of what peer 2 hears not peer 3."""
    run = Run(scenario({**CRAFTED, "victims": [2]}, topology="ring"))
    assert [round(n["guessed"], 3) for n in run.notes] == [0.333] * 4 + [0.0]
    for round_ in range(4):  # the third it took for what peer 2 said itself
        half = {peer: run.starts[peer, round_] + run.updates[peer, round_] for peer in (2, 3)}
        missed = run.starts[2, round_ + 1] - run.initial
        np.testing.assert_allclose(missed, (half[3] - half[2]) / 3, atol=2e-6)


def test_accomplices_say_alike() -> None:
    adversary = {"vantage": "peer:1", "peers": [1, 4], "tamper": CRAFTED}
    run = Run(scenario(None, adversary=adversary))
    for victim in (0, 2, 3):
        for round_ in range(1, 5):
            np.testing.assert_allclose(run.starts[victim, round_], run.initial, atol=2e-6)


def test_a_consensus_step_and_chocos_mix_are_reckoned_with() -> None:
    for strategy in ({"name": "gossip", "step": 0.4}, {"name": "choco", "step": 0.3}):
        run = Run(scenario({**CRAFTED, "victims": [3], "first": 2}, strategy=strategy))
        np.testing.assert_allclose(run.starts[3, 3], run.initial, atol=1e-5)
        assert np.linalg.norm(run.starts[2, 3] - run.initial) > 0.05


def test_a_server_says_crafted_models_to_its_victims_only() -> None:
    tamper = {**CRAFTED, "victims": [0, 2], "first": 2, "rounds": 2}
    for strategy in ("fedsgd", "fedavg", "fedprox", "scaffold"):
        run = Run(scenario(tamper, vantage="server", strategy=strategy))
        assert run.reasons == {"finished"}
        for (peer, round_), start in run.starts.items():
            assert np.array_equal(start, run.initial) == (round_ == 0 or (peer in (0, 2) and round_ in (2, 3)))
        assert [(n["peer"], n["round"], n["peers"]) for n in run.notes] == [("server", 2, 2), ("server", 3, 2)]


def test_suppressing_all_others_leaves_the_victim_alone_in_a_sum() -> None:
    tamper = {**CRAFTED, "victims": [1], "others": {"name": "suppression"}, "first": 1}
    run = Run(scenario(tamper, vantage="server", strategy="fedsgd"))
    hidden = slice(0, 64 * 12)  # the first layer's weights
    for round_ in range(1, 5):
        total = sum(run.updates[peer, round_] for peer in range(PEERS))
        np.testing.assert_allclose(total[hidden], run.updates[1, round_][hidden], atol=1e-8)
        assert run.updates[1, round_][hidden].any()


@pytest.mark.parametrize("of", ["model", "marginal"])
def test_an_echo_is_what_it_says(of: str) -> None:
    """x_v^{t+1} follows from what everybody had and the formula of the echo, to float precision."""
    run = Run(scenario({"name": "echo", "of": of, "victims": [3]}))
    half = {key: run.starts[key] + run.updates[key] for key in run.starts}
    for round_ in range(4):
        echoed = half[3, round_]
        if of == "marginal" and round_:
            echoed = half[3, round_ - 1] + PEERS * run.updates[3, round_]
        others = sum(half[peer, round_] for peer in (0, 2, 3, 4))
        np.testing.assert_allclose(run.starts[3, round_ + 1], (others + echoed) / PEERS, atol=1e-5)
        honest = sum(half[peer, round_] for peer in range(PEERS)) / PEERS
        np.testing.assert_allclose(run.starts[2, round_ + 1], honest, atol=1e-5)


def test_an_echo_makes_a_victim_learn_its_own_data_by_heart() -> None:
    changes: dict[str, Any] = {
        "rounds": 30, "partition": {"name": "dirichlet", "alpha": 0.3}, "training": {"learning_rate": 0.3},
    }  # fmt: skip
    gaps = [gap(Run(scenario(None, adversary=adversary, **changes)), 3) for adversary in (
        {"vantage": "peer:1", "peers": [0, 1, 2], "tamper": {"name": "echo", "victims": [3]}}, {"vantage": "peer:1"},
    )]  # fmt: skip
    assert gaps[0] > gaps[1] + 0.02


def gap(run: Run, peer: int) -> float:
    """A peer's accuracy on its own training data, less that on the test set."""
    from veilmesh.tasks.models.build import build_model, vector_to_parameters

    torch = pytest.importorskip("torch")
    cast, data = run.cast, run.cast.dataset
    net = build_model(cast.model.name, cast.model.options, data.shape, data.classes, 0)
    vector_to_parameters(net, run.starts[peer, max(round_ for _, round_ in run.starts)])
    mine = cast.shards[peer]

    def accuracy(x: np.ndarray, y: np.ndarray) -> float:
        with torch.no_grad():
            return float((net(torch.from_numpy(x)).argmax(1).numpy() == y).mean())

    return accuracy(data.train_x[mine], data.train_y[mine]) - accuracy(data.test_x, data.test_y)


@pytest.mark.parametrize(
    ("tamper", "changes", "says"),
    [
        (CRAFTED, {"strategy": "fedavg"}, "only the server"),
        (CRAFTED, {"strategy": "secure-groups"}, "cannot decide where others train"),
        (CRAFTED, {"vantage": "server"}, "gossip has none"),
        ({**CRAFTED, "payload": "nobody"}, {}, "payload 'nobody'"),
        ({**CRAFTED, "payload": {"functionals": 2}}, {}, "a table with a name"),
        ({**CRAFTED, "others": {"name": "untrained", "width": 2}}, {}, "width"),
        ({**CRAFTED, "victims": [5]}, {}, "no peer 5"),
        ({**CRAFTED, "payload": "imprint"}, {"model": "lenet"}, "imprint needs"),
        ("echo", {"strategy": "fedavg"}, "take gossip"),
        ("echo", {"strategy": "fedavg", "vantage": "server"}, "The server trains on nothing"),
        ("alie", {"strategy": "fedavg", "vantage": "server"}, "The server trains on nothing"),
        ("label-flip", {"strategy": "fedavg", "vantage": "server"}, "The server trains on nothing"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_runs(tamper: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Cast.prepare(scenario(tamper, **changes))


# --- the arithmetic ---------------------------------------------------------------------------------------------


def _models(seed: int, n: int) -> dict[PeerId, np.ndarray]:
    return {PeerId(f"p{i}"): generator(seed, i).normal(0, 1, 20).astype(np.float32) for i in range(n)}


@given(seed=st.integers(0, 1000), n=st.integers(2, 8), unknown=st.integers(1, 8))
def test_a_mean_without_its_known_terms_is_the_mean_of_the_others(seed: int, n: int, unknown: int) -> None:
    models, row = _models(seed, n), dict(zip(_models(0, n), generator(seed, "w").dirichlet(np.ones(n)), strict=True))
    mixed = sum(row[p] * models[p].astype(np.float64) for p in models).astype(np.float32)
    left = list(models)[: min(unknown, n)]
    rest = sum(row[p] for p in left)
    if rest < 1e-3:
        return
    known = {p: x for p, x in models.items() if p not in left}
    found, taken = marginalised(mixed, known | {PeerId("stranger"): mixed}, row)
    assert taken == pytest.approx(1 - rest, abs=1e-6)
    np.testing.assert_allclose(found, sum(row[p] / rest * models[p] for p in left), atol=1e-5 / rest)


def test_a_mean_of_nothing_but_known_terms_has_no_rest() -> None:
    models = _models(1, 2)
    row = dict.fromkeys(models, 0.5)
    with pytest.raises(LocalError):
        marginalised(models[PeerId("p0")], models, row)
    with pytest.raises(LocalError):
        completing(models[PeerId("p0")], models[PeerId("p1")], models, row, [PeerId("stranger")])


@given(seed=st.integers(0, 1000), ours=st.integers(1, 3), deaf=st.integers(0, 2))
def test_what_completes_a_mean_completes_it(seed: int, ours: int, deaf: int) -> None:
    models = _models(seed, 7)
    own, wanted = models.pop(PeerId("p0")), models.pop(PeerId("p1"))
    row = {p: 0.15 for p in models}
    bad, unheard = list(models)[:ours], list(models)[5 - deaf :]
    said, guessed = completing(wanted, own, {p: models[p] for p in models if p not in unheard}, row, bad)
    assert guessed == pytest.approx(0.15 * deaf)
    crowd = [own, *(models[p] for p in models if p not in [*bad, *unheard])]
    told = models | dict.fromkeys(bad, said) | dict.fromkeys(unheard, np.mean(crowd, axis=0))
    np.testing.assert_allclose(own + sum(row[p] * (told[p] - own) for p in told), wanted, atol=1e-5)
