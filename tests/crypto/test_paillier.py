"""Paillier: sums are exact, negative numbers too; what cannot be an honest sum, or comes malformed, is refused."""

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError, generator
from veilmesh.crypto.ciphertexts import HEADER
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Exact, Keys
from veilmesh.crypto.homomorphic_work import Add, Decrypt, Encrypt, MakeKeys, Refused
from veilmesh.crypto.paillier import PrivateKey, PublicKey, generate
from veilmesh.crypto.paillier_vectors import Paillier
from veilmesh.crypto.shared_key import SharedKey

TINY = PrivateKey(1009, 1013)
PACKED, SCALAR = Paillier(8, 8, 0.1, 512), Paillier.fixed_point(8, key_bits=512, packed=False)
SCHEMES = [PACKED, SCALAR, Paillier(24, 256, key_bits=1024), Paillier(32, 4096, 8.0, 512), Paillier.fixed_point(4)]
FEW = settings(max_examples=examples(13), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return generate(512)


@pytest.fixture(scope="module")
def keys() -> Keys:
    return PACKED.keys()


@pytest.fixture(scope="module")
def honest(keys: Keys) -> bytes:
    return PACKED.encrypt(keys.public, np.zeros(60, np.float32))


def vectors(count: int, dimension: int, scale: float = 0.05) -> list[Vector]:
    return [(scale * generator(i, "test").normal(size=dimension)).astype(np.float32) for i in range(count)]


def refused(act: Callable[[], object]) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        act()
    return caught.value.refusal


# --- integers --------------------------------------------------------------------------------------------------------


@FEW
@given(numbers=st.lists(st.integers(-(2**500), 2**500), min_size=1, max_size=6))
def test_the_product_of_ciphertexts_is_the_sum_of_numbers(key: PrivateKey, numbers: list[int]) -> None:
    public = key.public
    assert key.decrypt(public.add([public.encrypt(number) for number in numbers])) == sum(numbers)


@given(a=st.integers(-TINY.public.largest, TINY.public.largest), b=st.integers(-TINY.public.largest, 0))
def test_a_sum_beyond_the_key_wraps_round_it(a: int, b: int) -> None:
    public = TINY.public
    got = TINY.decrypt(public.add([public.encrypt(a), public.encrypt(b)]))
    assert (got - a - b) % public.n == 0
    assert abs(got) <= public.largest


def test_it_is_the_papers_decryption() -> None:
    """L(c^lambda mod n^2) / L(g^lambda mod n^2) mod n (Paillier 1999, scheme 1), without the Chinese remainder."""
    n, order = TINY.public.n, math.lcm(TINY.p - 1, TINY.q - 1)
    for number in (0, 1, 12345, -9, TINY.public.largest):
        c = TINY.public.encrypt(number)
        over, under = ((pow(base, order, n * n) - 1) // n for base in (c, n + 1))
        assert over * pow(under, -1, n) % n == number % n == TINY.decrypt(c) % n


def test_a_ciphertext_is_fresh_and_a_number_too_large_is_our_own_fault(key: PrivateKey) -> None:
    assert len({key.public.encrypt(7) for _ in range(5)}) == 5
    with pytest.raises(LocalError):
        key.public.encrypt(key.public.largest + 1)


@pytest.mark.parametrize("bits", [512, 1024, 2048])
def test_a_key_has_the_bits_it_was_asked_for(bits: int) -> None:
    made = generate(bits)  # type: ignore[arg-type]  # mypy widens what is parametrised
    assert made.public.n.bit_length() == bits
    assert made.p != made.q
    assert str(made.p) not in repr(made)


def test_no_unit_is_refused(key: PrivateKey) -> None:
    public = key.public
    for wrong in (0, -1, public.square, public.square + 1, public.n, key.p, 5 * key.q * key.q):
        assert refused(lambda c=wrong: key.decrypt(c)) is Refusal.MALFORMED
        assert refused(lambda c=wrong: public.add([public.encrypt(1), c])) is Refusal.MALFORMED


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_sum_is_the_plain_sum_of_what_was_quantised(scheme: Exact) -> None:
    assert isinstance(scheme, Paillier)
    keys, count, dimension = scheme.keys(), 3, 2 * scheme.capacity + 1
    xs = vectors(count, dimension)
    total = scheme.add(keys.public, [scheme.encrypt(keys.public, x) for x in xs])
    plain = np.sum([scheme.quantise(x) for x in xs], axis=0)
    np.testing.assert_array_equal(scheme.decrypt_levels(keys, total, dimension, count), plain)
    np.testing.assert_array_equal(scheme.decrypt(keys, total, dimension, count), scheme.dequantise(plain))


@FEW
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=100), count=st.integers(1, 8))
def test_any_values_sum_exactly(keys: Keys, values: list[float], count: int) -> None:
    x = np.array(values, np.float32)
    total = PACKED.add(keys.public, [PACKED.encrypt(keys.public, x)] * count)
    np.testing.assert_array_equal(PACKED.decrypt_levels(keys, total, x.size, count), count * PACKED.quantise(x))


@pytest.mark.parametrize("sign", [-1, 1])
def test_lanes_hold_the_largest_sum_there_can_be(sign: int) -> None:
    scheme = Paillier(4, 5, 1.0, 512)
    keys, x = scheme.keys(), np.full(scheme.capacity, sign, np.float32)
    total = scheme.add(keys.public, [scheme.encrypt(keys.public, x)] * 5)
    np.testing.assert_array_equal(scheme.decrypt_levels(keys, total, x.size, 5), 5 * scheme.quantise(x))


def test_what_would_run_over_is_refused(keys: Keys, honest: bytes) -> None:
    with pytest.raises(LocalError):
        PACKED.add(keys.public, [honest] * 9)
    with pytest.raises(LocalError):
        PACKED.decrypt(keys, honest, 60, 9)
    with pytest.raises(BadInput, match="learning rate"):
        SCALAR.encrypt(SCALAR.keys().public, np.array([84.0], np.float32))
    high = PACKED.encrypt(keys.public, np.full(60, 0.1, np.float32))  # a sum of eight, said to be one of three
    total = PACKED.add(keys.public, [high] * 8)
    assert refused(lambda: PACKED.decrypt(keys, total, 60, 3)) is Refusal.MISMATCH


@given(st.integers(-(2**509), 2**509))
def test_numbers_that_no_honest_sum_is_are_refused(keys: Keys, number: int) -> None:
    n = int.from_bytes(keys.public[HEADER:], "big")
    ciphertext = (1 + number * n) % (n * n)  # r = 1: a stranger need not hide anything
    raw = PACKED.encrypt(keys.public, np.zeros(3, np.float32))[:HEADER] + ciphertext.to_bytes(128, "big")
    try:
        sums = PACKED.decrypt(keys, raw, 3, 8)
    except RemoteError:
        return
    assert (np.abs(sums) <= 8 * PACKED.limit * (1 + 1e-9)).all()


def test_another_key_reads_nothing(keys: Keys, honest: bytes) -> None:
    assert refused(lambda: PACKED.decrypt(PACKED.keys(), honest, 60, 1)) in (Refusal.MISMATCH, Refusal.MALFORMED)


# --- remote bytes ----------------------------------------------------------------------------------------------------


def test_frames_are_refused_by_what_is_wrong_with_them(keys: Keys, honest: bytes) -> None:
    check = PACKED.check_ciphertext
    check(honest, 60)
    assert refused(lambda: check(honest + b"\0", 60)) is Refusal.OVERSIZED
    assert refused(lambda: check(honest[:-1], 60)) is Refusal.TRUNCATED
    assert refused(lambda: check(b"XX" + honest[2:], 60)) is Refusal.MALFORMED
    assert refused(lambda: check(honest, 59)) is Refusal.MISMATCH
    assert refused(lambda: Paillier(8, 8, 0.2, 512).check_ciphertext(honest, 60)) is Refusal.MISMATCH
    n = keys.public[HEADER:]
    for wrong in (b"\0" * 128, b"\xff" * 128, bytes(64) + n):
        raw = honest[:HEADER] + wrong + honest[HEADER + 128 :]
        assert refused(lambda raw=raw: PACKED.add(keys.public, [honest, raw])) is Refusal.MALFORMED
        assert refused(lambda raw=raw: PACKED.decrypt(keys, raw, 60, 1)) is Refusal.MALFORMED
    for public in (keys.public[:-1], keys.public[:-1] + bytes([n[-1] ^ 1]), keys.public[:HEADER] + bytes(64)):
        assert refused(lambda raw=public: PACKED.check_public(raw)) in (Refusal.TRUNCATED, Refusal.MALFORMED)
        assert refused(lambda raw=public: PACKED.encrypt(raw, np.zeros(3, np.float32)))


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_ciphertexts_are_refused_or_are_numbers(keys: Keys, honest: bytes, data: st.DataObject) -> None:
    raw = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.one_of(st.integers(0, 16), st.integers(0, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, None, data.draw(st.integers(0, len(raw)))]))
    try:
        sums = PACKED.decrypt(keys, PACKED.add(keys.public, [bytes(raw[:cut])]), 60, 8)
    except RemoteError:
        return
    assert (np.abs(sums) <= 8 * PACKED.limit * (1 + 1e-9)).all()


@given(st.binary(max_size=200), st.integers(1, 2**32 - 1))
def test_arbitrary_bytes_are_refused(raw: bytes, dimension: int) -> None:
    assert refused(lambda: PACKED.check_ciphertext(raw, dimension))
    assert refused(lambda: PACKED.check_public(raw))
    assert refused(lambda: PACKED.keys_of(raw[:100], raw[100:]))


def test_halves_of_two_keys_are_no_key(keys: Keys) -> None:
    other = PACKED.keys()
    assert PACKED.keys_of(keys.public, keys.serialise_secret()) == keys
    assert refused(lambda: PACKED.keys_of(keys.public, other.serialise_secret())) is Refusal.MALFORMED
    p, q = 3 * (2**252 + 1), 2**255 + 1  # of the right length, and no primes
    public = keys.public[:HEADER] + (p * q).to_bytes(64, "big")
    secret = keys.serialise_secret()[:HEADER] + p.to_bytes(32, "big") + q.to_bytes(32, "big")
    assert refused(lambda: PACKED.keys_of(public, secret)) is Refusal.MALFORMED


def test_work_pickles_and_says_refusals_as_results(keys: Keys, honest: bytes) -> None:
    made = pickle.loads(pickle.dumps(MakeKeys(PACKED))).run()
    (x,) = vectors(1, 60, scale=1.0)
    first = pickle.loads(pickle.dumps(Encrypt(PACKED, made.public, x))).run()
    total = pickle.loads(pickle.dumps(Add(PACKED, made.public, (first, first)))).run()
    result = pickle.loads(pickle.dumps(Decrypt(PACKED, made, total, 60, 2))).run()
    np.testing.assert_array_equal(result, 2 * PACKED.dequantise(PACKED.quantise(x)))
    assert isinstance(Decrypt(PACKED, made, honest, 60, 1).run(), Refused)
    assert isinstance(Add(PACKED, made.public, (first[:-1],)).run(), Refused)


def test_a_shared_paillier_key_is_as_broken_as_any(keys: Keys) -> None:
    shared = SharedKey(PACKED, keys)
    (x,) = vectors(1, 60, scale=0.02)
    read = SharedKey.accept(PACKED, shared.hand_out()).read(PACKED.encrypt(keys.public, x), 60)
    np.testing.assert_allclose(read, x, atol=PACKED.step)


def test_sizes_and_figures() -> None:
    assert (SCALAR.capacity, Paillier().capacity, Paillier.fixed_point(4).capacity) == (1, 70, 78)
    assert Paillier.fixed_point(4).step == pytest.approx(1e-5)
    assert SCALAR.ciphertext_size(10) == HEADER + 10 * 128
    assert PublicKey(15).largest == 7
    for make in (lambda: Paillier(1), lambda: Paillier(8, 1), lambda: Paillier(limit=0.0)):
        with pytest.raises(BadInput):
            make()
