"""Active adversaries: what every registered tamper promises, what each one says, and to whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.tampers.base import TAMPERS, Insider, Tamper
from veilmesh.attacks.tampers.crowd import alie_z
from veilmesh.attacks.tampers.liar import Liar, Lie
from veilmesh.attacks.tampers.poison import Backdoor
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import Machine, PeerId, Received, Send, SetTimer, Started, TimerFired, WorkDone
from veilmesh.peer.transcript import Record
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Outcome
from veilmesh.swarm.topology import TOPOLOGIES

D, PEERS, LIARS = 40, 6, (1, 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "alie": {"z": 1.5}, "backdoor": {"boost": 4}, "crafted-model": {"payload": "untrained"},
}  # fmt: skip


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
    """A quadratic bowl of one's own: a step goes a quarter of the way to its bottom."""

    bottom: Vector

    def train(self, round_: int, parameters: Vector) -> object:
        return Trained(np.float32(0.25) * (self.bottom - parameters))

    def evaluate(self, parameters: Vector) -> object:
        return Evaluated()


def execute(tasks: Sequence[object]) -> list[object]:
    return list(tasks)  # a task is its own answer here


class Mesh:
    """A run in virtual time, with everything that was said in it."""

    def __init__(
        self, tamper: Tamper | None, strategy: str = "gossip", topology: str = "complete", rounds: int = 3,
        codec: str = "dense", liars: Sequence[int] = LIARS, options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        made = STRATEGIES.build(strategy, options)
        rows = made.weights(TOPOLOGIES.build(topology).graph(PEERS, 1))
        self.ids = [PeerId(f"p{i}") for i in range(PEERS)] + ([] if rows else [PeerId("hub")])
        self.rows = {self.ids[i]: {self.ids[j]: w for j, w in row.items()} for i, row in rows.items()}
        self.bottoms = [generator(1, "bottom", i).uniform(-1, 1, D).astype(np.float32) for i in range(PEERS)]
        self.records: list[Record] = []
        self.players = {}
        for i, me in enumerate(self.ids):
            kit = self.kit(i, rounds, codec)
            machine = made.machine(kit)
            if tamper and i in liars:
                inside = Insider(kit, frozenset(self.ids[j] for j in liars), self.rows, self.public(strategy, options))
                machine = tamper.wrap(machine, inside, generator(1, "tamper", i))
            near = set(kit.weights) - {me} if rows else ({self.ids[-1]} if i < PEERS else set(self.ids[:-1]))
            self.players[me] = Player(machine, execute, frozenset(near))

    def kit(self, index: int, rounds: int, codec: str) -> Kit:
        me = self.ids[index]
        return Kit(
            me=me,
            order=tuple(self.ids),
            weights=self.rows.get(me, {}),
            server=None if self.rows else self.ids[-1],
            initial=generator(1, "init").uniform(-1, 1, D).astype(np.float32),
            rounds=rounds,
            patience=10.0,
            evaluate_every=100,
            sealer=Sealer([], CODECS.build(codec), D, 1, index),
            work=Bowl(self.bottoms[min(index, PEERS - 1)]),
        )

    def public(self, strategy: str, options: Mapping[str, Any] | None) -> Public:
        return Public(
            task="none", shape=(1, 1, 3), classes=10, model={"name": "mlp"}, initial=self.initial, learning_rate=0.25,
            batch=7, local_steps=1, strategy=strategy, codec={"name": "dense"}, guards=(), weights=self.rows,
            peers=tuple(self.ids), server=None if self.rows else self.ids[-1],
            options=vars(STRATEGIES.build(strategy, options)),
        )  # fmt: skip

    def run(self) -> "Mesh":
        self.end = VirtualNetwork(self.players, tap=self.records.append).run(1000.0)
        return self

    @property
    def initial(self) -> Vector:
        return generator(1, "init").uniform(-1, 1, D).astype(np.float32)

    def update(self, index: int) -> Vector:
        """What peer `index` learns in round 0."""
        return np.float32(0.25) * (self.bottoms[index] - self.initial)

    def outcome(self, index: int) -> Outcome:
        result = self.players[self.ids[index]].result
        assert isinstance(result, Outcome)
        return result

    def said(self, sender: int, to: int, round_: int = 0) -> Vector:
        """What `sender` said to `to` in a round: the decoded update."""
        for record in self.records:
            if (record.at, record.sender) == (self.ids[to], self.ids[sender]) and record.body:
                message = messages.decode(record.body)
                if isinstance(message, messages.Update) and message.round == round_:
                    return table.decode(message.blob, D).values
        raise AssertionError("nothing was said")


def make(name: str, **options: Any) -> Tamper:
    return TAMPERS.build(name, OPTIONS.get(name, {}) | options)


@pytest.fixture(params=TAMPERS.names())
def tamper(request: pytest.FixtureRequest) -> Tamper:
    return make(request.param)


@pytest.mark.parametrize(("strategy", "codec"), [("gossip", "dense"), ("gossip", "top-k"), ("fedavg", "8-bit")])
def test_a_liar_keeps_to_the_protocol(tamper: Tamper, strategy: str, codec: str) -> None:
    """Every peer finishes every round in time, nobody refuses a frame, and what comes out is finite."""
    try:
        tamper.check(strategy, 10)
    except BadInput:
        pytest.skip("has no meaning in this protocol")
    options = {"step": 0.2} if codec == "top-k" else None
    mesh = Mesh(tamper, strategy, codec=codec, rounds=5, options=options).run()
    for index, player in enumerate(mesh.players.values()):
        assert not player.refusals
        assert (mesh.outcome(index).reason, mesh.outcome(index).rounds) == ("finished", 5)
        assert np.isfinite(mesh.outcome(index).parameters).all()
    assert mesh.end < 10.0  # nobody had to wait for a timer


def test_a_run_with_liars_is_repeatable(tamper: Tamper) -> None:
    one, two = (Mesh(tamper, rounds=4).run() for _ in range(2))
    assert [r.body for r in one.records] == [r.body for r in two.records]


def test_pictures_and_labels_are_not_written_to(tamper: Tamper) -> None:
    x = generator(2, "x").uniform(0, 1, (20, 1, 8, 8)).astype(np.float32)
    y = generator(2, "y").integers(0, 10, 20)
    kept = x.copy(), y.copy()
    new_x, new_y = tamper.data(x, y, 10, generator(2, "data"))
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])
    assert (new_x.shape, new_x.dtype, new_y.shape, new_y.dtype) == (x.shape, x.dtype, y.shape, y.dtype)
    assert new_y.min() >= 0
    assert new_y.max() < 10


def test_a_liar_that_says_the_truth_changes_nothing() -> None:
    wrapped, plain = (Mesh(tamper, rounds=6).run() for tamper in (make("scaled", factor=1.0), None))
    for index in range(PEERS):
        np.testing.assert_allclose(wrapped.outcome(index).parameters, plain.outcome(index).parameters, atol=1e-6)


@pytest.mark.parametrize("strategy", ["gossip", "fedavg"])
def test_crude_lies_are_what_they_say(strategy: str) -> None:
    to = PEERS if strategy == "fedavg" else 0
    for name, options, factor in (("sign-flip", {"scale": 5}, -5), ("scaled", {"factor": 3}, 3)):
        mesh = Mesh(make(name, **options), strategy).run()
        np.testing.assert_allclose(mesh.said(1, to), factor * mesh.update(1), atol=1e-5)
        np.testing.assert_allclose(mesh.said(2, to if to else 3), mesh.update(2), atol=1e-6)
    mesh = Mesh(make("sign-flip", scale=5, of="model"), strategy).run()
    np.testing.assert_allclose(mesh.said(1, to), -6 * mesh.initial - 5 * mesh.update(1), atol=1e-5)


def test_a_lie_of_the_second_round_counts_from_what_the_victim_holds() -> None:
    mesh = Mesh(make("sign-flip", scale=2, of="model")).run()
    held = mesh.initial + mesh.said(1, 0, 0)
    np.testing.assert_allclose(held, -2 * (mesh.initial + mesh.update(1)), atol=1e-5)
    honest = Mesh(make("sign-flip", scale=2, of="model")).run()  # the machine inside mixes, and trains on
    inside = honest.outcome(1).parameters
    last = sum((mesh.said(1, 0, r) for r in range(3)), mesh.initial)
    assert np.linalg.norm(last) > np.linalg.norm(inside)


def test_noise_is_another_for_everybody() -> None:
    mesh = Mesh(make("noise", std=0.5)).run()
    a, b = (mesh.said(1, to) - mesh.update(1) for to in (0, 2))
    assert not np.allclose(a, b)
    assert a.std() == pytest.approx(0.5, rel=0.35)


def honest_models(mesh: Mesh) -> np.ndarray:
    return np.stack([mesh.initial + mesh.update(i) for i in range(PEERS) if i not in LIARS]).astype(np.float64)


def test_alie_hides_in_the_spread_of_what_it_heard() -> None:
    mesh = Mesh(make("alie", z=1.5)).run()
    crowd = np.concatenate([honest_models(mesh), [mesh.initial + mesh.update(1)]])
    wanted = crowd.mean(axis=0) - 1.5 * crowd.std(axis=0, ddof=1)
    np.testing.assert_allclose(mesh.initial + mesh.said(1, 0), wanted, atol=1e-5)


def test_the_papers_z() -> None:
    assert alie_z(50, 24) == pytest.approx(1.43, abs=0.01)  # Baruch et al. 2019, section 3
    assert alie_z(8, 2) == 0  # nobody can be hidden behind
    assert np.isfinite([alie_z(n, f) for n in range(2, 20) for f in range(1, n)]).all()


def test_ipm_turns_the_mean_update_around() -> None:
    mesh = Mesh(make("ipm", epsilon=0.5)).run()
    crowd = np.concatenate([honest_models(mesh), [mesh.initial + mesh.update(1)]])
    wanted = mesh.initial - 0.5 * (crowd.mean(axis=0) - mesh.initial)
    np.testing.assert_allclose(mesh.initial + mesh.said(1, 0), wanted, atol=1e-5)


@pytest.mark.parametrize("liars", [(1,), (1, 4)])
def test_dissensus_of_one_leaves_every_victim_where_it_was(liars: tuple[int, ...]) -> None:
    mesh = Mesh(make("dissensus", epsilon=1), rounds=1, liars=liars).run()
    for index in set(range(PEERS)) - set(liars):
        np.testing.assert_allclose(mesh.outcome(index).parameters, mesh.initial + mesh.update(index), atol=1e-5)
    assert not np.allclose(mesh.said(1, 0), mesh.said(1, 2))  # something else to everybody


def test_on_a_ring_a_liar_knows_only_what_it_heard() -> None:
    """Peer 0 hears its neighbours 1 and 5; of them, the liar 1 hears only peer 0 itself, so it has nobody to cancel."""
    mesh = Mesh(make("dissensus", epsilon=1), topology="ring", rounds=1, liars=(1,)).run()
    np.testing.assert_allclose(mesh.said(1, 0), mesh.update(0), atol=1e-5)


def alone(tamper: Lie) -> tuple[Machine, Mesh]:
    """A liar (peer 1 of six) on the table, after its first training: nobody has said anything to it yet."""
    mesh = Mesh(tamper, liars=(1,))
    machine = mesh.players[mesh.ids[1]].machine
    assert isinstance(machine, Liar)
    machine.handle(Started(frozenset(mesh.ids) - {mesh.ids[1]}), 0.0)
    return machine, mesh


def test_a_rushing_liar_waits_for_the_others_but_not_for_ever() -> None:
    machine, mesh = alone(make("alie"))
    effects = machine.handle(WorkDone("train-0", Trained(mesh.update(1))), 1.0)
    assert not [e for e in effects if isinstance(e, Send)]
    [timer] = [e for e in effects if isinstance(e, SetTimer) and e.name == "tamper"]
    assert timer.at == 6.0  # half of the round's patience: its victims still wait
    late = machine.handle(TimerFired("tamper"), 6.0)
    assert len([e for e in late if isinstance(e, Send)]) == PEERS - 1
    assert machine.handle(TimerFired("tamper"), 7.0) == []


def test_other_liars_are_neither_waited_for_nor_believed() -> None:
    mesh = Mesh(make("ipm"), liars=(1, 4))
    machine = mesh.players[mesh.ids[1]].machine
    machine.handle(Started(frozenset(mesh.ids) - {mesh.ids[1]}), 0.0)
    machine.handle(WorkDone("train-0", Trained(mesh.update(1))), 1.0)
    sends: list[Send] = []
    for index in (0, 2, 3, 5):
        assert not sends
        blob = table.encode(Dense(), mesh.update(index), generator(1))
        effects = machine.handle(Received(mesh.ids[index], messages.encode(messages.Update(0, 7, blob))), 2.0)
        sends += [e for e in effects if isinstance(e, Send)]
    assert len(sends) == PEERS - 1


def test_who_asks_for_the_whole_copy_gets_the_one_it_was_told() -> None:
    machine, mesh = alone(make("noise", std=2.0))
    effects = machine.handle(WorkDone("train-0", Trained(mesh.update(1))), 1.0)
    told = {e.to: messages.decode(e.body) for e in effects if isinstance(e, Send)}
    for index in (0, 3):
        peer = mesh.ids[index]
        [answer] = machine.handle(Received(peer, messages.encode(messages.Ask(0))), 2.0)
        assert isinstance(answer, Send)
        copy, update = messages.decode(answer.body), told[peer]
        assert isinstance(copy, messages.Copy)
        assert isinstance(update, messages.Update)
        wanted = mesh.initial + table.decode(update.blob, D).values
        np.testing.assert_array_equal(table.decode_lossless(copy.blob, D), wanted)


def test_even_the_wildest_claim_can_be_said() -> None:
    mesh = Mesh(make("scaled", factor=3e38), rounds=4)
    with np.errstate(over="ignore", invalid="ignore"):
        mesh.run()
    assert np.isfinite(mesh.said(1, 0)).all()


def test_labels_are_flipped() -> None:
    x, y = np.zeros((3, 1, 4, 4), np.float32), np.array([0, 4, 9])
    np.testing.assert_array_equal(make("label-flip").data(x, y, 10, generator(1))[1], [9, 5, 0])


def test_a_backdoor_is_a_patch_and_a_label() -> None:
    tamper = make("backdoor", target=7, share=0.25, patch=3)
    assert isinstance(tamper, Backdoor)
    x, y = np.zeros((40, 3, 8, 8), np.float32), np.arange(40) % 5
    new_x, new_y = tamper.data(x, y, 10, generator(1))
    chosen = new_y == 7
    assert chosen.sum() == 10
    assert (new_x[chosen][..., -3:, -3:] == 1).all()
    assert new_x[chosen].sum() == 10 * 3 * 9
    assert not new_x[~chosen].any()


@pytest.mark.parametrize(
    ("name", "options", "strategy", "classes"),
    [
        ("dissensus", {}, "fedavg", 10),
        ("sign-flip", {}, "a protocol it does not know", 10),
        ("backdoor", {"target": 10}, "gossip", 10),
        ("backdoor", {"boost": 2}, "a protocol it does not know", 10),
    ],
)
def test_what_has_no_meaning_is_refused(name: str, options: dict[str, Any], strategy: str, classes: int) -> None:
    with pytest.raises(BadInput):
        TAMPERS.build(name, options).check(strategy, classes)


def test_poisoned_data_works_in_every_protocol() -> None:
    for name in ("label-flip", "backdoor"):
        TAMPERS.build(name).check("a protocol it does not know", 10)
