"""Robust rules over the means of groups whose members nobody sees: exact, one model for all, and whole after faults."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.peer.machine import PeerId, Received
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import AGGREGATORS
from veilmesh.swarm.strategies.base import STRATEGIES
from veilmesh.swarm.strategies.cluster_means import ClusterMeans, Stated, Whole, read_stated, read_whole, said
from veilmesh.swarm.strategies.secure_clusters import STATED, WANTED, WHOLE, SecureClusters

A, B = b"a" * 32, b"b" * 32


def mesh(lab: Any, peers: int, aggregator: str = "mean", rounds: int = 1, **options: Any) -> Any:
    """A mesh whose rule is `aggregator`, told of one spoilt group where it is told."""
    world = lab.build(peers, strategy="secure-clusters", options=options, rounds=rounds)
    told = {"f": 1} if aggregator in ("trimmed-mean", "krum", "multi-krum") else {}
    made = STRATEGIES.build("secure-clusters", options)
    for player in world.players.values():
        kit = replace(vars(player.machine)["_kit"], aggregator=AGGREGATORS.build(aggregator, told))
        player.machine = made.machine(kit)
    return world


def groups(world: Any, round_: int = 0) -> tuple[tuple[int, ...], ...]:
    return world[0].machine._groups(round_)


def one_model(world: Any) -> np.ndarray:
    models = {model.tobytes() for model in world.models()}
    assert len(models) == 1
    return world.models()[0]


# --- what it comes to ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [3, 5, 9, 14])
def test_groups_are_never_smaller_than_asked(lab: Any, peers: int) -> None:
    world = mesh(lab, peers, rounds=5)
    for round_ in range(5):
        found = groups(world, round_)
        assert sorted(place for group in found for place in group) == list(range(peers))
        assert min(map(len, found)) >= 3


def test_the_mean_over_groups_is_fedavg(lab: Any) -> None:
    hidden = mesh(lab, 10, rounds=8).start().settle()
    star = lab.build(10, strategy="fedavg", rounds=8).start().settle()
    np.testing.assert_allclose(one_model(hidden), star.models()[0], atol=3e-6)
    assert all(note["group"] == 10 for player in hidden.players.values() for note in player.noted("round"))


@pytest.mark.parametrize("aggregator", ["median", "trimmed-mean"])
def test_a_rule_is_shown_the_groups_means(lab: Any, aggregator: str) -> None:
    world = mesh(lab, 9, aggregator).start().settle()
    updates = np.array([player.target * lab.rate for player in world.players.values()])
    means = np.array([updates[list(group)].mean(axis=0) for group in groups(world)])
    np.testing.assert_allclose(one_model(world), np.median(means, axis=0), atol=1e-6)  # of three, both take the middle


def test_one_liar_spoils_one_group_and_is_outvoted(lab: Any) -> None:
    spoilt = {}
    for rule in ("mean", "median"):
        world = mesh(lab, 15, rule, rounds=12)
        common = np.mean([world[i].target for i in range(15)], axis=0)
        for i in range(15):
            world[i].target = common + np.float32(0.1) * world[i].target
        honest = np.mean([world[i].target for i in range(15) if i != 4], axis=0)
        world[4].target = -20 * world[4].target
        world.start().settle()
        spoilt[rule] = np.abs(one_model(world) - honest).max()
    assert spoilt["median"] < 0.1
    assert spoilt["mean"] > 5 * spoilt["median"]


def test_nobody_is_told_a_single_update(lab: Any) -> None:
    world = mesh(lab, 9).start().settle()
    for i in range(9):
        words = world[0].machine._fixed(0, 0).encode(world[i].target * lab.rate).tobytes()
        bodies = [messages.encode(message) for _, _, message in world.said]
        assert not any(words[at : at + 4] in body for at in range(0, len(words), 4) for body in bodies)


@settings(max_examples=examples(5))
@given(data=st.data(), peers=st.integers(4, 8))
def test_no_order_of_delivery_changes_a_bit(lab: Any, data: st.DataObject, peers: int) -> None:
    straight = mesh(lab, peers, rounds=3, group=2).start().settle()
    random = data.draw(st.randoms(use_true_random=False))
    shuffled = mesh(lab, peers, rounds=3, group=2).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 30, 100, 200, 300])
def test_a_peer_that_dies_costs_its_group_and_no_more(lab: Any, after: int) -> None:
    world = mesh(lab, 12, rounds=3, group=4).start()
    for _ in range(after):
        world.step()
    world.die(5)
    world.finish()
    one_model(world)
    assert all(player.outcome.reason == "finished" for player in world.players.values())


def test_a_sum_that_is_lost_on_its_way_is_asked_for_elsewhere(lab: Any) -> None:
    world = mesh(lab, 9, rounds=2)
    first: set[tuple[PeerId, int]] = set()

    def lost(sender: PeerId, to: PeerId, message: messages.Message) -> bool:
        if to != "p2" or not isinstance(message, messages.Step) or message.step != WHOLE:
            return False
        fresh = (sender, message.round) not in first
        first.add((sender, message.round))
        return fresh and len(first) <= 2

    world.lost = lost
    world.start().finish()
    one_model(world)
    assert any(m.step == WANTED for s, _, m in world.said if s == "p2" and isinstance(m, messages.Step))


def test_one_that_missed_rounds_finds_the_others_model(lab: Any) -> None:
    world = mesh(lab, 12, rounds=10, group=4, f=1)
    away = True
    world.lost = lambda sender, to, message: away and "p3" in (sender, to)
    world.start()
    while len(world[0].noted("round")) < 3:
        world.settle()
        if len(world[0].noted("round")) < 3:
            world.ring()
    away = False
    world.finish()
    assert world[3].noted("found")
    one_model(world)


# --- what is believed ------------------------------------------------------------------------------------------------


def test_a_sum_is_its_groups_if_more_than_half_say_so() -> None:
    means, whole = ClusterMeans([(0, 1, 2), (3, 4)]), Whole(3, bytes(8))
    means.take(0, whole)
    means.state(0, Stated(whole.digest, B))
    assert means.believed(0) is None
    means.state(1, Stated(A, B))
    assert means.whole(0) is None
    means.state(2, Stated(whole.digest, B))
    assert means.whole(0) == whole
    means.state(3, Stated(b"", B))
    assert not means.settled({4})
    assert means.settled(())
    means.state(4, Stated(b"", A))
    assert means.settled(range(5))
    assert dict(means.bases()) == {B: 4, A: 1}
    assert list(means.sums()) == [0]


def test_a_sum_that_is_not_what_was_stated_is_asked_of_another_once() -> None:
    means, whole = ClusterMeans([(0, 1, 2)]), Whole(3, bytes(8))
    for place in (0, 1):
        means.state(place, Stated(whole.digest, B))
    means.take(0, Whole(3, bytes(7) + b"x"))
    assert means.whole(0) is None
    assert means.to_ask(range(3)) == [0]
    assert means.to_ask(range(3)) == [1]
    assert means.to_ask(range(3)) == []
    means.take(1, whole)
    assert means.settled(range(3))


@given(st.binary(max_size=120))
def test_bytes_are_a_statement_or_a_sum_or_refused(raw: bytes) -> None:
    for read in (read_stated, lambda raw: read_whole(raw, 2, 9)):
        with contextlib.suppress(RemoteError):
            read(raw)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_out_of_place_is_refused(lab: Any, refused: Callable[..., Refusal]) -> None:
    world = mesh(lab, 9, rounds=3).start()
    for message in (
        messages.Step(0, STATED, said(Stated(b"short", A))),
        messages.Step(0, WHOLE, said(Whole(0, bytes(4 * lab.dimension)))),
        messages.Step(0, WHOLE, said(Whole(3, bytes(4)))),
        messages.Step(0, 3, b""),
        messages.Step(3, STATED, said(Stated(A, A))),
        messages.Reveal(0, 1, bytes(16)),
    ):
        refused(world[0].machine, Received(PeerId("p1"), messages.encode(message)))


def test_too_few_groups_for_the_rule_are_refused(lab: Any) -> None:
    with pytest.raises(BadInput, match="has to be shown 5 means, and 9 peers in groups of 3 make 3"):
        mesh(lab, 9, "multi-krum")
    assert SecureClusters().aggregates
