"""Updates as two thin matrices, each summed by masks: exact at full rank, cheap at a low one, and nothing forgotten."""

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.peer.machine import Work
from veilmesh.swarm.secure_messages import Masked, Unmasked
from veilmesh.swarm.strategies.base import STRATEGIES


def mesh(lab: Any, peers: int = 5, rank: int = 1, **changes: Any) -> Any:
    options = {"rank": rank, **changes.pop("options", {})}
    return lab.build(peers, strategy="secure-groups", options=options, **changes)


def one_model(world: Any) -> np.ndarray:
    models = world.models()
    assert len({model.tobytes() for model in models}) == 1
    return models[0]


@pytest.mark.parametrize("peers", [2, 3, 6])
def test_with_all_columns_it_comes_to_what_whole_models_come_to(lab: Any, peers: int) -> None:
    """12 coordinates are 3 x 4, so that 3 columns are all there is."""
    thin = mesh(lab, peers, rank=3, rounds=6).start().settle()
    whole = lab.build(peers, strategy="secure-groups", rounds=6).start().settle()
    np.testing.assert_allclose(one_model(thin), whole.models()[0], atol=2e-6)
    for player in thin.players.values():
        np.testing.assert_allclose(player.machine._hidden.left_out, 0, atol=1e-6)
        assert [data["group"] for data in player.noted("round")] == [peers] * 6
        assert not player.refused


def test_with_one_column_all_come_to_the_same_bottom_in_the_end(lab: Any) -> None:
    world = mesh(lab, 3, rounds=80).start().settle()
    bottom = np.mean([world[i].target for i in range(3)], axis=0)
    np.testing.assert_allclose(one_model(world), bottom, atol=0.05)


@pytest.mark.parametrize("rank", [1, 2])
def test_what_was_learnt_is_in_the_model_or_still_to_be_said(lab: Any, rank: int) -> None:
    world = mesh(lab, 4, rank, rounds=6).start()
    learnt = np.zeros(lab.dimension)
    while world.pending:
        peer, what = world.pending[0]
        if isinstance(what, Work) and what.name.startswith("train"):
            learnt += world.players[peer].work(what.task).update
        world.step()
    left = sum(player.machine._hidden.left_out.astype(np.float64) for player in world.players.values())
    np.testing.assert_allclose(4 * one_model(world) + left, learnt, atol=1e-5)


def test_it_says_two_thin_matrices(lab: Any) -> None:
    said = {}
    for rank in (0, 2):
        world = mesh(lab, 4, rank, rounds=1, dimension=2500, options={"copies": 1}).start().settle()
        said[rank] = sum(len(m.words) for sender, _, m in world.said if sender == "p1" and isinstance(m, Masked))
    assert said[0] == 3 / 4 * 4 * 2500
    assert said[2] == 3 / 4 * 4 * 2 * (50 + 50)


@settings(max_examples=examples(5))
@given(random=st.randoms(use_true_random=False), peers=st.integers(2, 5))
def test_no_order_of_delivery_changes_a_bit(lab: Any, random: Any, peers: int) -> None:
    straight = mesh(lab, peers, rounds=4).start().settle()
    shuffled = mesh(lab, peers, rounds=4).start().settle(lambda count: random.randrange(count))
    assert [m.tobytes() for m in straight.models()] == [m.tobytes() for m in shuffled.models()]
    assert not any(player.refused for player in shuffled.players.values())


@settings(max_examples=examples(6))
@given(steps=st.integers(0, 600), who=st.integers(0, 4))
def test_one_that_dies_at_any_moment_costs_no_round(lab: Any, steps: int, who: int) -> None:
    world = mesh(lab, 5, rounds=4).start()
    for _ in range(steps):
        if world.pending:
            world.step()
    world.die(who)
    world.finish()
    one_model(world)
    for player in world.players.values():
        assert all(data["group"] >= 4 for data in player.noted("round"))


@settings(max_examples=examples(5))
@given(random=st.randoms(use_true_random=False), share=st.sampled_from([0.05, 0.3]))
def test_it_ends_whatever_is_lost(lab: Any, random: Any, share: float) -> None:
    world = mesh(lab, 4, rounds=3)
    world.lost = lambda sender, to, message: random.random() < share
    world.start().finish()
    assert [player.outcome.reason for player in world.players.values()] == ["finished"] * 4
    assert np.isfinite(world.models()).all()


def test_without_a_sum_a_round_changes_nothing(lab: Any) -> None:
    world = mesh(lab, 3, rounds=2).start()
    world.die(2)
    world.settle()
    assert not one_model(world).any()
    assert not any(isinstance(message, Masked | Unmasked) for _, _, message in world.said)
    for player in world.players.values():
        assert [data["why"] for data in player.noted("abandoned")] == ["too few enrolled"] * 2


def test_cohorts_come_whole_into_both_sums(lab: Any) -> None:
    world = mesh(lab, 6, rank=3, rounds=2, options={"cohort": 2}).start()
    world.pending = [(p, what) for p, what in world.pending if p != "p1"]
    world.die(1)
    world.settle()
    one_model(world)
    assert all([d["group"] for d in player.noted("round")] == [4, 4] for player in world.players.values())


def test_what_it_cannot_do_is_refused_with_what_to_do(lab: Any) -> None:
    for options in ({"rank": 2, "bits": 16}, {"rank": 2, "keep": 0.5}):
        with pytest.raises(BadInput, match="leave bits and keep out, or rank"):
            STRATEGIES.build("secure-groups", options)
    with pytest.raises(BadInput, match="set group to 9, or leave rank out"):
        mesh(lab, 9)
