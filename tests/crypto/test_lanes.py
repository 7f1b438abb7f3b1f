"""Lane packing: integers in, the same integers and their sums out, and nothing else accepted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import RemoteError, generator
from veilmesh.crypto.lanes import Packing, guard_bits, quantised


@st.composite
def packings(draw: st.DrawFn) -> tuple[Packing, int]:
    bits, peers = draw(st.integers(2, 12)), draw(st.integers(2, 64))
    width = bits + guard_bits(peers)
    return Packing(draw(st.integers(1, 9)), draw(st.integers(1, 62 // width)), width, bits), peers


@given(packings(), st.data())
def test_a_sum_of_packed_vectors_unpacks_to_the_sum(made: tuple[Packing, int], data: st.DataObject) -> None:
    packing, peers = made
    size, count = data.draw(st.integers(0, packing.capacity)), data.draw(st.integers(1, peers))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    levels = rng.integers(-packing.largest, packing.largest, (count, size), endpoint=True)
    if data.draw(st.booleans()):
        levels[:] = data.draw(st.sampled_from([-1, 1])) * packing.largest  # the extremes, where lanes could spill
    packed = np.sum([packing.pack(one) for one in levels], axis=0)
    np.testing.assert_array_equal(packing.unpack(packed, size, count), levels.sum(axis=0))


def test_what_no_honest_vectors_sum_to_is_refused() -> None:
    packing = Packing(slots=4, lanes=2, width=10, value_bits=8)
    honest = packing.pack(np.array([127, -127, 5], np.int64))
    for spoilt in (honest * 3, honest + (1 << 19), -honest, honest + (packing.largest + 1)):
        with pytest.raises(RemoteError):
            packing.unpack(spoilt, 3, 2)
    with pytest.raises(RemoteError):  # the slots behind the vector's end say nothing
        packing.unpack(honest + np.array([0, 0, 0, 1]), 3, 1)


def test_rounding_is_to_the_nearest_or_unbiased() -> None:
    x = np.array([0.3, -0.3, 2.0, -2.0, 0.0], np.float32)
    assert quantised(x, 1.0, 10, None).tolist() == [3, -3, 10, -10, 0]
    many = np.full(200_000, 0.123, np.float32)
    levels = quantised(many, 1.0, 7, generator(0, "test"))
    assert set(levels.tolist()) == {0, 1}
    assert abs(levels.mean() / 7 - 0.123) < 1e-3
