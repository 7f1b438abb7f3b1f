"""Masks: the same at both ends, another for every use, and nothing to be seen through them."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.fixed import word_type
from veilmesh.crypto.masking import add_mask, derive, key_pair, keystream, pair_secret, subtract_mask

KEYS = st.binary(min_size=32, max_size=32)


@given(KEYS, KEYS, st.binary(max_size=40), st.binary(max_size=40))
def test_both_ends_derive_the_same_and_another_for_every_use(a: bytes, b: bytes, salt: bytes, info: bytes) -> None:
    (mine, mine_public), (yours, yours_public) = key_pair(a), key_pair(b)
    secret = pair_secret(mine, yours_public, salt, info)
    assert secret == pair_secret(yours, mine_public, salt, info)
    others = [pair_secret(mine, yours_public, salt + b"1", info), pair_secret(mine, yours_public, salt, info + b"1")]
    assert len({secret, *others, derive(secret, salt, info)}) == 4


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), bytes(31), bytes(33)])
def test_a_key_that_agrees_with_nothing_is_refused(key: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        pair_secret(key_pair(b"k" * 32)[0], key, b"", b"")
    assert caught.value.refusal is Refusal.MALFORMED


@settings(deadline=None, max_examples=examples(20))
@given(key=KEYS, bits=st.sampled_from([16, 32]), size=st.sampled_from([0, 1, 3, 65_536, 131_072, 131_073, 200_001]))
def test_a_mask_is_chacha20s_keystream_and_comes_off_again(key: bytes, bits: int, size: int) -> None:
    words = np.arange(size).astype(word_type(bits))
    masked = words.copy()
    add_mask(masked, key)
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(words.nbytes))
    assert ((masked - words) == np.frombuffer(stream, word_type(bits))).all()
    assert keystream(key)(words.nbytes) == stream
    subtract_mask(masked, key)
    assert (masked == words).all()


@pytest.mark.parametrize("bits", [16, 32])
def test_what_is_masked_looks_uniform(bits: int) -> None:
    words = np.full(1 << 18, 7, word_type(bits))
    add_mask(words, b"s" * 32)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = words.nbytes / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 6 * np.sqrt(2 * 255) < chi_square < 255 + 6 * np.sqrt(2 * 255)


def test_masks_are_for_words_only() -> None:
    for wrong in (np.zeros(4, np.float32), np.zeros(4, np.uint64), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(LocalError):
            add_mask(wrong, bytes(32))
