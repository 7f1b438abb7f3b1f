"""A gossip of large models: what waits is kept as it came, offsets are made one at a time, and no bit changes by it."""

import numpy as np
import pytest

from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import CODECS, decode, encode
from veilmesh.crypto.codecs.base import Decoded
from veilmesh.peer.machine import PeerId
from veilmesh.swarm.strategies.copies import Copies, Offsets, Unread

ME, OTHER = PeerId("me"), PeerId("other")
LARGE, SMALL = 300_000, 3_000


def update(dimension: int, round_: int) -> np.ndarray:
    return np.random.default_rng(round_).normal(size=dimension).astype(np.float32)


def said(codec: str, dimension: int, round_: int) -> bytes:
    return encode(CODECS.build(codec), update(dimension, round_), np.random.default_rng(round_))


@pytest.mark.parametrize(
    ("codec", "dimension", "waits_as_it_came"),
    [("bf16", LARGE, True), ("nf4", LARGE, True), ("dense", LARGE, False), ("nf4", SMALL, False)],
)
def test_only_what_is_large_and_was_said_in_fewer_bytes_waits_as_it_came(
    codec: str, dimension: int, waits_as_it_came: bool
) -> None:
    def read(blob: bytes) -> Decoded:
        return decode(blob, dimension)

    blobs = [said(codec, dimension, round_) for round_ in range(3)]
    kept = [Unread.kept(blob, read) for blob in blobs]
    assert [isinstance(one, Unread) for one in kept] == [waits_as_it_came] * 3
    held, plain = (Copies(ME, np.zeros(dimension, np.float32), witness=True) for _ in range(2))
    for copies in (held, plain):
        copies.found(OTHER, np.zeros(dimension, np.float32))
    for round_, (one, blob) in enumerate(zip(kept, blobs, strict=True)):
        held.put(OTHER, round_, one)
        plain.put(OTHER, round_, read(blob).values)
    for copies in (held, plain):
        copies.apply(OTHER, 2)
    assert held.next == plain.next == {OTHER: 3}
    assert held.digests == plain.digests
    assert held.copies[OTHER].tobytes() == plain.copies[OTHER].tobytes()


def test_what_cannot_be_read_is_refused_when_it_comes() -> None:
    with pytest.raises(RemoteError):
        Unread.kept(said("nf4", LARGE, 0)[:-1], lambda blob: decode(blob, LARGE))


def test_offsets_are_those_of_all_copies() -> None:
    copies, mine = tuple(update(SMALL, n) for n in range(3)), update(SMALL, 9)
    offsets = Offsets(copies, mine)
    assert len(offsets) == 3
    for one, copy in zip(offsets, copies, strict=True):
        np.testing.assert_array_equal(one, copy - mine)
    np.testing.assert_array_equal(offsets[1:][0], copies[1] - mine)
