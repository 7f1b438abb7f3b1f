"""Length buckets: bodies come back as they were, frames of one bucket look alike, and overhead is what was promised."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto import Card, Identity, Mailroom, frame_size
from veilmesh.crypto.frame import read
from veilmesh.crypto.padding import FLOOR, PADDINGS, pad, padded_size, unpad

RUN = bytes(16)
PADDED = [p for p in PADDINGS if p != "none"]


def two(cap: int = 5000, **options) -> tuple[Mailroom, Mailroom]:
    """Two mailrooms that know each other; the first pads as `options` say."""
    identities, keys = [Identity.generate() for _ in range(2)], [X25519PrivateKey.generate() for _ in range(2)]
    cards = [Card.issue(i, k.public_key().public_bytes_raw(), RUN, "") for i, k in zip(identities, keys, strict=True)]
    first = Mailroom(identities[0], keys[0], RUN, cap, **options)
    second = Mailroom(identities[1], keys[1], RUN, cap)
    first.admit(cards[1])
    second.admit(cards[0])
    return first, second


@pytest.mark.parametrize("padding", PADDINGS)
@given(body=st.binary(max_size=4000))
def test_a_padded_body_comes_back_through_a_seal(padding, body):
    sender, receiver = two(padding=padding)
    frame = sender.seal(receiver.me, 1, body)
    assert len(frame) == frame_size(len(body), with_hello=True, padding=padding, cap=5000)
    assert receiver.open(frame).body == body
    assert read(frame).padded == (padding != "none")


@pytest.mark.parametrize("padding", PADDED)
@given(length=st.integers(0, 1 << 27))
def test_padding_costs_what_was_promised(padding, length):
    size = padded_size(length, padding)
    assert size > length
    assert size >= FLOOR
    if length >= FLOOR:
        assert size <= (1.12 * (length + 1) if padding == "padme" else 2 * (length + 1))
    assert padded_size(size - 1, padding) == size  # everything up to the edge of a bucket is in it


@pytest.mark.parametrize(
    ("padding", "length", "size"),
    [("padme", 0, 256), ("padme", 256, 272), ("padme", 999_999, 1_015_808), ("padme", 10_000_000, 10_223_616),
     ("power-of-two", 300, 512), ("power-of-two", 1 << 20, 2 << 20), ("power-of-two", 5_000_000, 5 << 20),
     ("none", 7, 7)],
)  # fmt: skip
def test_some_buckets(padding, length, size):
    assert padded_size(length, padding) == size


def test_there_are_far_fewer_buckets_than_lengths():
    lengths = range(1_000_000, 1_100_000, 37)
    assert len({padded_size(n, "padme") for n in lengths}) <= 7
    assert len({padded_size(n, "power-of-two") for n in lengths}) <= 2


@pytest.mark.parametrize("padding", PADDED)
def test_no_bucket_is_larger_than_the_largest_body(padding):
    sender, receiver = two(cap=3000, padding=padding)
    for length in (2998, 2999):
        assert receiver.open(sender.seal(receiver.me, 1, bytes(length))).body == bytes(length)
    with pytest.raises(LocalError):
        sender.seal(receiver.me, 1, bytes(3000))


@given(body=st.binary(max_size=300), cut=st.integers(1, 300))
def test_padding_that_is_not_ours_is_refused(body, cut):
    padded = pad(body, "padme")
    for wrong in (bytes(cut), padded + b"\x01", b""):
        with pytest.raises(RemoteError) as caught:
            unpad(wrong)
        assert caught.value.refusal is Refusal.MALFORMED


def test_frames_of_one_bucket_are_of_one_length():
    sender, receiver = two(padding="padme")
    rng = np.random.default_rng(0)
    lengths = {len(sender.seal(receiver.me, 1, rng.bytes(n))) for n in range(0, FLOOR - 1, 10)}
    assert len(lengths) == 1
