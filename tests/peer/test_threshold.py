"""A sum that takes everybody to decrypt, by real side processes; skipped where no interpreter has OpenFHE."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError, generator
from veilmesh.crypto.threshold import Party, ThresholdReals, ThresholdSum, check_commitment, commitment
from veilmesh.peer.openfhe_process import SideProcess, interpreter

SCHEME = ThresholdSum(value_bits=8, peers=3, limit=0.1)


@pytest.fixture(scope="module")
def python() -> str:
    try:
        return interpreter()
    except BadInput as reason:
        pytest.skip(str(reason))  # no interpreter here has OpenFHE


@pytest.fixture(scope="module")
def sides(python: str) -> Iterator[list[SideProcess]]:
    with contextlib.ExitStack() as held:
        yield [held.enter_context(SideProcess(python, SCHEME.named, 3)) for _ in range(3)]


@pytest.fixture(scope="module")
def group(sides: list[SideProcess]) -> list[Party]:
    parties = [Party(SCHEME, side.ask) for side in sides]
    common = parties[0].common()
    shares = [party.share(common) for party in parties]
    for party in parties:
        party.join(shares)
    return parties


def test_all_peers_together_read_the_exact_sum(group: list[Party]) -> None:
    dimension = 16384 * 3 + 11
    xs = [(0.05 * generator(i, "test").normal(size=dimension)).astype(np.float32) for i in range(3)]
    total = group[1].add([party.encrypt(x) for party, x in zip(group, xs, strict=True)])
    partials = [party.partial(total, lead=i == 0) for i, party in enumerate(group)]
    expected = np.sum([SCHEME.quantise(x) for x in xs], axis=0)
    for party in group:
        np.testing.assert_array_equal(party.fuse(partials, dimension, 3), expected)
    with pytest.raises(RemoteError):  # all but one know nothing
        group[0].fuse(partials[:2], dimension, 3)
    with pytest.raises(RemoteError):  # nor does one who makes up the last part
        group[0].fuse([*partials[:2], partials[1]], dimension, 3)


def test_with_ckks_all_peers_together_read_the_sum_to_a_hundred_thousandth(python: str) -> None:
    scheme, dimension = ThresholdReals(peers=3, limit=1.0), 20011
    with contextlib.ExitStack() as held:
        parties = [Party(scheme, held.enter_context(SideProcess(python, scheme.named, 3)).ask) for _ in range(3)]
        common = parties[0].common()
        shares = [party.share(common) for party in parties]
        for party in parties:
            party.join(shares)
        xs = [(0.2 * generator(i, "test").normal(size=dimension)).astype(np.float32).clip(-1, 1) for i in range(3)]
        total = parties[1].add([party.encrypt(x) for party, x in zip(parties, xs, strict=True)])
        partials = [party.partial(total, lead=i == 0) for i, party in enumerate(parties)]
        error = parties[2].fuse(partials, dimension, 3) - np.sum(xs, axis=0, dtype=np.float64)
        assert 1e-10 < np.abs(error).max() < 1e-5  # and it is flooded: what decrypts to the last bit gives its key away
        with pytest.raises(RemoteError):
            parties[0].fuse(partials[:2], dimension, 3)


def test_reals_that_leave_no_room_are_refused() -> None:
    with pytest.raises(BadInput, match="limit"):
        ThresholdReals(peers=64, limit=2.0)


def test_bytes_that_openfhe_cannot_digest_are_the_senders_fault(group: list[Party], sides: list[SideProcess]) -> None:
    x = np.zeros(5, np.float32)
    (good,) = group[0].encrypt(x)
    for bad in (b"", b"nonsense", good[:1000], good[:100] + bytes(len(good) - 100)):
        with contextlib.suppress(RemoteError):
            group[2].add([[good], [bad]])
    with pytest.raises(RemoteError):
        group[2].add([[good], [b"nonsense"]])
    with pytest.raises(RemoteError) as caught:
        group[0].add([[good], [bytes(5 << 20)]])
    assert caught.value.refusal is Refusal.OVERSIZED
    with pytest.raises(RemoteError):
        group[0].add([[good], []])


def test_a_side_process_that_has_gone_is_said_to_have(python: str) -> None:
    with SideProcess(python, SCHEME.named, 2) as side:
        os.kill(side.pid, 9)
        with pytest.raises(LocalError, match="has ended"):
            side.ask("common", [])
    with pytest.raises(ProcessLookupError):
        os.kill(side.pid, 0)


def test_an_interpreter_without_openfhe_is_refused_with_what_to_do(tmp_path: object) -> None:
    with pytest.raises(BadInput, match="VEILMESH_OPENFHE_PYTHON"):
        interpreter(f"{tmp_path}/python")
    with pytest.raises(BadInput, match="pip install"):
        interpreter("/bin/false")


@given(st.binary(max_size=64), st.binary(max_size=64), st.text(max_size=8), st.integers(0, 9))
def test_a_commitment_binds_the_share_and_its_place(share: bytes, other: bytes, sender: str, round: int) -> None:
    nonce = bytes(32)
    said = commitment(b"run", round, sender, share, nonce)
    check_commitment(said, b"run", round, sender, share, nonce)
    changed = [
        (b"other", round, sender, share), (b"run", round + 1, sender, share), (b"run", round, sender + "x", share),
        (b"run", round, sender, share + b"x"),
    ]  # fmt: skip
    for run, when, who, what in changed:
        with pytest.raises(RemoteError):
            check_commitment(said, run, when, who, what, nonce)
    if other != share:
        with pytest.raises(RemoteError):
            check_commitment(said, b"run", round, sender, other, nonce)
