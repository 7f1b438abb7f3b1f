"""Identification: low PSNR is no privacy where the guess still says which picture it was."""

import numpy as np
import pytest

from veilmesh.sim import identify as module
from veilmesh.sim.identify import Gallery, identify
from veilmesh.sim.measures import psnr


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, 12, 12)).astype(np.float32)


LABELS = np.arange(60) % 3
EVERYBODY = Gallery(pictures(60), LABELS)
PUBLIC = pictures(20, seed=1)
ALL = np.ones(2, bool)


def test_a_picture_at_the_level_of_gray_is_still_identified() -> None:
    """A tenth of the picture in nine tenths of gray: nobody would call it a recovery by its PSNR."""
    drawn = np.array([3, 7])
    shown = 0.1 * EVERYBODY.pictures[drawn] + 0.45
    assert (psnr(shown, EVERYBODY.pictures[drawn]) < 13).all()
    for found in identify(shown, ALL, drawn, EVERYBODY, PUBLIC):
        assert found.found
        assert found.gallery == 20
        assert found.floor >= 1 / 20


def test_another_picture_of_the_class_is_not_it() -> None:
    drawn = np.array([3, 7])
    found = identify(EVERYBODY.pictures[[6, 10]], ALL, drawn, EVERYBODY, PUBLIC)
    assert [f.found for f in found] == [False, False]


def test_what_was_left_out_is_not_identified() -> None:
    drawn = np.array([3, 7])
    found = identify(EVERYBODY.pictures[drawn], np.array([True, False]), drawn, EVERYBODY, PUBLIC)
    assert [f.found for f in found] == [True, False]


def test_guessing_without_information_gains_nothing() -> None:
    """What a mean of public pictures identifies is the floor itself."""
    drawn = np.arange(60)
    shown = np.broadcast_to(PUBLIC.mean(axis=0), (60, 1, 12, 12))
    found = identify(shown, np.ones(60, bool), drawn, EVERYBODY, PUBLIC)
    assert all(f.floor >= f.found for f in found)


def test_equal_pictures_are_both_right() -> None:
    twice = Gallery(np.concatenate([EVERYBODY.pictures, EVERYBODY.pictures[:1]]), np.append(LABELS, LABELS[0]))
    for index in (0, 60):
        (found,) = identify(twice.pictures[[index]], ALL[:1], np.array([index]), twice, PUBLIC)
        assert found.found


def test_a_large_class_is_sampled_and_the_true_picture_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GALLERY", 10)
    around = EVERYBODY.around(4)
    assert len(around) == len(set(around.tolist())) == 10
    assert around[0] == 4
    assert (LABELS[around] == LABELS[4]).all()
    assert (around == EVERYBODY.around(4)).all()


def test_where_pixels_have_labels_any_picture_may_be_it() -> None:
    masks = np.zeros((60, 12, 12), np.int64)
    assert len(Gallery(EVERYBODY.pictures, masks).around(5)) == 60


def test_a_class_of_one_is_known_without_a_guess() -> None:
    alone = Gallery(EVERYBODY.pictures, np.arange(60))
    (found,) = identify(np.full((1, 1, 12, 12), 0.5), ALL[:1], np.array([0]), alone, PUBLIC)
    assert (found.floor, found.gallery) == (1.0, 1)
