"""Who reads what of a mesh with homomorphic ciphertexts: everybody with one key for all; behind proxies, who pools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from veilmesh.attacks import Vantage, observe, observe_updates
from veilmesh.attacks.seen.ciphertexts import shared_key
from veilmesh.attacks.tampers.base import TAMPERS, Insider
from veilmesh.attacks.view import ATTACKS, View
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import Record
from veilmesh.peer.worker import with_errands
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.base import STRATEGIES, Kit, Outcome
from veilmesh.swarm.topology import TOPOLOGIES

ROUNDS, STEP = 3, 4.0 / 8191


@dataclass(frozen=True)
class Done:
    update: Vector | None = None
    loss: float = 1.0
    samples: int = 1
    accuracy: float = 0.5


class Mesh:
    """Peers who go a given way in every round, and what crossed the wire between them."""

    def __init__(
        self, make_mesh: Any, strategy: str, peers: int = 5, topology: str = "complete", pooling: Sequence[int] = (),
        first: Vector | None = None, options: Mapping[str, Any] | None = None, **public: Any,
    ) -> None:  # fmt: skip
        made = STRATEGIES.build(strategy, options)
        self.ids = [PeerId(name) for name in "abcdefgh"[:peers]]
        rows = made.weights(TOPOLOGIES.build(topology).graph(peers, 1))
        weights = {self.ids[i]: {self.ids[j]: w for j, w in row.items()} for i, row in rows.items()}
        public |= {"strategy": strategy, "options": vars(made), "peers": tuple(self.ids), "weights": weights}
        self.public = make_mesh(**public).public
        d = self.public.initial.size
        self.updates = {(i, r): generator(1, "way", i, r).normal(0, 0.02, d).astype(np.float32)
                        for i in range(peers) for r in range(ROUNDS)}  # fmt: skip
        if first is not None:
            self.updates[1, 0] = first
        self.starts: dict[tuple[int, int], Vector] = {}
        self.records: list[Record] = []
        players = {}
        for i, me in enumerate(self.ids):
            sealer = Sealer([], Dense(), d, 1, i)
            kit = Kit(me, tuple(self.ids), weights[me], None, self.public.initial, ROUNDS, 10.0, 100, sealer,
                      self.work(i), seed=3, rows=rows)  # fmt: skip
            machine = made.machine(kit)
            if i in pooling:
                insider = Insider(kit, frozenset(self.ids[j] for j in pooling), weights)
                machine = TAMPERS.build("pool-keys").wrap(machine, insider, generator(1))
            self.near = set(weights[me]) - {me}
            players[me] = Player(machine, with_errands(list), frozenset(self.near))
        self.players = players
        VirtualNetwork(players, tap=self.records.append).run(1000.0)

    def work(self, index: int) -> Any:
        mesh = self

        class Work:
            def train(self, round_: int, parameters: Vector) -> object:
                mesh.starts[index, round_] = parameters
                return Done(mesh.updates[index, round_])

            def evaluate(self, parameters: Vector) -> object:
                return Done()

        return Work()

    def view(self, *controls: int) -> View:
        return observe(Vantage(frozenset(self.ids[i] for i in controls)), self.records, self.public)


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_with_one_key_for_all_a_neighbour_reads_every_update_exactly(make_mesh, topology: str) -> None:
    mesh = Mesh(make_mesh, "shared-key", topology=topology)
    seen = {(mesh.ids.index(o.victim), o.round): o for o in observe_updates(mesh.view(0))}
    near = (1, 2, 3, 4) if topology == "complete" else (1, 4)
    assert set(seen) == {(i, r) for i in near for r in range(ROUNDS)}
    for key, one in seen.items():
        if key[1] == 0 or topology == "complete":  # further round a ring, other neighbours' neighbours count too
            assert one.exact
            np.testing.assert_allclose(one.update, mesh.updates[key], atol=1e-6)
            np.testing.assert_allclose(one.start, mesh.starts[key], atol=1e-6)


@pytest.mark.parametrize("scheme", ["ckks-8192", "paillier"])
def test_no_scheme_helps_where_one_key_is_everybodys(make_mesh, scheme: str) -> None:
    mesh = Mesh(make_mesh, "shared-key", peers=3, options={"scheme": scheme})
    seen = {(mesh.ids.index(o.victim), o.round): o for o in observe_updates(mesh.view(0))}
    assert set(seen) == {(i, r) for i in (1, 2) for r in range(ROUNDS)}
    for key, one in seen.items():
        np.testing.assert_allclose(one.update, mesh.updates[key], atol=3e-5)


def test_behind_a_proxy_a_receiver_reads_the_sum_by_paillier_too(make_mesh) -> None:
    mesh = Mesh(make_mesh, "blind-proxy", peers=4, pooling=(0, 3), options={"scheme": "paillier"})
    assert observe_updates(mesh.view(1)) == []
    [first] = [o for o in observe_updates(mesh.view(0)) if o.round == 0]
    np.testing.assert_allclose(first.update, np.mean([mesh.updates[i, 0] for i in (1, 2, 3)], axis=0), atol=STEP)


def test_published_sums_of_paillier_give_no_key(make_mesh, digits) -> None:
    mesh = Mesh(make_mesh, "shared-key", peers=3, options={"scheme": "paillier", "publish": True})
    assert list(ATTACKS.build("decryption-publishing").run(mesh.view(0), generator(0))) == []


def test_the_key_is_what_reads_and_who_was_not_told_it_reads_nothing(make_mesh) -> None:
    mesh = Mesh(make_mesh, "shared-key")
    assert shared_key(mesh.view(3)) is not None
    wire = observe(Vantage(frozenset(), taps_wire=True), mesh.records, mesh.public)
    assert shared_key(wire) is None
    assert observe_updates(wire) == []


def test_a_key_holder_shows_the_picture(make_mesh, digits) -> None:
    x, y = digits
    plain = make_mesh()
    plain.train("b", ["a"], x[:1], y[:1])
    [said] = observe_updates(plain.view("a"))
    mesh = Mesh(make_mesh, "shared-key", peers=3, first=said.update)
    guess = next(
        g for g in ATTACKS.build("key-holder").run(mesh.view(0), generator(0)) if (g.victim, g.round) == ("b", 0)
    )
    np.testing.assert_allclose(guess.pictures[0], x[0], atol=1e-3)
    assert guess.labels.tolist() == [y[0]]


def test_two_published_decryptions_give_the_key_to_who_was_never_told_it(make_mesh, digits) -> None:
    x, y = digits
    model = {"name": "mlp", "hidden": (64,)}  # two whole ciphertexts
    plain = make_mesh(model=model)
    plain.train("b", ["a"], x[:1], y[:1])
    [said] = observe_updates(plain.view("a"))
    for publish in (True, False):
        options = {"publish": publish}
        mesh = Mesh(make_mesh, "shared-key", peers=3, first=said.update, model=model, options=options)
        view = mesh.view(0)
        keyless = tuple(r for r in view.records if r.body and not isinstance(messages.decode(r.body), messages.Key))
        view = replace(view, records=keyless)
        assert observe_updates(view) == []
        guesses = list(ATTACKS.build("decryption-publishing").run(view, generator(0)))
        if not publish:
            assert guesses == []
            continue
        assert {(g.victim, g.round) for g in guesses} == {(v, r) for v in "bc" for r in range(ROUNDS)}
        first = next(g for g in guesses if (g.victim, g.round) == ("b", 0))
        np.testing.assert_allclose(first.pictures[0], x[0], atol=1e-3)


def test_behind_a_proxy_nobody_alone_reads_anything(make_mesh) -> None:
    mesh = Mesh(make_mesh, "blind-proxy")
    for index in range(5):
        assert observe_updates(mesh.view(index)) == []
    assert observe_updates(mesh.view(0, 1, 2)) == []  # these keep their keys to themselves


def test_a_receiver_with_its_own_key_reads_the_sum_of_its_neighbours(make_mesh) -> None:
    mesh = Mesh(make_mesh, "blind-proxy", pooling=(0, 4))
    seen = observe_updates(mesh.view(0))
    [first] = [o for o in seen if o.round == 0]
    assert set(first.among) == set(mesh.ids[1:])
    assert first.samples == 4
    np.testing.assert_allclose(first.update, np.mean([mesh.updates[i, 0] for i in range(1, 5)], axis=0), atol=STEP)


def test_who_pools_keys_with_a_proxy_reads_single_models_whenever_it_is_one(make_mesh) -> None:
    mesh = Mesh(make_mesh, "blind-proxy", pooling=(0, 3))
    assert not any(player.refusals for player in mesh.players.values())
    assert all(isinstance(p.result, Outcome) and p.result.reason == "finished" for p in mesh.players.values())
    seen = observe_updates(mesh.view(0, 3))
    single = {(mesh.ids.index(o.victim), o.round): o for o in seen if not o.among}
    rounds = {r for _, r in single}
    assert rounds
    for key, one in single.items():
        np.testing.assert_allclose(one.start, mesh.starts[key], atol=2 * STEP)
        np.testing.assert_allclose(one.update, mesh.updates[key], atol=3 * STEP)
    for round_ in rounds:
        assert {i for i, r in single if r == round_} == {1, 2, 4}
    sums = [o for o in seen if o.among]
    assert {o.round for o in sums} == set(range(ROUNDS)) - rounds
    for one in sums:
        truth = np.mean([mesh.updates[mesh.ids.index(p), one.round] for p in one.among], axis=0)
        assert "a" not in one.among
        np.testing.assert_allclose(one.update, truth, atol=3 * STEP)


def test_all_but_one_neighbour_leave_that_one_bare(make_mesh) -> None:
    mesh = Mesh(make_mesh, "blind-proxy", peers=4, pooling=(0, 2, 3))
    seen = {(mesh.ids.index(o.victim), o.round): o for o in observe_updates(mesh.view(0, 2, 3))}
    assert set(seen) == {(1, r) for r in range(ROUNDS)}
    for key, one in seen.items():
        assert one.among == ()
        np.testing.assert_allclose(one.update, mesh.updates[key], atol=4 * STEP)


def test_pooling_keys_means_something_behind_proxies_only() -> None:
    TAMPERS.build("pool-keys").check("blind-proxy", 10)
    with pytest.raises(BadInput, match="set strategy to it"):
        TAMPERS.build("pool-keys").check("gossip", 10)


def test_bodies_that_are_no_ciphertexts_are_skipped(make_mesh) -> None:
    mesh = Mesh(make_mesh, "shared-key", peers=3)
    for strategy in ("shared-key", "blind-proxy"):
        options = vars(STRATEGIES.build(strategy))
        public = replace(mesh.public, strategy=strategy, options=options)
        for cut in (1, 40):
            broken = [replace(r, body=r.body[:-cut] if r.body else None) for r in mesh.records]
            assert observe_updates(observe(Vantage(frozenset(mesh.ids[:1])), broken, public)) == []
