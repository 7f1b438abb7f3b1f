"""`bf16`: the nearest of the floats that are half as long, as every machine that computes in them rounds."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs import decode, encode
from veilmesh.crypto.codecs.bfloat16 import BFloat16

GENERATOR = np.random.default_rng(0)


def read(x: np.ndarray) -> np.ndarray:
    return decode(encode(BFloat16(), x, GENERATOR), x.size).values


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=200))
def test_it_is_the_nearest_bfloat16_and_the_even_one_of_two(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) < 3.3895e38)]
    said = read(x)
    halves = said.view(np.uint32)
    assert not (halves & 0xFFFF).any()
    wide = x.astype(np.float64)
    for step in (-0x10000, 0x10000):  # its neighbours are no nearer
        other = (halves.astype(np.int64) + step).astype(np.uint32).view(np.float32)
        near = np.isfinite(other) & ((other > 0) == (said > 0))
        off, theirs = np.abs(said - wide)[near], np.abs(other.astype(np.float64) - wide)[near]
        assert (off <= theirs).all()
        assert not ((halves[near] >> 16)[off == theirs] & 1).any()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200))
def test_what_was_said_is_said_again_as_it_is(values):
    once = read(np.array(values, np.float32))
    np.testing.assert_array_equal(read(once).view(np.uint32), once.view(np.uint32))


def test_the_largest_floats_stay_finite():
    largest = np.finfo(np.float32).max
    wanted = np.array([3.3895314e38, -3.3895314e38], np.float32)
    np.testing.assert_array_equal(read(np.array([largest, -largest], np.float32)), wanted)


@pytest.mark.parametrize("word", ["807f", "80ff", "c07f", "ffff"])
def test_what_is_not_finite_is_refused(word):
    with pytest.raises(RemoteError) as caught:
        decode(bytes.fromhex("0d 803f") + bytes.fromhex(word), 2)
    assert caught.value.refusal is Refusal.MALFORMED


def test_in_bytes():
    assert encode(BFloat16(), np.array([1, -1, 1.00390625, 1.01171875], np.float32), GENERATOR) == bytes.fromhex(
        "0d 803f 80bf 803f 823f"
    )


def test_a_large_model_is_said_without_a_second_one_in_memory():
    x = np.random.default_rng(1).normal(size=2_000_000).astype(np.float32)
    tracemalloc.start()
    try:
        raw = encode(BFloat16(), x, GENERATOR)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(raw) == 1 + 2 * x.size
    assert peak < 1.9 * x.nbytes  # what is written, once by the codec and once behind its wire id, and little more
