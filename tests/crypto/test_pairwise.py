"""Secrets of pairs, and noise that cancels between them."""

import numpy as np
import pytest

from veilmesh.core import RemoteError, generator
from veilmesh.core.zerosum import Pair, zero_sum
from veilmesh.crypto.pairwise import pair_public, pair_seed

KEYS = [generator(3, "key", i).bytes(32) for i in range(4)]
PUBLIC = [pair_public(key) for key in KEYS]


def test_both_ends_come_to_the_same_seed_and_nobody_else_does() -> None:
    assert pair_seed(KEYS[0], PUBLIC[1], "noise") == pair_seed(KEYS[1], PUBLIC[0], "noise")
    seeds = {pair_seed(KEYS[i], PUBLIC[j], purpose) for i in range(4) for j in range(i) for purpose in ("noise", "x")}
    assert len(seeds) == 12
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(RemoteError):
        pair_seed(KEYS[0], bytes(32), "noise")


def test_shares_of_noise_cancel_to_the_last_bit_in_pairs_and_sum_to_nothing() -> None:
    def share(i: int, *name: str | int) -> np.ndarray:
        others = [j for j in range(4) if j != i]
        pairs = [Pair(pair_seed(KEYS[i], PUBLIC[j], "noise"), 1 if i < j else -1) for j in others]
        return zero_sum(pairs, 500, *name)

    np.testing.assert_array_equal(zero_sum([Pair(9, 1)], 50, 1), -zero_sum([Pair(9, -1)], 50, 1))
    shares = [share(i, 7) for i in range(4)]
    assert np.abs(sum(shares)).max() < 1e-14
    assert np.std(shares[0]) == pytest.approx(np.sqrt(3), rel=0.1)
    assert abs(np.corrcoef(share(0, 7), share(0, 8))[0, 1]) < 0.2
    assert not zero_sum((), 5, 0).any()
