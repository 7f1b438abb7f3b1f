"""The contract of every codec, and what `dense`, `top-k-plain` and `8-bit` promise besides."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs import CODECS, decode, encode
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.crypto.codecs.table import WIRE_IDS, decode_lossless
from veilmesh.crypto.codecs.topk import TopK

NAMES = CODECS.names()
LARGEST = float(np.finfo(np.float32).max)
vectors = hnp.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-LARGEST, LARGEST, width=32))
each_codec = pytest.mark.parametrize("name", NAMES)

WORST = {  # largest error of a said coordinate, as a fraction of the largest magnitude; scales are rounded up by 1/128
    "dense": 0.0, "top-k": 0.0, "top-k-plain": 0.0, "rand-k": 0.0,
    "8-bit": 1 / 127, "8-bit-zstd": 1.008 / 127, "4-bit": 1.008 / 7, "nf4": 1.008 * (1 - 0.6961928) / 2,
    "normal-float": 1.008 * (1 - 0.6961928) / 2,
    "2-bit": 1.008, "sign": 1.008, "bf16": 1 / 256,
}  # fmt: skip


def normal(dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def decoded_or_refused(raw: bytes, dimension: int) -> bool:
    """Whether `raw` decodes; if so to finite values of the right shape, if not for a known reason."""
    try:
        decoded = decode(raw, dimension)
    except RemoteError as refused:
        reason = refused.refusal
    else:
        assert decoded.values.shape == (dimension,)
        assert np.isfinite(decoded.values).all()
        assert decoded.said is None or decoded.said.shape == (dimension,)
        return True
    assert reason in (Refusal.MALFORMED, Refusal.MISMATCH)
    return False


def refusal(raw: bytes, dimension: int) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        decode(raw, dimension)
    return caught.value.refusal


# --- every registered codec ---------------------------------------------------------------------------------------


def test_the_table_of_wire_ids_is_complete_and_nobody_shares_a_number():
    ours = {CODECS.get(name) for name in NAMES if CODECS.get(name).__module__.startswith("veilmesh.")}
    assert set(WIRE_IDS.values()) == ours
    assert all(codec.wire_id == number for number, codec in WIRE_IDS.items())
    assert {number: codec.__name__ for number, codec in WIRE_IDS.items()} == {  # given away for good
        1: "Dense", 2: "TopK", 3: "EightBit", 4: "TopKPacked", 5: "EightBitZstd", 6: "FourBit", 7: "TwoBit",
        8: "NormalFloat4", 9: "Sign", 10: "RandK", 11: "LowRank", 12: "NormalFloat", 13: "BFloat16",
    }  # fmt: skip


@each_codec
@given(x=vectors)
def test_what_is_said_is_near_and_the_rest_is_zero(name, x):
    codec = CODECS.build(name)
    before = x.copy()
    decoded = decode(encode(codec, x, rng()), x.size)
    assert decoded.values.dtype == np.float32
    assert decoded.values.shape == x.shape
    np.testing.assert_array_equal(x, before)
    said = np.ones(x.size, bool) if decoded.said is None else decoded.said
    assert said.any()
    assert not decoded.values[~said].any()
    if codec.lossless:
        np.testing.assert_array_equal(decoded.values, x)
    error = np.abs(decoded.values.astype(np.float64) - x)[said]
    largest = np.abs(x).max().astype(np.float64)
    assert (error <= WORST.get(name, 2.0) * largest * (1 + 1e-5) + 1e-40).all()  # the least scale is 2^-133


@each_codec
@pytest.mark.parametrize("dimension", [1, 7, 8, 9, 1023, 1024, 1025, 4099])
def test_the_same_generator_gives_the_same_bytes(name, dimension):
    codec, x = CODECS.build(name), normal(dimension)
    assert encode(codec, x, rng(5)) == encode(codec, x, rng(5))


@each_codec
@given(x=vectors, data=st.data())
def test_mutated_bytes_decode_or_are_refused(name, x, data):
    raw = bytearray(encode(CODECS.build(name), x, rng()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    decoded_or_refused(bytes(raw), x.size)


@each_codec
@given(raw=st.binary(max_size=400), dimension=st.integers(1, 300))
def test_arbitrary_bytes_decode_or_are_refused(name, raw, dimension):
    decoded_or_refused(bytes([CODECS.get(name).wire_id]) + raw, dimension)
    decoded_or_refused(bytes([CODECS.get(name).wire_id]) + raw, len(raw))


@each_codec
def test_another_dimension_is_refused(name):
    raw = encode(CODECS.build(name), normal(2000), rng())
    for dimension in (1, 100, 1000, 1999, 4000, 1 << 40):
        assert refusal(raw, dimension) is Refusal.MISMATCH


@each_codec
def test_lying_bytes_allocate_no_more_than_the_dimension_asks_for(name):
    dimension = 10_000
    tracemalloc.start()
    try:
        for lie in (struct.pack("!II", 0xFFFFFFFF, dimension), struct.pack("!II", dimension, dimension)):
            refusal(bytes([CODECS.get(name).wire_id]) + lie + bytes(50), dimension)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * dimension


@each_codec
def test_decoding_takes_memory_in_proportion_to_the_dimension(name):
    dimension = 100_000
    raw = encode(CODECS.build(name), normal(dimension), rng())
    tracemalloc.start()
    try:
        decode(raw, dimension)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * dimension


@each_codec
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_said(name, wrong):
    x = normal(100)
    x[3] = wrong
    with pytest.raises(LocalError):
        encode(CODECS.build(name), x, rng())


@each_codec
@pytest.mark.parametrize("x", [np.zeros((2, 2), np.float32), np.zeros(4, np.float64)], ids=["matrix", "float64"])
def test_only_flat_float32_vectors_are_encoded(name, x):
    with pytest.raises(LocalError):
        encode(CODECS.build(name), x, rng())


@each_codec
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_believed(name, wrong):
    """Every four bytes of an encoding in turn become NaN or infinity: whatever is decoded is finite."""
    raw = encode(CODECS.build(name), normal(64), rng())
    changed = [raw[:at] + np.float32(wrong).tobytes() + raw[at + 4 :] for at in range(1, len(raw) - 3)]
    assert not all([decoded_or_refused(other, 64) for other in changed])


def test_unknown_ids_and_no_bytes_at_all_are_refused():
    for raw in (b"", b"\x00", bytes([max(WIRE_IDS) + 1]) + bytes(40), b"\xff"):
        assert refusal(raw, 10) is Refusal.MALFORMED


def test_where_every_coordinate_counts_a_lossy_codec_is_refused():
    x = normal(100)
    np.testing.assert_array_equal(decode_lossless(encode(Dense(), x, rng()), 100), x)
    for lossy in (CODECS.build(name) for name in NAMES if not CODECS.get(name).lossless):
        with pytest.raises(RemoteError) as caught:
            decode_lossless(encode(lossy, x, rng()), 100)
        assert caught.value.refusal is Refusal.MISMATCH


def test_a_codec_without_a_wire_id_cannot_speak():
    class Foreign(Dense):
        pass

    with pytest.raises(LocalError):
        encode(Foreign(), normal(4), rng())


@each_codec
def test_what_is_encoded_is_read_alike_by_everybody(name):
    """A receiver's bits are the sender's own: gossip's public copies rest on it."""
    raw = encode(CODECS.build(name), normal(5000), rng())
    assert decode(raw, 5000).values.tobytes() == decode(bytes(bytearray(raw)), 5000).values.tobytes()


@each_codec
@given(seed=st.integers(0, 1000))
def test_as_it_comes_a_codec_can_be_used_with_memory(name, seed):
    """Every strategy remembers what was not said. If a codec's errors outgrow its vectors, that explodes; it may never
    be more than if nothing had been said at all."""
    x = np.random.default_rng(seed).standard_t(3, size=500).astype(np.float32)
    codec, stream, memory = CODECS.build(name), rng(seed), np.zeros(500, np.float32)
    for _ in range(80):
        memory = x + memory - decode(encode(codec, x + memory, stream), 500).values
    assert np.linalg.norm(memory) < 80 * np.linalg.norm(x)


@each_codec
def test_nothing_at_all_is_said_exactly(name):
    decoded = decode(encode(CODECS.build(name), np.zeros(3000, np.float32), rng()), 3000)
    assert not decoded.values.any()


# --- dense --------------------------------------------------------------------------------------------------------


def test_dense_is_little_endian_floats():
    assert encode(Dense(), np.array([1, -2], np.float32), rng()) == bytes.fromhex("01 0000803f 000000c0")


# --- top-k-plain --------------------------------------------------------------------------------------------------


def test_top_k_says_the_largest_of_both_signs_exactly():
    x = np.array([0.1, -5, 0.2, 4, -0.3, 3, 0, -6, 0.4, 0.5], np.float32)
    decoded = decode(encode(TopK(keep=0.4), x, rng()), 10)
    np.testing.assert_array_equal(np.flatnonzero(decoded.said), [1, 3, 5, 7])
    np.testing.assert_array_equal(decoded.values, np.where(decoded.said, x, 0))


@given(x=vectors, keep=st.floats(0.0001, 1))
def test_nothing_unsaid_is_larger_than_anything_said(x, keep):
    decoded = decode(encode(TopK(keep=keep), x, rng()), x.size)
    said = decoded.said
    assert np.count_nonzero(said) == min(x.size, max(1, round(keep * x.size)))
    np.testing.assert_array_equal(decoded.values[said], x[said])
    if not said.all():
        assert np.abs(x[said]).min() >= np.abs(x[~said]).max()


def test_of_equal_magnitudes_the_first_are_said():
    x = np.where(np.arange(5000) % 2, 1, -1).astype(np.float32)
    np.testing.assert_array_equal(np.flatnonzero(decode(encode(TopK(keep=0.01), x, rng()), 5000).said), np.arange(50))


@pytest.mark.parametrize("keep", [0.0001, 0.001, 0.01, 0.03, 0.04, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dimension", [1, 17, 1000, 8191])
def test_the_indices_are_counted_and_the_smaller_form_is_taken(keep, dimension):
    k = min(dimension, max(1, round(keep * dimension)))
    raw = encode(TopK(keep=keep), normal(dimension), rng())
    assert len(raw) == 1 + 8 + min(4 * k, -(-dimension // 8)) + 4 * k


@pytest.mark.parametrize(
    "indices", [(3, 1), (1, 1), (1, 100_000), (1, 0xFFFFFFFF)], ids=["order", "twice", "out", "far out"]
)
def test_indices_that_lie_are_refused(indices):
    raw = b"\x02" + struct.pack("!II", 2, 100_000) + np.array(indices, "<u4").tobytes() + bytes(8)
    assert refusal(raw, 100_000) is Refusal.MALFORMED


@pytest.mark.parametrize("bitmap", [b"\xf0\x00", b"\xc0\x00", b"\xc0\x40"], ids=["more", "fewer", "beyond the end"])
def test_bitmaps_that_lie_are_refused(bitmap):
    raw = b"\x02" + struct.pack("!II", 3, 9) + bitmap + bytes(12)
    assert refusal(raw, 9) is Refusal.MALFORMED


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_bad_input(keep):
    with pytest.raises(BadInput):
        CODECS.build("top-k-plain", {"keep": keep})


# --- 8-bit --------------------------------------------------------------------------------------------------------


def test_eight_bits_are_unbiased():
    x, draws = normal(300), 3000
    x[0] = 4  # the scale
    x[1] = 3.9999
    stream = rng(1)
    mean = np.mean([decode(encode(EightBit(), x, stream), 300).values for _ in range(draws)], axis=0, dtype=np.float64)
    level = np.abs(x).max() / 127
    # one draw's standard deviation is at most half a level
    assert (np.abs(mean - x) < 5 * level / 2 / np.sqrt(draws)).all()
    assert mean[0] == 4


def test_eight_bits_cost_a_byte_a_coordinate_and_a_scale_a_chunk():
    for dimension, chunks in [(1, 1), (1024, 1), (1025, 2), (5000, 5)]:
        assert len(encode(EightBit(), normal(dimension), rng())) == 1 + dimension + 4 * chunks


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1, 3e38], ids=str)
def test_the_smallest_and_largest_scales_neither_overflow_nor_wrap(scale):
    """2^18 coordinates at the scale itself: a level of 127.00001 would be rounded up to 128 in some of them."""
    x = np.full(1 << 18, np.nextafter(np.float32(scale), np.float32(0)) or scale, np.float32)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        np.testing.assert_array_equal(decode(encode(EightBit(), x, rng()), x.size).values, x)


def test_a_small_chunk_beside_a_large_one_keeps_its_own_scale():
    x = np.concatenate([normal(1024), normal(1024, 1) * np.float32(1e-6), np.zeros(1024, np.float32)])
    error = np.abs(decode(encode(EightBit(), x, rng()), x.size).values - x)
    assert error[1024:2048].max() <= 1e-6 * 5 / 127
    assert not error[2048:].any()


@pytest.mark.parametrize("at", [0, 4], ids=["negative scale", "level -128"])
def test_what_no_encoder_writes_is_refused(at):
    raw = bytearray(encode(EightBit(), normal(4), rng()))
    raw[1 + at : 5 + at] = np.float32(-1).tobytes() if at == 0 else b"\x80\x00\x00\x00"
    assert refusal(bytes(raw), 4) is Refusal.MALFORMED
