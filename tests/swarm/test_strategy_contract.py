"""What every registered strategy promises (swarm/strategies/base.py), run over all of them."""

import random

import numpy as np
import pytest

from veilmesh.core import BadInput
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.peer.machine import Machine
from veilmesh.swarm.guards.base import GUARDS
from veilmesh.swarm.strategies.base import STRATEGIES, Outcome
from veilmesh.swarm.topology import TOPOLOGIES

AMPLIFIES = {"diloco": 0.7 / (1 - 0.9)}
"""How many times an outer optimizer, which sees nothing but guarded updates, may repeat them."""


TOGETHER = ("async-gossip",)
"""Without rounds: it ends when half of the peers have made all their steps, and others more or fewer."""

COMPLETE = ("blind-proxy", "brea", "group-all-reduce", "leader", "ring-all-reduce", "secure-clusters", "secure-groups")
"""In which anybody may have to speak to anybody."""

SILENT = ("alone",)
"""In which nobody speaks to anybody."""

HOMOMORPHIC = ("blind-proxy", "shared-key")
"""Which take no codec, and draw keys and ciphertexts from the system's randomness: sums, not messages, are repeated."""

UNCODED = (*HOMOMORPHIC, "brea", "ring-all-reduce", "secure-clusters", "secure-groups")
"""Which count in whole numbers by themselves, encrypt what they count, or sum at every step, and take no codec."""


@pytest.fixture(params=STRATEGIES.names())
def strategy(request: pytest.FixtureRequest) -> str:
    if request.param in HOMOMORPHIC:
        pytest.importorskip("tenseal")
    return request.param


@pytest.mark.parametrize("codec", CODECS.names())
def test_every_machine_reaches_its_stop_with_an_outcome(lab, strategy: str, codec: str) -> None:
    if strategy in UNCODED and codec != "dense":
        with pytest.raises(BadInput, match="leave codec out"):
            lab.build(4, strategy=strategy, codec=CODECS.build(codec))
        return
    world = lab.build(4, strategy=strategy, rounds=5, codec=CODECS.build(codec), evaluate_every=2).start().settle()
    for player in world.players.values():
        outcome = player.outcome
        assert isinstance(outcome, Outcome)
        assert outcome.reason == "finished"
        assert outcome.rounds == 5 or (strategy in TOGETHER and 0 < outcome.rounds <= 10)
        assert outcome.parameters.shape == (lab.dimension,)
        assert outcome.parameters.dtype == np.float32
        assert np.isfinite(outcome.parameters).all()
        assert outcome.parameters.any()
        assert outcome.accuracy == 0.5
        assert not player.refused


def test_a_machine_is_a_machine(lab, strategy: str) -> None:
    def machine(found: Machine) -> Machine:  # for the type checker, if one looks
        return found

    for player in lab.build(3, strategy=strategy).players.values():
        assert callable(machine(player.machine).handle)


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_weights_mix_neighbours_and_keep_the_average(strategy: str, topology: str) -> None:
    made, graph = STRATEGIES.build(strategy), TOPOLOGIES.build(topology).graph(6, 0)
    if strategy in COMPLETE and topology != "complete":
        with pytest.raises(BadInput, match="topology to complete"):
            made.weights(graph)
        return
    rows = made.weights(graph)
    if made.centralised:
        assert rows == {}
        return
    w = np.array([[rows[i].get(j, 0.0) for j in range(6)] for i in range(6)])
    np.testing.assert_allclose(w, w.T, atol=1e-12)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-12)
    spoken = {tuple(sorted(e)) for e in graph.edges} if strategy not in SILENT else set()
    assert {(i, j) for i, row in rows.items() for j in row if i < j} == spoken


def test_everything_is_repeatable_and_nothing_global_is_drawn_from(lab, strategy: str) -> None:
    codec = CODECS.build("dense" if strategy in UNCODED else "8-bit")
    options = {"strategy": strategy, "codec": codec, "guards": [GUARDS.build("noise")], "rounds": 4}
    np.random.seed(1)
    random.seed(1)
    states = (random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2])
    first = lab.build(4, **options).start().settle()
    assert states == (random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2])
    np.random.seed(2)
    random.seed(2)
    second = lab.build(4, **options).start().settle()
    if strategy == "shared-key":  # CKKS is approximate
        np.testing.assert_allclose(first.models(), second.models(), atol=1e-6)
        return
    assert [m.tobytes() for m in first.models()] == [m.tobytes() for m in second.models()]
    assert first.said == second.said or strategy in HOMOMORPHIC


def test_another_seed_draws_other_noise(lab, strategy: str) -> None:
    noisy = {"strategy": strategy, "guards": [GUARDS.build("noise")]}
    a, b = (lab.build(3, **noisy, seed=seed) for seed in (1, 1))
    a.start().settle()
    for one, other in zip(b.players.values(), lab.build(3, **noisy, seed=2).players.values(), strict=True):
        one.machine = other.machine
    b.start().settle()
    assert a.models()[0].tobytes() != b.models()[0].tobytes()


def test_guards_are_what_leaves_and_what_is_trained_on(lab, strategy: str) -> None:
    """No peer's model may hold what its guard took away: the next difference would say it after all."""
    clipped = lab.build(3, strategy=strategy, guards=[GUARDS.build("clip", {"norm": 0.01})], rounds=4).start().settle()
    for model in clipped.models():
        assert np.linalg.norm(model) <= 4 * 0.01 * 1.001 * AMPLIFIES.get(strategy, 1)


def test_the_common_beginning_is_not_written_to(lab, strategy: str) -> None:
    world = lab.build(3, strategy=strategy, rounds=3)
    kits = [vars(player.machine)["_kit"] for player in world.players.values()]
    world.start().settle()
    assert not any(kit.initial.any() for kit in kits)


def test_a_peer_that_nobody_answers_still_ends(lab, strategy: str) -> None:
    world = lab.build(3, strategy=strategy, rounds=3)
    world.lost = lambda sender, to, message: "p0" in (sender, to)
    world.start().finish()
    assert all(player.outcome for player in world.players.values())
