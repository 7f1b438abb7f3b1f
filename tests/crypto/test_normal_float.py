"""`normal-float`: the values of QLoRA at four bits, zeros for nothing, nearest elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.codecs import CODECS, decode, encode
from veilmesh.crypto.codecs.nf4 import VALUES
from veilmesh.crypto.codecs.normal_float import NormalFloat, normal_values


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def there_and_back(x: np.ndarray, bits: int = 4, block: int = 64) -> tuple[np.ndarray, int]:
    raw = encode(NormalFloat(bits, block), x, rng())  # type: ignore[arg-type]  # 2, 3 or 4
    return decode(raw, x.size).values, len(raw)


def test_four_bits_are_those_of_qlora() -> None:
    np.testing.assert_allclose(normal_values(4), VALUES, atol=2e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_there_are_as_many_values_as_codes_and_zero_is_one(bits: int) -> None:
    values = normal_values(bits)
    assert values.shape == (2**bits,)
    assert (np.diff(values) > 0).all()
    assert values[-1] == 1
    assert 0 in values


@pytest.mark.parametrize("bits", [2, 3, 4])
@given(x=hnp.arrays(np.float32, st.integers(1, 400), elements=st.integers(-800, 800).map(lambda n: np.float32(n) / 64)))
def test_every_coordinate_is_read_as_the_nearest_value_and_zero_as_zero(bits: int, x: np.ndarray) -> None:
    read, _ = there_and_back(x, bits, 16)
    assert (read[x == 0] == 0).all()
    kept = x[x != 0]
    for start in range(0, kept.size, 16):
        block = kept[start : start + 16]
        there = read[x != 0][start : start + 16]
        scale = float(np.abs(block).max())
        distance = np.abs(block[:, None] / scale - normal_values(bits)).min(axis=1)
        assert (np.abs(block - there) / scale <= distance + 0.02).all()  # scales are rounded up by at most 1/128


def test_columns_of_zeros_cost_next_to_nothing() -> None:
    weights = rng().normal(size=(64, 64)).astype(np.float32)
    whole = there_and_back(weights.reshape(-1))[1]
    weights[:, rng().permutation(64)[:24]] = 0
    masked = there_and_back(weights.reshape(-1))[1]
    assert masked <= 0.64 * whole + 40
    assert masked <= 0.12 * 4 * weights.size


def test_nothing_but_zeros() -> None:
    read, size = there_and_back(np.zeros(1000, np.float32))
    assert not read.any()
    assert size < 200


def read_or_refused(raw: bytes, dimension: int) -> None:
    try:
        values = decode(raw, dimension).values
    except RemoteError as error:
        refused = error.refusal
    else:
        assert values.shape == (dimension,)
        assert np.isfinite(values).all()
        return
    assert refused in (Refusal.MALFORMED, Refusal.MISMATCH)


@given(raw=st.binary(max_size=60), dimension=st.integers(1, 40))
def test_bytes_of_anybody_are_read_or_refused(raw: bytes, dimension: int) -> None:
    read_or_refused(bytes([NormalFloat.wire_id]) + raw, dimension)


@given(at=st.integers(1, 200), bit=st.integers(0, 7))
def test_a_flipped_bit_is_read_or_refused(at: int, bit: int) -> None:
    x = rng().normal(size=100).astype(np.float32)
    raw = bytearray(encode(NormalFloat(), x, rng()))
    raw[1 + at % (len(raw) - 1)] ^= 1 << bit
    read_or_refused(bytes(raw), x.size)


def test_options_out_of_range_are_refused() -> None:
    for options in ({"bits": 5}, {"bits": 1}, {"block": 8}, {"block": 5000}):
        with pytest.raises(BadInput):
            CODECS.build("normal-float", options)
