"""Push-sum: mass is conserved at every moment, whatever the order and the codec, and its average is what is left."""

from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import CODECS
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import PeerId, PeersChanged, Received, WorkDone
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.push_sum import FLOOR
from veilmesh.swarm.strategies.scheduled import WINDOW
from veilmesh.swarm.topology import TOPOLOGIES, metropolis_hastings

RANDOM = {"graph": "random", "out": 2}


def rows(topology: str, peers: int, seed: int = 0) -> dict[int, dict[int, float]]:
    return metropolis_hastings(TOPOLOGIES.build(topology).graph(peers, seed))


def mass(world) -> tuple[np.ndarray, np.ndarray]:
    """Sums over peers and over messages in flight, in double precision."""
    y, w = np.zeros(12), np.zeros(12)
    for player in world.players.values():
        values, weights = player.machine.mass()
        y, w = y + values, w + weights
    for to, what in world.pending:
        if isinstance(what, Received):
            values, weights, _ = world.players[to].machine._read(messages.decode(what.body))
            y, w = y + values, w + weights
    return y, w


def still(world) -> None:
    """From here on nobody learns anything."""
    for player in world.players.values():
        player.target = None
        player.work = lambda task, work=player.work: _nothing(work, task)


def _nothing(work, task):
    if hasattr(task, "round"):
        from types import SimpleNamespace

        return SimpleNamespace(update=np.zeros_like(task.parameters), loss=0.0, samples=10)
    return work(task)


def spread(world, rng: np.random.Generator) -> np.ndarray:
    """Give everybody a first mass of its own; their average."""
    first = rng.standard_normal((len(world.players), 12)).astype(np.float32)
    for y, player in zip(first, world.players.values(), strict=True):
        player.machine._y = y
    return first.mean(0)


# --- mass ------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(30))
@given(
    data=st.data(),
    peers=st.integers(2, 7),
    options=st.sampled_from([{}, RANDOM]),
    codec=st.sampled_from(["dense", "8-bit", "top-k", "rand-k", "sign"]),
)
def test_mass_is_conserved_at_every_step_in_any_order(lab, data, peers: int, options: dict, codec: str) -> None:
    world = lab.build(
        peers, strategy="push-sum", options=options, rounds=6, codec=CODECS.build(codec), rows=rows("complete", peers)
    )
    still(world)
    average = spread(world, np.random.default_rng(peers))
    random = data.draw(st.randoms(use_true_random=False))
    world.start()
    while world.pending and not any(p.outcome for p in world.players.values()):
        y, w = mass(world)
        np.testing.assert_allclose(y, average * peers, atol=1e-4)
        np.testing.assert_allclose(w, peers, atol=1e-5)
        world.step(random.randrange(len(world.pending)))
    assert not any(player.refused for player in world.players.values())


def test_training_adds_to_the_mass_just_what_was_learnt(lab) -> None:
    world = lab.build(4, strategy="push-sum", options=RANDOM, rounds=5).start()
    learnt = np.zeros(12)
    while not any(p.outcome for p in world.players.values()):
        what = world.pending[0][1]
        if hasattr(what, "task") and what.name.startswith("train"):
            learnt += world.players[world.pending[0][0]].work(what.task).update
        world.step()
        np.testing.assert_allclose(mass(world)[0], learnt, atol=1e-4)


# --- what it comes to ------------------------------------------------------------------------------------------------


def test_over_eight_peers_three_rounds_of_the_exponential_graph_average_exactly(lab) -> None:
    world = lab.build(8, strategy="push-sum", rounds=3)
    still(world)
    average = spread(world, np.random.default_rng(0))
    for model in world.start().settle().models():
        np.testing.assert_allclose(model, average, atol=1e-6)


@pytest.mark.parametrize("topology", ["complete", "ring", "small-world", "erdos-renyi"])
@pytest.mark.parametrize("out", [1, 2])
def test_on_changing_random_graphs_all_meet_at_the_average(lab, topology: str, out: int) -> None:
    """Also where the graph is not regular, and the stationary distribution of its walks not uniform."""
    world = lab.build(
        7, strategy="push-sum", options={"graph": "random", "out": out}, rounds=150, rows=rows(topology, 7, 1)
    )
    still(world)
    average = spread(world, np.random.default_rng(0))
    for model in world.start().settle().models():
        np.testing.assert_allclose(model, average, atol=1e-4)


@pytest.mark.parametrize("options", [{}, RANDOM])
def test_on_a_bowl_it_comes_as_near_as_gossip(lab, options: dict) -> None:
    world = lab.build(8, strategy="push-sum", options=options, rounds=80).start().settle()
    mean = np.mean([world[i].target for i in range(8)], axis=0)
    np.testing.assert_allclose(np.mean(world.models(), axis=0), mean, atol=0.15)


@settings(max_examples=examples(15))
@given(data=st.data(), peers=st.integers(2, 6), options=st.sampled_from([{}, RANDOM]))
def test_no_order_of_delivery_changes_a_bit(lab, data, peers: int, options: dict) -> None:
    built = {"strategy": "push-sum", "options": options, "rounds": 4, "codec": CODECS.build("8-bit")}
    straight = lab.build(peers, **built).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = lab.build(peers, **built).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


def test_a_mesh_without_the_links_is_refused_with_what_to_do() -> None:
    import networkx as nx

    with pytest.raises(BadInput, match=r"strategy\.graph to random"):
        STRATEGIES.build("push-sum").weights(nx.star_graph(5))


# --- losses, deaths, lies --------------------------------------------------------------------------------------------


def test_a_share_that_comes_late_is_added_when_it_comes(lab) -> None:
    world = lab.build(2, strategy="push-sum", rounds=6).start()
    world.step()  # p0 trained and spoke; p1 is slow
    late = world.pending.pop(0)
    assert late[0] == "p1"
    world.ring()  # p0 goes on without p1
    assert world[0].noted("late") == [{"round": 0, "peers": ["p1"]}]
    assert world[0].noted("round") == [{"round": 0, "group": 1}]
    world.pending.append(late)
    world.settle()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 2
    assert not any(p.refused for p in world.players.values())


def test_a_peer_that_only_gives_keeps_its_floor_and_stays_finite(lab) -> None:
    world = lab.build(3, strategy="push-sum", rounds=40)
    world.lost = lambda sender, to, message: to == "p0"
    world.start().finish()
    assert world[0].machine._w.min() >= FLOOR
    assert world[0].outcome.reason == "finished"
    assert np.abs(world[0].outcome.parameters).max() < 100


def test_a_dead_peer_is_not_waited_for_and_not_spoken_to(lab) -> None:
    world = lab.build(4, strategy="push-sum", rounds=8).start()
    for _ in range(9):
        world.step()
    world.die(0)
    world.settle()
    assert [p.outcome.reason for p in world.players.values()] == ["finished"] * 3


def blob(value: float, count: int = 12) -> bytes:
    return table.encode(Dense(), np.full(count, value, np.float32), np.random.default_rng(0))


def share(round_: int, value: float = 0.1, weight: float = 0.5, **changes: object) -> bytes:
    parts = {"round": round_, "samples": 10, "blob": blob(value), "weights": blob(weight, 1), **changes}
    return messages.encode(messages.Share(**parts))


def test_shares_that_do_not_fit_are_refused_and_change_nothing(lab, refused: Callable[..., Refusal]) -> None:
    world = lab.build(4, strategy="push-sum", rounds=100).start()  # hops 1, 2: in round 0 p0 hears p3, in round 1 p2
    machine, honest = world[0].machine, PeerId("p3")
    machine.handle(Received(honest, share(2)), 0.0)
    cases = {
        "a stranger's": (PeerId("p9"), share(0), Refusal.MISMATCH),
        "its own": (PeerId("p0"), share(0), Refusal.MISMATCH),
        "out of turn": (honest, share(1), Refusal.MISMATCH),
        "a second one": (honest, share(2), Refusal.MISMATCH),
        "too far ahead": (honest, share(WINDOW), Refusal.MISMATCH),
        "an update": (honest, messages.encode(messages.Update(0, 1, blob(1.0))), Refusal.MISMATCH),
        "a negative weight": (honest, share(0, weight=-0.5), Refusal.MISMATCH),
        "more weight than there is": (honest, share(0, weight=4.5), Refusal.MISMATCH),
        "mass without weight": (honest, share(0, value=1.0, weight=0.0), Refusal.MISMATCH),
        "huge": (honest, share(0, value=1e7), Refusal.MISMATCH),
        "too much for its weight": (honest, share(0, value=9e5, weight=0.25), Refusal.MISMATCH),
        "another dimension": (honest, share(0, blob=blob(1.0, 13)), Refusal.MISMATCH),
        "another number of weights": (honest, share(0, weights=blob(0.5, 5)), Refusal.MISMATCH),
        "NaN": (honest, share(0, weights=b"\x01\x00\x00\xc0\x7f"), Refusal.MALFORMED),
        "no blob": (honest, share(0, blob=b""), Refusal.MALFORMED),
        "no weights": (honest, share(0, weights=b""), Refusal.MALFORMED),
        "no message": (honest, b"\xc1", Refusal.MALFORMED),
    }
    for what, (sender, body, why) in cases.items():
        assert refused(machine, Received(sender, body)) == why, what


@settings(max_examples=examples(75))
@given(body=st.binary(max_size=80), sender=st.sampled_from(["p1", "p2", "p7"]))
def test_arbitrary_bytes_never_break_a_machine(lab, body: bytes, sender: str) -> None:
    world = lab.build(3, strategy="push-sum").start()
    world.feed(PeerId("p0"), Received(PeerId(sender), body))
    world.settle()


def test_shares_far_ahead_do_not_pile_up(lab) -> None:
    world = lab.build(4, strategy="push-sum", rounds=1000).start()
    for round_ in range(1000):
        for sender in ("p1", "p2", "p3"):
            world.feed(PeerId("p0"), Received(PeerId(sender), share(round_)))
    assert sum(len(heard) for heard in world[0].machine._heard.values()) <= WINDOW


def test_what_is_given_away_goes_to_those_present_only(lab) -> None:
    world = lab.build(3, strategy="push-sum").start()
    world.feed(PeerId("p0"), PeersChanged(frozenset({PeerId("p2")})))  # in round 0, p0 would speak to p1
    train = world.pending.pop(0)[1]
    world.feed(PeerId("p0"), WorkDone(train.name, world[0].work(train.task)))
    assert world.said == []
    assert world[0].machine.mass()[1][0] == 1.0
