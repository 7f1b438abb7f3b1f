"""One key for all: what an honest peer makes of it. What a curious one reads of it: tests/attacks."""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("tenseal")

from veilmesh.core import Refusal
from veilmesh.crypto.homomorphic import Approximate
from veilmesh.peer.machine import PeerId, Received
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.shared_key import AHEAD
from veilmesh.swarm.topology import TOPOLOGIES

SHARED = {"strategy": "shared-key"}


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_it_is_plain_gossip_up_to_the_noise_of_ckks(lab, topology: str) -> None:
    rows = STRATEGIES.build("gossip").weights(TOPOLOGIES.build(topology).graph(5, 0))  # both regular: the same weights
    encrypted = lab.build(5, **SHARED, rows=rows, rounds=5).start().settle()
    plain = lab.build(5, rows=rows, rounds=5).start().settle()
    np.testing.assert_allclose(encrypted.models(), plain.models(), atol=1e-5)
    size = len(rows[0])
    assert all([d["group"] for d in p.noted("round")] == [size] * 5 for p in encrypted.players.values())
    assert not any(player.refused for player in encrypted.players.values())


def test_the_key_goes_from_neighbour_to_neighbour_and_is_one(lab) -> None:
    rows = STRATEGIES.build("shared-key").weights(TOPOLOGIES.build("ring").graph(5, 0))
    world = lab.build(5, **SHARED, rows=rows, rounds=2).start().settle()
    told = {(s, to): m.blob for s, to, m in world.said if isinstance(m, messages.Key)}
    assert {to for _, to in told} >= {"p1", "p2", "p3", "p4"}
    assert len(set(told.values())) == 1


def test_on_any_graph_one_weight_keeps_the_average(lab) -> None:
    rows = STRATEGIES.build("shared-key").weights(TOPOLOGIES.build("erdos-renyi").graph(6, 3))
    world = lab.build(6, **SHARED, rows=rows, rounds=1).start().settle()
    mean = np.mean([player.target * lab.rate for player in world.players.values()], axis=0)
    np.testing.assert_allclose(np.mean(world.models(), axis=0), mean, atol=1e-6)


def test_who_is_silent_is_left_out_of_a_round(lab) -> None:
    world = lab.build(4, **SHARED, rounds=2)
    world.lost = lambda s, to, m: isinstance(m, messages.Update) and (s, to, m.round) == ("p1", "p0", 0)
    world.start().finish()
    assert [data["group"] for data in world[0].noted("round")] == [3, 4]
    assert world[0].noted("late") == [{"round": 0, "peers": ["p1"]}]
    assert world.now < 10 * 1.5


def test_without_the_key_nobody_trains(lab) -> None:
    world = lab.build(3, **SHARED, rounds=2)
    world.lost = lambda s, to, m: isinstance(m, messages.Key)
    world.start().finish()
    assert [world[i].outcome.reason for i in range(3)] == ["finished", *["nobody said the common key"] * 2]


def test_a_dead_neighbour_is_not_waited_for(lab) -> None:
    world = lab.build(4, **SHARED, rounds=3).start()
    while not world[0].noted("round"):
        world.step()
    world.die(2)
    world.settle()
    assert all(p.outcome.reason == "finished" for p in world.players.values())


def test_messages_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, **SHARED, rounds=50).start()
    world.step()  # the first draws the key
    scheme, machine, honest = Approximate(3), world[0].machine, PeerId("p1")
    public = machine._pair.keys.public
    update = messages.Update(0, 1, scheme.encrypt(public, np.ones(lab.dimension, np.float32)))
    cases = {
        "a stranger's": (PeerId("p9"), update),
        "too far ahead": (honest, messages.Update(AHEAD, 1, update.blob)),
        "in clear": (honest, messages.Update(0, 1, b"\x01" + bytes(48))),
        "of another dimension": (honest, messages.Update(0, 1, scheme.encrypt(public, np.ones(5000, np.float32)))),
        "a sum, where none are published": (honest, messages.Summed(0, (1, 2), bytes(96))),
    }
    for what, (sender, message) in cases.items():
        why = refused(machine, Received(sender, messages.encode(message)))
        assert why in (Refusal.MISMATCH, Refusal.TRUNCATED, Refusal.OVERSIZED), what
    assert refused(world[1].machine, Received(PeerId("p0"), messages.encode(messages.Key(0, public)))), "half a key"
    machine.handle(Received(honest, messages.encode(update)), 0.0)
    assert refused(machine, Received(honest, messages.encode(update))) == Refusal.MISMATCH
