"""Sums over overlapping groups: whom they give away, and whom no number of them does."""

import numpy as np
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.attacks.seen.overlap import singled_out, solve
from veilmesh.peer.machine import PeerId

PEERS = [PeerId(f"p{i}") for i in range(6)]


def test_two_groups_that_differ_by_one_member_give_it_away() -> None:
    u = np.arange(6 * 4, dtype=np.float32).reshape(6, 4) ** 1.5
    groups = [PEERS[:4], PEERS[:3]]
    [found] = solve(groups, [u[:4].sum(axis=0), u[:3].sum(axis=0)])
    assert found.peer == PEERS[3]
    np.testing.assert_allclose(found.update, u[3], rtol=1e-5)


def test_one_sum_gives_nobody_away() -> None:
    assert singled_out([PEERS]) == frozenset()
    assert solve([], []) == []


@given(st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=12))
def test_cohorts_that_come_and_go_together_hide_their_members(groups: list[set[int]]) -> None:
    """Three cohorts of two: whichever of them meet, and however often."""
    assert singled_out([[PEERS[2 * c + k] for c in cohorts for k in (0, 1)] for cohorts in groups]) == frozenset()


@settings(max_examples=examples(25))
@given(st.lists(st.sets(st.integers(0, 5), min_size=2), min_size=1, max_size=10), st.integers(0, 2**32 - 1))
def test_whoever_is_singled_out_is_solved_for_exactly_and_nobody_else(groups: list[set[int]], seed: int) -> None:
    u = np.random.default_rng(seed).normal(size=(6, 3))
    named = [[PEERS[i] for i in sorted(g)] for g in groups]
    solved = {s.peer: s for s in solve(named, [u[sorted(g)].sum(axis=0).astype(np.float32) for g in groups])}
    assert solved.keys() == singled_out(named)
    for peer, one in solved.items():
        np.testing.assert_allclose(one.update, u[PEERS.index(peer)], atol=1e-4)
    # Who is not singled out could have said anything: another solution with other values has the same sums.
    matrix = np.array([[float(i in g) for i in range(6)] for g in groups])
    free = np.eye(6) - np.linalg.pinv(matrix) @ matrix
    heard = {i for g in groups for i in g}
    assert {PEERS[i] for i in heard if np.abs(free[:, i]).max() < 1e-7} == solved.keys()
