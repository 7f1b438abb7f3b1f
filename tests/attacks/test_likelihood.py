"""Distances that know a codec: their derivatives, and that the truth explains what was said of it."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.attacks.matching.distance import Cosine
from veilmesh.attacks.matching.levels import basis, flat, nearest_intervals, steps
from veilmesh.attacks.matching.likelihood import (
    Clipped,
    Hinge,
    Intervals,
    Projected,
    Rounded,
    Signs,
    Ternary,
    Thresholded,
    Together,
)
from veilmesh.crypto.codecs import CODECS, decode, encode

SIZE = 37


def _drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _said(x):
    """A few of every kind: a message of the vector x (d,), and the distance that a codec's knowledge makes of it."""
    kept = (x.abs() > 1).double()
    directions = torch.linalg.qr(_drawn(1, 6, 2)).Q
    interval = Intervals(x - 0.3, x + 0.4, 5.0)
    return {
        "signs": Signs(x.sign(), 1.5, -1.0, 10, x.abs()),
        "evenly": Signs(x.sign()),
        "hinge": Hinge(x.sign()),
        "ternary": Ternary(x.sign() * kept, 2.0, None, 10),
        "selected": Ternary(x.sign() * kept, 2.0, 0.7),
        "intervals": interval,
        "rounded": Rounded(x, x.abs() + 0.5),
        "partly": Rounded(x * kept, 1.5 * kept),
        "thresholded": Thresholded(x * kept, kept, 1.0, 0.5),
        "projected": Projected(x, directions),
        "clipped": Clipped(interval, 3.0),
        "not clipped": Clipped(interval, 300.0),
        "together": Together([(1.0, Signs(x.sign())), (0.5, Cosine(x))]),
    }


@pytest.mark.parametrize("name", _said(_drawn(0, SIZE)))
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(3), deadline=None)
def test_derivatives_are_those_of_the_values(name, seed):
    """By central differences; where a kink lies within the step the two may differ, and such points are left out."""
    distance, u = _said(_drawn(0, SIZE))[name], _drawn(seed, 2, SIZE)
    values, pulls = distance.at(u, 0.0)
    assert values.shape == (2,)
    assert pulls.shape == u.shape
    for place in range(0, SIZE, 5):
        move = torch.zeros_like(u)
        move[:, place] = 1e-6
        up, down = distance.at(u + move, 0.0)[0] - values, values - distance.at(u - move, 0.0)[0]
        smooth = (up - down).abs() <= 1e-3 * (up.abs() + down.abs()) + 1e-10
        measured = (up + down) / 2e-6
        assert torch.allclose(measured[smooth], pulls[smooth, place], rtol=1e-3, atol=1e-5)


def _wire(name, x, **options):
    raw = encode(CODECS.build(name, options), x.numpy(), np.random.default_rng(0))
    return decode(raw, x.numel())


@pytest.fixture
def gradient():
    """(d,), heavy-tailed, with whole filters that never fired."""
    x = np.random.default_rng(3).standard_t(3, 3000).astype(np.float32)
    x[1000:1200] = 0
    return torch.from_numpy(x)


def test_the_truth_lies_within_what_rounding_to_the_nearest_leaves_open(gradient):
    message = torch.from_numpy(_wire("nf4", gradient).values)
    interval = nearest_intervals(message, 64)
    assert float(interval.at(gradient[None])[0]) < 1e-4  # scales are rounded up by at most 0.8 %
    assert float(interval.at(1.5 * gradient[None])[0]) > 0.01


@pytest.mark.parametrize("name", ["8-bit", "8-bit-zstd", "4-bit"])
def test_rounding_at_random_never_goes_further_than_a_step(gradient, name):
    message = torch.from_numpy(_wire(name, gradient).values)
    step = steps(message, 1024)
    assert bool(((message - gradient).abs() <= 1.001 * step).all())
    mine, other = Rounded(message, step).at(torch.stack([gradient, gradient.roll(1)]))[0]
    assert mine < other


def test_of_what_was_not_among_the_largest_only_what_exceeds_them_counts(gradient):
    said = _wire("top-k", gradient, keep=0.1)
    kept, mask = torch.from_numpy(said.values), torch.from_numpy(said.said).float()
    distance = Thresholded(kept, mask, float(kept[mask > 0].abs().min()))
    assert float(distance.at(gradient[None])[0]) == 0
    assert float(distance.at(kept[None])[0]) == 0
    assert float(distance.at(gradient.roll(1)[None])[0]) > 0.1


def test_signs_are_explained_by_the_truth_at_any_scale(gradient):
    message = torch.from_numpy(_wire("sign", gradient).values)
    assert flat(message, 1024)
    distance = Signs(message.sign(), 100.0, 1.0)
    values = distance.at(torch.stack([gradient, 1e-3 * gradient, gradient.roll(1)]))[0]
    assert values[0] < 0.02
    assert torch.allclose(values[0], values[1], atol=1e-5)
    assert values[2] > 0.5
    assert float(Hinge(message.sign()).at(gradient[None])[0]) == 0


def test_units_that_never_fired_show_in_signs():
    silent = torch.zeros(1, 10)
    assert float(Signs(-torch.ones(10)).at(silent)[0]) == pytest.approx(0, abs=1e-6)
    assert float(Signs(torch.ones(10)).at(silent)[0]) == pytest.approx(2)


def test_ternary_levels_are_explained_by_the_truth(gradient):
    message = torch.from_numpy(_wire("2-bit", gradient).values)
    mine, other = Ternary(message.sign(), 30.0).at(torch.stack([gradient, gradient.roll(1)]))[0]
    assert mine < 0.02
    assert other > 0.3


@pytest.mark.parametrize("size", [3000, 2916, 50])
def test_the_directions_of_a_low_rank_message_are_found_again(gradient, size):
    x = gradient[:size].clone()
    message = torch.from_numpy(_wire("low-rank", x, rank=2).values)
    directions = basis(message, 2, 0)
    assert torch.allclose(directions.mT @ directions, torch.eye(directions.shape[1]), atol=1e-5)
    mine, plain = Projected(message, directions).at(x[None])[0], Cosine(message).at(x[None])[0]
    assert float(mine) < 0.01 < float(plain)


def test_numbers_that_are_no_levels_are_not_taken_for_such(gradient):
    assert not flat(gradient, 1024)
    assert steps(gradient, 1024) is None
    assert nearest_intervals(gradient, 64) is None
    assert basis(gradient, 4, 0) is None


@pytest.mark.parametrize("name", _said(_drawn(0, SIZE)))
def test_nothing_breaks_where_a_candidate_has_no_gradient(name):
    value, pull = _said(_drawn(0, SIZE))[name].at(torch.zeros(1, SIZE, dtype=torch.float64), 0.0)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(pull).all())
