"""Homomorphic sums: exact or nearly, to the key's owner and to nobody else; and what is no ciphertext is refused."""

import pickle
import struct
from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal, RemoteError, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Approximate, Keys, Lanes, Scheme
from veilmesh.crypto.homomorphic_work import Add, Decrypt, Encrypt, MakeKeys, Refused
from veilmesh.crypto.seal import new_context

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

SMALL = Lanes(value_bits=2, peers=8, limit=0.1)
SCHEMES: list[Scheme] = [Lanes(), SMALL, Lanes(16, 8), Lanes(24, 256), Approximate(), Approximate(degree=8192)]
FEW = settings(max_examples=examples(6), suppress_health_check=[HealthCheck.function_scoped_fixture])


def vectors(count: int, dimension: int, scale: float = 0.05) -> list[Vector]:
    return [(scale * generator(i, "test").normal(size=dimension)).astype(np.float32) for i in range(count)]


@pytest.fixture(scope="module")
def small_keys() -> Keys:
    return SMALL.keys()


@pytest.mark.parametrize("scheme", [Lanes(), SMALL, Lanes(16, 8), Lanes(24, 256)], ids=str)
@pytest.mark.parametrize("rounded_at_random", [False, True])
def test_a_sum_of_lanes_is_the_plain_sum_of_what_was_quantised(scheme: Lanes, rounded_at_random: bool) -> None:
    keys, count, dimension = scheme.keys(), 5, scheme.capacity + 7
    rngs = [generator(i, "rounding") if rounded_at_random else None for i in range(count)]
    again = [generator(i, "rounding") if rounded_at_random else None for i in range(count)]
    xs = vectors(count, dimension)
    total = scheme.add(keys.public, [scheme.encrypt(keys.public, x, rng) for x, rng in zip(xs, rngs, strict=True)])
    plain = np.sum([scheme.quantise(x, rng) for x, rng in zip(xs, again, strict=True)], axis=0)
    np.testing.assert_array_equal(scheme.decrypt_levels(keys, total, dimension, count), plain)
    np.testing.assert_array_equal(scheme.decrypt(keys, total, dimension, count), scheme.dequantise(plain))


@FEW
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), count=st.integers(1, 8))
def test_any_values_sum_exactly(small_keys: Keys, values: list[float], count: int) -> None:
    x = np.array(values, np.float32)
    total = SMALL.add(small_keys.public, [SMALL.encrypt(small_keys.public, x)] * count)
    np.testing.assert_array_equal(SMALL.decrypt_levels(small_keys, total, x.size, count), count * SMALL.quantise(x))


@pytest.mark.parametrize("lanes", [Lanes(8, 256), Lanes(2, 256), Lanes(24, 256)], ids=str)
def test_as_many_vectors_as_a_scheme_is_made_for_still_sum_exactly(lanes: Lanes) -> None:
    keys = lanes.keys()
    x = np.full(9, -lanes.limit, np.float32)  # the same ciphertext again and again: its noise grows as fast as it can
    total = lanes.add(keys.public, [lanes.encrypt(keys.public, x)] * 256)
    np.testing.assert_array_equal(lanes.decrypt_levels(keys, total, 9, 256), 256 * lanes.quantise(x))


@pytest.mark.parametrize("scheme", [Approximate(), Approximate(degree=8192)], ids=str)
def test_a_sum_of_ckks_is_near(scheme: Approximate) -> None:
    keys, xs = scheme.keys(), vectors(8, scheme.capacity + 7, scale=1.0)
    total = scheme.add(keys.public, [scheme.encrypt(keys.public, x) for x in xs])
    plain = np.sum(xs, axis=0, dtype=np.float64)
    assert np.abs(scheme.decrypt(keys, total, plain.size, 8) - plain).max() < 1e-5


def test_two_thousand_additions_stay_near() -> None:
    scheme = Approximate(peers=2048)
    keys, xs = scheme.keys(), vectors(20, 500, scale=0.4)
    ciphertexts = [scheme.encrypt(keys.public, x) for x in xs]
    total, plain = ciphertexts[0], xs[0].astype(np.float64)
    for i in range(1, 2001):
        total = scheme.add(keys.public, [total, ciphertexts[i % 20]])
        plain += xs[i % 20]
    assert np.abs(scheme.decrypt(keys, total, 500, 2001) - plain).max() < 1e-4


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_another_key_reads_nothing(scheme: Scheme) -> None:
    keys, other, (x,) = scheme.keys(), scheme.keys(), vectors(1, 300)
    ciphertext = scheme.encrypt(keys.public, x)
    with pytest.raises(RemoteError) as caught:
        scheme.decrypt(other, ciphertext, 300, 1)
    assert caught.value.refusal is Refusal.MISMATCH


def test_a_ciphertext_shows_nothing_of_its_vector(small_keys: Keys) -> None:
    zero, one = np.zeros(50, np.float32), np.full(50, 0.1, np.float32)
    raws = [SMALL.encrypt(small_keys.public, x) for x in (zero, zero, one)]
    assert len(set(raws)) == 3  # the same vector twice is two ciphertexts
    assert {len(raw) for raw in raws} == {SMALL.ciphertext_size(50)}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_sizes_follow_from_the_scheme(scheme: Scheme) -> None:
    keys = scheme.keys()
    assert len(keys.public) == scheme.public_size()
    for dimension in (0, 1, scheme.capacity, scheme.capacity + 1):
        ciphertext = scheme.encrypt(keys.public, np.zeros(dimension, np.float32))
        assert len(ciphertext) == scheme.ciphertext_size(dimension)
        scheme.check_ciphertext(ciphertext, dimension)
        assert scheme.decrypt(keys, ciphertext, dimension, 1).shape == (dimension,)


def test_addition_is_the_librarys() -> None:
    """SEAL's own sum of two ciphertexts is bit for bit the one that is made of residues here."""
    scheme, made = SMALL, SMALL.template
    context, _ = new_context(made.parameters)
    left, right = (made.encrypt(context, np.arange(made.slots) + i) for i in range(2))
    both = []
    for words in (left, right):
        raw = made.ciphertext_bytes(words)
        both.append(tenseal.bfv_vector_from(context, raw))
    np.testing.assert_array_equal(made.ciphertext_words(both[0] + both[1]), made.ciphertext.add(left, right))
    assert scheme.capacity == made.slots * scheme.packing.lanes


@pytest.fixture(scope="module")
def honest(small_keys: Keys) -> bytes:
    return SMALL.encrypt(small_keys.public, np.zeros(10, np.float32))


def refused(act: Callable[[], object]) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        act()
    return caught.value.refusal


def test_frames_are_refused_by_what_is_wrong_with_them(small_keys: Keys, honest: bytes) -> None:
    check = SMALL.check_ciphertext
    assert refused(lambda: check(honest + b"\0", 10)) is Refusal.OVERSIZED
    assert refused(lambda: check(honest[:-1], 10)) is Refusal.TRUNCATED
    assert refused(lambda: check(b"", 10)) is Refusal.TRUNCATED
    assert refused(lambda: check(b"XX" + honest[2:], 10)) is Refusal.MALFORMED
    assert refused(lambda: check(honest, 11)) is Refusal.MISMATCH
    assert refused(lambda: Lanes(2, 8, 0.2).check_ciphertext(honest, 10)) is Refusal.MISMATCH
    prime = SMALL.template.ciphertext.primes[0].to_bytes(SMALL.template.ciphertext.width, "little")
    assert refused(lambda: check(honest[:16] + prime + honest[16 + len(prime) :], 10)) is Refusal.MALFORMED
    assert refused(lambda: SMALL.check_public(honest)) is Refusal.TRUNCATED
    assert refused(lambda: SMALL.check_public(small_keys.public[:-3] + b"\xff\xff\xff")) is Refusal.MALFORMED
    assert refused(lambda: SMALL.encrypt(honest, np.zeros(10, np.float32))) is Refusal.TRUNCATED
    assert refused(lambda: SMALL.add(small_keys.public, [honest, honest[:-1]])) is Refusal.TRUNCATED
    other = SMALL.encrypt(small_keys.public, np.zeros(11, np.float32))
    assert refused(lambda: SMALL.add(small_keys.public, [honest, other])) is Refusal.MISMATCH
    assert refused(lambda: SMALL.keys_of(small_keys.public, honest)) is Refusal.MALFORMED


@settings(max_examples=examples(75), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_ciphertexts_are_refused_or_are_numbers(small_keys: Keys, honest: bytes, data: st.DataObject) -> None:
    raw = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 16), st.integers(0, len(raw) - 1)))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, None, data.draw(st.integers(0, len(raw)))]))
    try:
        sums = SMALL.decrypt(small_keys, bytes(raw[:cut]), 10, 8)
    except RemoteError:
        return
    assert sums.shape == (10,)
    assert (np.abs(sums) <= 8 * SMALL.limit * (1 + 1e-9)).all()


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_arbitrary_bytes_are_refused_before_anything_is_allocated(raw: bytes, dimension: int) -> None:
    for act in (lambda: SMALL.check_ciphertext(raw, dimension + 1), lambda: SMALL.check_public(raw)):
        assert refused(act) in (Refusal.TRUNCATED, Refusal.OVERSIZED)


def test_a_header_that_lies_about_its_dimension_is_refused(small_keys: Keys, honest: bytes) -> None:
    lying = honest[:12] + struct.pack("!I", 2**32 - 1) + honest[16:]
    assert refused(lambda: SMALL.add(small_keys.public, [lying, honest])) is Refusal.TRUNCATED
    assert refused(lambda: SMALL.decrypt(small_keys, lying, 10, 1)) is Refusal.MISMATCH


def test_work_pickles_and_says_refusals_as_results(honest: bytes) -> None:
    keys = MakeKeys(SMALL).run()
    (x,) = vectors(1, 10, scale=1.0)
    first = pickle.loads(pickle.dumps(Encrypt(SMALL, keys.public, x, seed=3))).run()
    total = pickle.loads(pickle.dumps(Add(SMALL, keys.public, (first, first)))).run()
    result = pickle.loads(pickle.dumps(Decrypt(SMALL, keys, total, 10, 2))).run()
    np.testing.assert_array_equal(result, 2 * SMALL.dequantise(SMALL.quantise(x, generator(3, "quantise"))))
    assert isinstance(Decrypt(SMALL, keys, honest, 10, 1).run(), Refused)  # made under another key
    assert Add(SMALL, keys.public, (first[:-1],)).run() == Refused(
        Refusal.TRUNCATED, f"truncated: {len(first) - 1} bytes where {len(first)} belong"
    )
    assert Encrypt(SMALL, b"", x).run() == Refused(
        Refusal.TRUNCATED, f"truncated: 0 bytes where {len(keys.public)} belong"
    )


def test_the_secret_half_is_not_shown(small_keys: Keys) -> None:
    assert small_keys.serialise_secret() not in small_keys.public
    assert "_secret" not in repr(small_keys)


def test_figures_that_no_scheme_has_are_refused() -> None:
    for make in (lambda: Lanes(1), lambda: Lanes(8, 257), lambda: Lanes(8, 8, 0.0), lambda: Approximate(peers=1)):
        with pytest.raises(BadInput):
            make()
    keys = Approximate().keys()
    with pytest.raises(BadInput, match="learning rate"):
        Approximate().encrypt(keys.public, np.array([1e9], np.float32))
