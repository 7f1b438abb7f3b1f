"""Intervals cover what they are said to cover, and pictures of one batch do not count as many."""

import numpy as np
import pytest

from veilmesh.sim.intervals import batches, bootstrap, share_interval, t_interval


def test_students_interval_by_hand() -> None:
    low, high = t_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert t_interval([5.0, 5.0]) == (5.0, 5.0)
    assert t_interval([1.0]) is None


def test_wilsons_interval_by_hand_and_never_empty() -> None:
    assert share_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = share_interval(0.0, 10)
    assert (low, high) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(1.0, 10) == pytest.approx((1 - high, 1 - low))


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.normal(3.0, 1.0, 30)
        low, high = bootstrap(values.tolist(), range(30)) or (0, 0)
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_pictures_of_one_batch_stand_or_fall_together() -> None:
    """Four batches of eight equal figures are four figures, not thirty-two."""
    values = [float(batch) for batch in range(4) for _ in range(8)]
    clustered = bootstrap(values, [int(v) for v in values]) or (0, 0)
    apart = bootstrap(values, range(32)) or (0, 0)
    assert clustered[1] - clustered[0] > 2 * (apart[1] - apart[0])
    assert batches([int(v) for v in values]) == 4


def test_one_batch_alone_is_looked_at_picture_by_picture() -> None:
    low, high = bootstrap([1.0, 2.0, 3.0], [0, 0, 0]) or (0, 0)
    assert low < 2 < high
    assert batches([0, 0, 0]) == 3


def test_one_picture_has_no_interval() -> None:
    assert bootstrap([1.0], [0]) is None


def test_the_same_values_have_the_same_interval() -> None:
    values = list(np.random.default_rng(1).random(20))
    assert bootstrap(values, range(20)) == bootstrap(values, range(20))
