"""Fixed point: sums are exact, as fine as they can be, and never wrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError
from veilmesh.crypto.fixed import FixedPoint, word_type

BITS = st.sampled_from([16, 32])
LIMITS = st.floats(1e-3, 1e4)


def vectors(seed: int, count: int, size: int, limit: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = limit * rng.choice([1e-6, 0.1, 1.0, 5.0])
    return (rng.standard_normal((count, size)) * scale).astype(np.float32)


@settings(deadline=None)
@given(bits=BITS, limit=LIMITS, count=st.integers(1, 64), size=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_sum_of_words_is_the_sum_of_what_was_quantised_exactly(bits, limit, count, size, seed) -> None:
    fixed = FixedPoint(bits, limit, count)
    x = vectors(seed, count, size, limit)
    rng = np.random.default_rng(seed) if bits == 16 else None
    integers = [fixed.quantise(row, rng) for row in x]
    total = np.zeros(size, word_type(bits))
    for row in integers:
        total += fixed.words(row)
    assert (fixed.decode_sum(total) == np.sum(integers, axis=0) * fixed.step).all()


@given(bits=BITS, limit=LIMITS, count=st.integers(1, 64), sign=st.sampled_from([-1, 1]))
def test_the_largest_vectors_do_not_wrap_and_a_finer_scale_would(bits, limit, count, sign) -> None:
    fixed = FixedPoint(bits, limit, count)
    total = np.zeros(1, word_type(bits))
    for _ in range(count):
        total += fixed.encode(np.float32([sign * 1e30]))
    assert fixed.decode_sum(total)[0] == pytest.approx(sign * count * limit)
    assert count * (fixed.top + 1) >= 1 << (bits - 1)


@given(limit=LIMITS, seed=st.integers(0, 99))
def test_what_is_in_range_is_rounded_to_the_nearest_step_and_the_rest_is_clipped(limit, seed) -> None:
    fixed = FixedPoint(32, limit, 8)
    [x] = vectors(seed, 1, 50, limit)
    read = fixed.decode_sum(fixed.encode(x))
    assert np.abs(read - np.clip(x.astype(float), -limit, limit)).max() <= fixed.step * 0.5000001
    assert np.abs(read).max() <= limit * 1.0000001


def test_stochastic_rounding_has_the_right_mean_and_is_repeatable() -> None:
    fixed = FixedPoint(16, 1.0, 8)
    x = np.full(40_000, 10.3 * fixed.step, np.float32)
    a, b = (fixed.quantise(x, np.random.default_rng(7)) for _ in range(2))
    assert (a == b).all()
    assert set(np.unique(a)) == {10, 11}
    assert abs(a.mean() - 10.3) < 0.02


def test_32_bits_for_eight_are_as_fine_as_float32() -> None:
    assert FixedPoint(32, 16.0, 8).step < 2**-23


@pytest.mark.parametrize("options", [(8, 1.0, 2), (16, 1.0, 0), (16, 1.0, 40_000), (32, 0.0, 2), (32, np.inf, 2)])
def test_what_is_no_fixed_point_is_our_own_mistake(options) -> None:
    with pytest.raises(LocalError):
        FixedPoint(*options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_encoded(value: float) -> None:
    with pytest.raises(LocalError):
        FixedPoint(32, 1.0, 2).encode(np.float32([value]))
