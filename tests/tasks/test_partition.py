"""Partitions: disjoint, covering, nobody empty, the same from the same generator."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, generator
from veilmesh.tasks import PARTITIONS

LEAVES_OUT = ("label-skew", "dominant")
LABELS = st.lists(st.integers(0, 9), min_size=1, max_size=120).map(lambda labels: np.array(labels, dtype=np.int64))


@pytest.mark.parametrize("name", PARTITIONS.names())
@settings(max_examples=examples(40), deadline=None)
@given(labels=LABELS, peers=st.integers(1, 20), seed=st.integers(0, 1000))
def test_disjoint_sorted_nobody_empty_and_repeatable(name: str, labels: np.ndarray, peers: int, seed: int) -> None:
    partition = PARTITIONS.build(name)
    try:
        parts = partition.split(labels, peers, generator(seed, "partition"))
    except BadInput:
        assert name in LEAVES_OUT or len(labels) < peers
        return
    assert len(parts) == peers
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    everything = np.concatenate(parts)
    assert len(set(everything.tolist())) == len(everything)
    assert 0 <= everything.min() <= everything.max() < len(labels)
    if name not in LEAVES_OUT:
        assert len(everything) == len(labels)
    again = partition.split(labels, peers, generator(seed, "partition"))
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


@given(alpha=st.floats(1e-3, 1e6), peers=st.integers(1, 30))
@settings(max_examples=examples(30), deadline=None)
def test_dirichlet_covers_for_any_alpha(alpha: float, peers: int) -> None:
    labels = np.arange(40, dtype=np.int64) % 4
    parts = PARTITIONS.build("dirichlet", {"alpha": alpha}).split(labels, peers, generator(0, "p"))
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert all(map(len, parts))


@given(peers=st.integers(1, 12), classes=st.integers(1, 10), seed=st.integers(0, 99))
@settings(max_examples=examples(30), deadline=None)
def test_label_skew_keeps_to_its_classes(peers: int, classes: int, seed: int) -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 30)
    parts = PARTITIONS.build("label-skew", {"classes_per_peer": classes}).split(labels, peers, generator(seed, "p"))
    assert all(len(np.unique(labels[part])) == classes for part in parts)
    held = sum(len(part) for part in parts)
    assert held == 30 * min(10, peers * classes)


def test_dominant_classes_make_up_their_share() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 300)
    parts = PARTITIONS.build("dominant").split(labels, 10, generator(1, "p"))
    groups = [{0, 1, 2}, {2, 3, 4}, {4, 5, 6}, {6, 7, 8}, {8, 9, 0}]
    for peer, part in enumerate(parts):
        counts = np.bincount(labels[part], minlength=10)
        wanted = [0.8 / 3 + 0.02 if label in groups[peer % 5] else 0.02 for label in range(10)]
        assert np.abs(counts / len(part) - wanted).max() < 0.01
    assert np.ptp([len(part) for part in parts]) <= 10
    assert sum(map(len, parts)) > 1500


@given(share=st.floats(0, 1), width=st.integers(1, 12), peers=st.integers(1, 12))
@settings(max_examples=examples(30), deadline=None)
def test_dominant_at_any_share(share: float, width: int, peers: int) -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 60)
    parts = PARTITIONS.build("dominant", {"share": share, "classes_per_peer": width}).split(
        labels, peers, generator(0, "p")
    )
    most = [np.sort(np.bincount(labels[part]))[::-1][:width].sum() / len(part) for part in parts]
    assert min(most) >= share - 0.15


def test_small_alpha_is_more_one_sided() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int64), 100)

    def most_common(alpha: float) -> float:
        parts = PARTITIONS.build("dirichlet", {"alpha": alpha}).split(labels, 5, generator(1, "p"))
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert most_common(0.05) > 2 * most_common(100)


@pytest.mark.parametrize("name", PARTITIONS.names())
@pytest.mark.parametrize("peers", [0, 6])
def test_too_few_pictures_or_peers(name: str, peers: int) -> None:
    with pytest.raises(BadInput, match=f"among {peers} peers"):
        PARTITIONS.build(name).split(np.arange(5) % 2, peers, generator(0, "p"))


def test_more_classes_than_there_are() -> None:
    with pytest.raises(BadInput, match="the pictures have 2"):
        PARTITIONS.build("label-skew", {"classes_per_peer": 3}).split(np.arange(10) % 2, 2, generator(0, "p"))


def test_labels_per_pixel_are_divided_by_iid_only() -> None:
    labels = np.zeros((10, 4, 4), dtype=np.int64)
    assert len(PARTITIONS.build("iid").split(labels, 3, generator(0, "p"))) == 3
    for name in ("dirichlet", "label-skew"):
        with pytest.raises(BadInput, match="use 'iid'"):
            PARTITIONS.build(name).split(labels, 3, generator(0, "p"))
