"""Shamir's scheme: enough shares give the secret, one too few nothing, and what is no share is refused."""

import os
from contextlib import suppress
from itertools import combinations

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.masking import keystream
from veilmesh.crypto.shares import combine, split

Crypto = pytest.importorskip("Crypto")


@settings(deadline=None, max_examples=examples(13))
@given(secret=st.binary(min_size=32, max_size=32), count=st.integers(1, 8), data=st.data())
def test_any_threshold_of_them_give_the_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    source = data.draw(st.sampled_from([None, keystream(secret)]))
    shares = list(enumerate(split(secret, threshold, count, source), 1))
    chosen = data.draw(st.permutations(shares))[: data.draw(st.integers(threshold, count))]
    assert combine(chosen, threshold) == secret


def test_our_sharing_is_the_librarys() -> None:
    """Every subset agrees, as on points of one polynomial of the right degree only."""
    secret = os.urandom(32)
    shares = list(enumerate(split(secret, 4, 7, keystream(b"k" * 32)), 1))
    assert {combine(list(chosen), 4) for chosen in combinations(shares, 4)} == {secret}


def test_one_share_too_few_fits_every_secret() -> None:
    one, other = (split(bytes([b]) * 32, 3, 5, keystream(b"k" * 32)) for b in (1, 2))
    assert combine(list(enumerate(one, 1))[:2], 2) not in (bytes([1]) * 32, bytes([2]) * 32)
    assert len({*one, *other}) == 10


def test_coefficients_are_drawn_anew() -> None:
    assert split(bytes(32), 2, 3) != split(bytes(32), 2, 3)
    stream = keystream(b"k" * 32)
    assert split(bytes(32), 2, 3, stream) != split(bytes(32), 2, 3, stream)
    assert split(bytes(32), 2, 3, keystream(b"k" * 32)) == split(bytes(32), 2, 3, keystream(b"k" * 32))


def test_what_are_no_shares_is_refused() -> None:
    shares = list(enumerate(split(bytes(32), 3, 5), 1))
    cases = {
        Refusal.MISMATCH: [shares[:2], [], [*shares[:2], shares[0]]],
        Refusal.MALFORMED: [[*shares[:2], (0, bytes(32))], [*shares[:2], (300, bytes(32))], [*shares[:2], (9, b"s")]],
    }
    for why, several in cases.items():
        for wrong in several:
            with pytest.raises(RemoteError) as caught:
                combine(wrong, 3)
            assert caught.value.refusal is why


@pytest.mark.parametrize("arguments", [(b"short", 2, 3), (bytes(32), 4, 3), (bytes(32), 0, 3), (bytes(32), 2, 256)])
def test_what_cannot_be_shared_is_our_own_mistake(arguments) -> None:
    with pytest.raises(LocalError):
        split(*arguments)


@given(st.lists(st.tuples(st.integers(-2, 300), st.binary(max_size=33)), max_size=5), st.integers(1, 4))
def test_arbitrary_shares_are_combined_or_refused(shares, threshold: int) -> None:
    with suppress(RemoteError):
        assert len(combine(shares, threshold)) == 32
