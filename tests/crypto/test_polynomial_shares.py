"""Vectors in shares over F_p: exact arithmetic, no secret in too few shares, no mistake from a few wrong ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import RemoteError
from veilmesh.crypto.field import (
    PRIME,
    centred,
    elements,
    inverse,
    matmul,
    multiply,
    pack,
    random_elements,
    reduced,
    subtract,
    unpack,
)
from veilmesh.crypto.polynomial_shares import decode, extrapolated, lagrange, radius, recover, share_vector, value

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ELEMENT = st.integers(0, PRIME - 1)


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_any_word_is_reduced(words: list[int]) -> None:
    assert reduced(array(*words)).tolist() == [word % PRIME for word in words]


@given(ELEMENT, ELEMENT)
def test_arithmetic_is_that_of_the_field(a: int, b: int) -> None:
    assert int(subtract(array(a), array(b))[0]) == (a - b) % PRIME
    assert int(multiply(array(a), array(b))[0]) == a * b % PRIME
    assert a == 0 or a * inverse(a) % PRIME == 1


@pytest.mark.parametrize("inner", [1, 7, 5000])
def test_products_of_matrices_are_exact_where_they_are_largest(inner: int) -> None:
    rng = np.random.default_rng(inner)
    a = rng.integers(PRIME - 3, PRIME, (3, inner)).astype(np.uint64)
    b = rng.integers(0, PRIME, (inner, 2)).astype(np.uint64)
    b[: inner // 2] = PRIME - 1
    wanted = [[sum(int(x) * int(y) for x, y in zip(r, c, strict=True)) % PRIME for c in b.T] for r in a]
    assert matmul(a, b).tolist() == wanted


@given(st.lists(st.integers(-(PRIME // 2), PRIME // 2), max_size=10))
def test_signed_numbers_come_back(numbers: list[int]) -> None:
    x = elements(np.array(numbers, np.int64))
    assert centred(x).tolist() == numbers
    assert (unpack(pack(x), len(numbers)) == x).all()


def test_remote_words_that_are_no_elements_are_refused() -> None:
    for raw, count in ((b"\xff\xff\xff\x7f", 1), (b"\x00\x00\x00\x80", 1), (bytes(4), 2), (bytes(5), 1)):
        with pytest.raises(RemoteError):
            unpack(raw, count)


def test_random_elements_are_uniform_and_their_own_in_every_stream() -> None:
    x = random_elements(KEY, 64_000)
    counts = np.bincount((x >> np.uint64(25)).astype(int), minlength=64)
    assert len(x) == 64_000
    assert int(x.max()) < PRIME
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 140  # 63 degrees of freedom: once in 10^7
    assert (x == random_elements(KEY, 64_000)).all()
    assert np.count_nonzero(x == random_elements(KEY, 64_000, stream=1)) < 10


@given(
    secret=st.lists(ELEMENT, min_size=1, max_size=6),
    members=st.integers(1, 12),
    data=st.data(),
)
def test_any_degree_plus_one_shares_are_the_secret(secret: list[int], members: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(0, members - 1))
    shares = share_vector(array(*secret), members, degree, KEY)
    rows = data.draw(st.permutations(range(members)))[: degree + 1]
    weights = np.array([lagrange([row + 1 for row in rows])], np.uint64)
    assert matmul(weights, shares[rows])[0].tolist() == secret


def test_shares_of_a_sum_are_sums_and_of_a_product_products() -> None:
    a, b = share_vector(array(5, 6), 7, 2, KEY), share_vector(array(10, PRIME - 1), 7, 2, OTHER)
    found = recover(range(1, 8), reduced(a + b), 2, 0, KEY)
    assert found is not None
    assert found.secret.tolist() == [15, 5]
    inner = [int(v) for v in reduced(multiply(a, b).sum(axis=1))]
    polynomial = decode(range(1, 8), inner, 4, 0)
    assert polynomial is not None
    assert polynomial[0] == (5 * 10 - 6) % PRIME


@given(
    degree=st.integers(0, 4),
    spare=st.integers(0, 8),
    errors=st.integers(0, 4),
    data=st.data(),
)
def test_as_many_wrong_values_as_may_be_are_found(degree: int, spare: int, errors: int, data: st.DataObject) -> None:
    count = degree + 1 + 2 * errors + spare
    polynomial = tuple(data.draw(ELEMENT) for _ in range(degree + 1))
    points = data.draw(st.permutations(range(1, 30)))[:count]
    values = [value(polynomial, x) for x in points]
    for place in data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, errors))]:
        values[place] = (values[place] + data.draw(st.integers(1, PRIME - 1))) % PRIME
    assert decode(points, values, degree, errors) == polynomial


@given(liars=st.integers(1, 4), degree=st.integers(1, 4), shares=st.integers(1, 20), data=st.data())
def test_liars_beyond_what_can_be_corrected_are_never_believed(
    liars: int, degree: int, shares: int, data: st.DataObject
) -> None:
    """They say values of a polynomial of their own, which agrees with the right one in `degree` points."""
    errors = radius(shares, degree, liars)
    honest = shares - liars
    right = (7,) + (0,) * degree
    if honest < degree:
        return
    points = list(range(1, shares + 1))
    theirs = [(x, value(right, x)) for x in points[:degree]] + [(0, 8)]
    weights = {x: lagrange([x for x, _ in theirs], at=x) for x in points[honest:]}
    values = [value(right, x) for x in points[:honest]]
    values += [sum(w * y for w, (_, y) in zip(weights[x], theirs, strict=True)) % PRIME for x in points[honest:]]
    found = decode(points, values, degree, errors)
    assert found is None or found == right


def test_many_words_at_once_are_read_as_one_by_one() -> None:
    shares = share_vector(random_elements(OTHER, 40), 8, 2, KEY)
    shares[5, 7] ^= np.uint64(4)
    points = [2, 1, 3, 5, 4, 8, 7, 6]
    values, fits = extrapolated(points, shares[[point - 1 for point in points]], 2)
    assert (values == random_elements(OTHER, 40)).all()
    assert np.flatnonzero(~fits).tolist() == [7]


def test_too_few_shares_are_nothing() -> None:
    shares = share_vector(array(1, 2, 3), 8, 2, KEY)
    assert recover([1, 2], shares[:2], 2, 0, KEY) is None
    assert recover([], shares[:0], 2, 0, KEY) is None
    assert radius(3, 2, 1) < 0


@pytest.mark.parametrize("wrong", [(), (3,), (1, 8)])
def test_whole_vectors_are_recovered_and_the_liars_named(wrong: tuple[int, ...]) -> None:
    secret = random_elements(OTHER, 1000)
    shares = share_vector(secret, 8, 2, KEY)
    for point in wrong:
        shares[point - 1, point * 10] ^= np.uint64(1)  # one bit of one coordinate
    found = recover(range(1, 9), shares, 2, radius(8, 2, 2), OTHER)
    assert found is not None
    assert (found.secret == secret).all()
    assert found.wrong == wrong
    assert recover(range(1, 9), shares, 2, 0, OTHER) is None or not wrong


@pytest.mark.parametrize("degree", [1, 3])
def test_as_many_shares_as_the_degree_say_nothing(degree: int) -> None:
    """Chi-square over 16 boxes of every such share, alone and in differences, of two very different secrets."""
    for secret in (np.zeros(16_000, np.uint64), np.full(16_000, PRIME - 1, np.uint64)):
        shares = share_vector(secret, 8, degree, KEY)[:degree]
        seen = [*shares, *(subtract(a, b) for a, b in zip(shares, shares[1:], strict=False))]
        for x in seen:
            counts = np.bincount((x >> np.uint64(27)).astype(int), minlength=16)
            assert ((counts - 1000.0) ** 2 / 1000).sum() < 60  # 15 degrees of freedom: once in 10^6
