"""The homomorphic protocols by Paillier: the same protocols, the same models; TenSEAL is not needed for it."""

from collections.abc import Callable

import numpy as np
import pytest

from veilmesh.core import Refusal
from veilmesh.peer.machine import PeerId, Received
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.ciphers import SCHEMES, exact_scheme, scheme_for
from veilmesh.swarm.topology import TOPOLOGIES


@pytest.mark.parametrize("scheme", ["paillier", "paillier-512"])
@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_with_one_key_it_is_plain_gossip_up_to_the_fixed_point(lab, scheme: str, topology: str) -> None:
    rows = STRATEGIES.build("gossip").weights(TOPOLOGIES.build(topology).graph(5, 0))
    built = lab.build(5, strategy="shared-key", options={"scheme": scheme}, rows=rows, rounds=3).start().settle()
    plain = lab.build(5, rows=rows, rounds=3).start().settle()
    np.testing.assert_allclose(built.models(), plain.models(), atol=3e-5)
    assert not any(player.refused for player in built.players.values())


def test_a_blind_proxy_makes_the_same_models_by_either_scheme_to_the_bit(lab) -> None:
    pytest.importorskip("tenseal")
    worlds = [
        lab.build(4, strategy="blind-proxy", options={"scheme": name, "neighbours": 2}, rounds=3).start().settle()
        for name in ("bfv", "paillier")
    ]
    bfv, paillier = ([m.tobytes() for m in world.models()] for world in worlds)
    assert bfv == paillier
    assert not any(player.refused for world in worlds for player in world.players.values())


def test_a_sum_of_one_is_refused_by_the_proxy_under_paillier_too(lab) -> None:
    world = lab.build(3, strategy="blind-proxy", options={"scheme": "paillier"}, rounds=1)
    world.lost = lambda s, to, m: isinstance(m, messages.Encrypted) and m.to == 0
    world.start().finish()
    assert [d["group"] for d in world[0].noted("round")] == [1]
    assert [d["group"] for d in world[1].noted("round")] == [3]


def test_a_ciphertext_that_is_no_unit_costs_one_round_and_no_more(lab) -> None:
    """It has the form of one, so it is found out where it is added: as work."""
    world = lab.build(3, strategy="shared-key", options={"scheme": "paillier-512"}, rounds=2).start()
    world.step()  # the first draws the key
    machine = world[0].machine
    size = machine._scheme.ciphertext_size(lab.dimension)
    frame = machine._scheme.encrypt(machine._pair.keys.public, np.zeros(lab.dimension, np.float32))[:16]
    forged = messages.encode(messages.Update(0, 1, frame + bytes(size - 16)))
    machine.handle(Received(PeerId("p1"), forged), 0.0)
    world.lost = lambda s, to, m: isinstance(m, messages.Update) and (s, to, m.round) == ("p1", "p0", 0)
    world.finish()
    assert world[0].noted("unreadable") == [{"round": 0}]
    assert [d["group"] for d in world[0].noted("round")] == [1, 3]
    assert all(player.outcome.reason == "finished" for player in world.players.values())


def test_ciphertexts_of_another_scheme_are_refused(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(3, strategy="shared-key", options={"scheme": "paillier-512"}, rounds=2).start()
    world.step()
    other = scheme_for("paillier", 3)
    blob = other.encrypt(other.keys().public, np.ones(lab.dimension, np.float32))
    said = messages.encode(messages.Update(0, 1, blob))
    assert refused(world[0].machine, Received(PeerId("p1"), said)) in (Refusal.OVERSIZED, Refusal.TRUNCATED)


def test_every_scheme_by_name_is_one_of_its_own() -> None:
    made = [scheme_for(name, 5) for name in SCHEMES] + [
        exact_scheme("bfv", 8, 4, 1.0),
        exact_scheme("paillier", 8, 4, 1.0),
    ]
    assert len({scheme.tag for scheme in made}) == len(made)
