"""What a scenario says of local training reaches the peers, and what an adversary makes of it is what was trained."""

from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.attacks import Observed, observe, observe_updates
from veilmesh.attacks.inversion.analytic import Analytic
from veilmesh.attacks.inversion.cosine import CosineInversion
from veilmesh.attacks.inversion.labels import LabelRecovery
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.scenario import Scenario
from veilmesh.tasks.work import Train, Trained


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Run:
    """A scenario in virtual time, with everything that was said."""

    def __init__(self, strategy: Any, training: dict[str, Any], **changes: Any) -> None:
        given = {"world": "virtual", "peers": 4, "rounds": 6, "partition": "label-skew", **changes}
        scenario = Scenario.parse({**given, "strategy": strategy, "training": {"batch": 8, **training}})
        self.cast = Cast.prepare(scenario)
        self.ids = tuple(PeerId(name) for name in self.cast.names)
        self.records: list[Record] = []
        members = range(self.cast.size)
        self.players = {self.ids[i]: self._player(i) for i in members}
        VirtualNetwork(self.players, tap=self.records.append).run(1e6)

    def _player(self, index: int) -> Player:
        near = frozenset(self.ids[n] for n in self.cast.neighbours(index))
        return Player(self.cast.machine(index, self.ids), self.cast.learner(index).run, near)

    @property
    def models(self) -> list[np.ndarray]:
        return [player.result.parameters for player in self.players.values()]  # type: ignore[attr-defined]  # an Outcome

    def seen(self, place: str) -> list[Observed]:
        view = observe(self.cast.vantage(place, self.ids), self.records, self.cast.public(self.ids))
        return observe_updates(view)

    def trained(self, one: Observed) -> np.ndarray:
        """The update that the victim's own data come to from where it is said to have begun, as plain SGD."""
        [result] = self.cast.learner(self.ids.index(one.victim)).run([Train(one.round, one.start)])
        assert isinstance(result, Trained)
        return result.update


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedprox_without_its_term_is_fedavg_to_the_bit(optimizer: str) -> None:
    training = {"local_steps": 3, "learning_rate": 0.01, "optimizer": optimizer}
    plain = Run("fedavg", training)
    prox = Run({"name": "fedprox", "mu": 0}, training)
    other = Run({"name": "fedprox", "mu": 1}, training)
    assert [m.tobytes() for m in prox.models] == [m.tobytes() for m in plain.models]
    assert [m.tobytes() for m in other.models] != [m.tobytes() for m in plain.models]


def test_the_optimizer_is_the_scenarios() -> None:
    sgd, adam = (Run("gossip", {"optimizer": o}, rounds=1) for o in ("sgd", "adam"))
    rate = sgd.cast.scenario.training.learning_rate
    moved = np.abs(np.array(adam.models) - adam.cast.initial).max()
    assert moved == pytest.approx(rate, rel=0.05)  # Adam's first step is as long as the rate, wherever it goes
    assert moved > np.abs(np.array(sgd.models) - sgd.cast.initial).max()


@pytest.mark.parametrize(
    ("strategy", "training", "says"),
    [
        ("scaffold", {"optimizer": "adam"}, "plain sgd"),
        ("scaffold", {"momentum": 0.9}, "plain sgd"),
        ("gossip", {"optimizer": "adam", "momentum": 0.9}, "its own momentum"),
        ("gossip", {"optimizer": "adagrad"}, "optimizer"),
        ("fedsgd", {"local_steps": 2}, "one local step"),
    ],
)
def test_training_that_cannot_be_is_refused_in_a_sentence(strategy: str, training: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Scenario.parse({"strategy": strategy, "training": training})


def test_a_server_of_scaffold_sees_gradients_free_of_the_correction() -> None:
    run = Run("scaffold", {"learning_rate": 0.1})
    seen = run.seen("server")
    assert [o.round for o in seen] == [*range(6)] * 4
    assert all(o.exact for o in seen)
    for one in seen:
        np.testing.assert_allclose(one.update, run.trained(one), atol=2e-6)


def test_after_several_corrected_steps_too_the_correction_is_gone() -> None:
    """What is left is -K lr times the mean of the gradients on the way, and so it is what c_i becomes."""
    steps, rate = 4, 0.1
    run = Run("scaffold", {"learning_rate": rate, "local_steps": steps}, rounds=3)
    last = {o.victim: o.update for o in run.seen("server") if o.round == 2}
    for victim, update in last.items():
        mine = vars(run.players[victim].machine)["_mine"]
        np.testing.assert_allclose(update, -steps * rate * mine, atol=1e-5)


@pytest.mark.parametrize(("strategy", "topology"), [("diloco", "complete"), ("gossip", "complete")])
def test_a_neighbour_follows_where_rounds_begin(strategy: str, topology: str) -> None:
    run = Run(strategy, {"learning_rate": 0.1, "local_steps": 3}, topology=topology)
    seen = run.seen("peer:1")
    assert [o.round for o in seen] == [*range(6)] * 3
    assert all(o.exact for o in seen)
    for one in seen:
        np.testing.assert_allclose(one.update, run.trained(one), atol=2e-5)


@pytest.mark.parametrize("attack", [Analytic(), CosineInversion(iterations=1), LabelRecovery()])
def test_an_attack_that_takes_updates_for_gradients_is_refused_behind_adam(attack: Any) -> None:
    run = Run("gossip", {"optimizer": "adam", "batch": 1}, rounds=1, model={"name": "mlp", "hidden": [16]})
    public = run.cast.public(run.ids)
    assert public.optimizer == "adam"
    view = observe(run.cast.vantage("peer:0", run.ids), run.records, public)
    with pytest.raises(BadInput, match="adam"):
        list(attack.run(view, np.random.default_rng(0)))


@pytest.mark.parametrize("at", ["mix", "own"])
def test_an_adversary_knows_where_choco_takes_its_gradients(at: str) -> None:
    run = Run({"name": "choco", "step": 0.4, "at": at}, {})
    seen = [one for one in run.seen("peer:0") if one.round > 0]
    assert {one.round for one in seen} == set(range(1, 6))
    for one in seen:
        assert one.exact
        np.testing.assert_allclose(one.update, run.trained(one), atol=2e-6)
