"""Scores against scikit-image and against pictures made by hand."""

import dataclasses
import json

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import structural_similarity

from veilmesh.attacks import Guess
from veilmesh.core import LocalError
from veilmesh.sim.blind import DRAWS, blind_guesses
from veilmesh.sim.measures import psnr_shifted, relative_error
from veilmesh.sim.score import CAP, floors, match, psnr, score, ssim


def _pictures(n, c=1, h=16, w=16, seed=0):
    return np.random.default_rng(seed).random((n, c, h, w)).astype(np.float32)


def _guess(pictures, labels, loss=0.5):
    return Guess("b", 3, np.asarray(pictures, np.float32), np.asarray(labels, np.int64), loss)


def test_psnr_by_hand():
    truth = np.full((1, 1, 4, 4), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx([20.0])
    assert psnr(truth, truth) == [CAP]
    assert psnr(np.full_like(truth, 7.0), np.ones_like(truth)) == [CAP]  # clamped first
    assert psnr(np.zeros((2, 1, 4, 4)), np.stack([truth[0], truth[0] * 0 + 1])) == pytest.approx(
        [6.0206, 0.0], abs=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 11, 11), (1, 25, 25), (3, 32, 32), (3, 17, 40)])
def test_ssim_is_scikit_images(shape):
    x, y = _pictures(1, *shape)[0], _pictures(1, *shape, seed=1)[0]
    y = 0.5 * x + 0.5 * y
    theirs = structural_similarity(
        x.astype(float), y.astype(float), data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=0,
    )  # fmt: skip
    assert ssim(x, y)[0] == pytest.approx(theirs, abs=1e-7)


def test_ssim_of_pictures_smaller_than_its_window_is_scikit_images_with_the_largest_that_fits():
    x, y = _pictures(1, 1, 8, 8)[0], _pictures(1, 1, 8, 8, seed=1)[0]
    theirs = structural_similarity(
        x.astype(float), y.astype(float), data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=0, win_size=7,
    )  # fmt: skip
    assert ssim(x, y)[0] == pytest.approx(theirs, abs=1e-7)
    assert np.isfinite(ssim(np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1)))).all()


@given(arrays(np.float32, (2, 1, 12, 12), elements=st.floats(0, 1, width=32)))
@settings(max_examples=examples(13), deadline=None)
def test_a_picture_is_itself(x):
    assert ssim(x, x) == pytest.approx([1, 1])
    assert (psnr(x, x) == CAP).all()


def test_matching_finds_the_order_nobody_knows():
    truth = _pictures(5)
    order = [3, 0, 4, 1, 2]
    assert sorted(match(truth[order], truth)) == [(i, j) for i, j in enumerate(order)]
    assert len(match(truth[:2], truth)) == 2
    assert match(truth[:0], truth) == []


def test_matching_is_one_to_one_and_of_least_total_error():
    levels = np.array([0.5, 0.6])  # both guesses are nearest to the second truth
    truth = np.array([0.0, 0.55])
    guesses, truths = (np.broadcast_to(v[:, None, None, None], (2, 1, 2, 2)) for v in (levels, truth))
    assert match(guesses, truths) == [(0, 0), (1, 1)]


def test_floors_by_hand():
    truth = np.full((1, 1, 12, 12), 0.8)
    public = np.stack([np.full((1, 12, 12), 0.0), np.full((1, 12, 12), 0.7)])
    (floor,) = floors(truth, public)
    assert floor.grey[0] == pytest.approx(-20 * np.log10(0.3))
    assert floor.mean is not None
    assert floor.mean[0] == pytest.approx(-20 * np.log10(0.45))
    assert floor.nearest is not None
    assert floor.nearest[0] == pytest.approx(20)
    assert floor.nearest_index == 1
    assert floor.best[0] == pytest.approx(20)


def test_without_public_pictures_grey_is_the_floor():
    (floor,) = floors(_pictures(1), None)
    assert floor.mean is floor.nearest is None
    assert floor.best == floor.grey


def test_a_batch_is_scored_in_the_truths_order_whatever_the_guesses():
    truth, public = _pictures(3), _pictures(4, seed=9)
    scored = score(_guess(truth[[2, 0, 1]], [7, 5, 6]), truth, np.array([5, 6, 0]), public)
    assert [s.truth for s in scored] == [0, 1, 2]
    assert [s.guess for s in scored] == [1, 2, 0]
    assert [s.psnr for s in scored] == [CAP] * 3
    assert [s.label_ok for s in scored] == [True, True, False]
    for s in scored:
        assert s.gain == s.psnr - s.best_floor
        assert s.best_floor == max(s.floor_grey, s.floor_mean, s.floor_nearest)
    assert json.loads(json.dumps([dataclasses.asdict(s) for s in scored]))[0]["victim"] == "b"


def test_guessing_the_nearest_public_picture_gains_nothing():
    truth, public = _pictures(2), _pictures(6, seed=2)
    nearest = [f.nearest_index for f in floors(truth, public)]
    for s in score(_guess(public[nearest], [0, 0]), truth, np.zeros(2, np.int64), public):
        assert s.gain <= 0


def test_a_picture_nobody_guessed_scores_what_gray_scores():
    truth = _pictures(2)
    scored = score(_guess(truth[1:], [1, 1]), truth, np.array([1, 1]), None)
    assert [s.guessed for s in scored] == [False, True]
    assert scored[0].psnr == scored[0].floor_grey
    assert scored[0].gain == 0
    assert scored[0].label_ok is None


def test_labels_alone_are_scored_as_a_multiset():
    truth = _pictures(3)
    scored = score(_guess(truth[:0], [1, 2, 2]), truth, np.array([2, 1, 0]), None)
    assert [s.label_ok for s in scored] == [True, True, False]
    assert not any(s.guessed for s in scored)


def test_a_guess_of_another_shape_is_our_own_bug():
    with pytest.raises(LocalError):
        score(_guess(_pictures(1, 1, 8, 8), [0]), _pictures(1), np.array([0]), None)


def test_the_blind_guess_is_drawn_without_the_truth_and_matched_with_it():
    truth, public = _pictures(4), _pictures(30, seed=3)
    places = blind_guesses(truth, public)
    assert places.shape == (DRAWS, 4)
    assert all(len(set(draw)) == 4 for draw in places)  # one to one
    assert len({tuple(sorted(draw)) for draw in places}) > 1
    assert (places == blind_guesses(truth, public)).all()
    for draw in places:
        pairs = match(public[np.sort(draw)], truth)
        assert {(int(np.sort(draw)[i]), j) for i, j in pairs} == {(int(i), j) for j, i in enumerate(draw)}


def test_matching_raises_what_knowing_nothing_scores():
    """The larger the batch, the better its matched guess: the figure that no batch's score is to be read without."""
    rng = np.random.default_rng(0)
    levels = rng.random((400, 1, 1, 1)) * np.ones((1, 1, 12, 12))
    alone = np.mean([floors(levels[[i]], levels[200:])[0].blind for i in range(32)])
    together = np.mean([f.blind for f in floors(levels[:32], levels[200:])])
    assert together > alone + 3


def test_the_blind_floor_is_below_the_nearest_and_its_shifts_above_it():
    truth, public = _pictures(3), _pictures(10, seed=4)
    for floor in floors(truth, public):
        assert floor.blind <= floor.nearest[0]
        assert floor.blind <= floor.blind_shifted
    (alone,) = floors(truth[:1], public)
    drawn = blind_guesses(truth[:1], public)[:, 0]
    assert alone.blind == pytest.approx(psnr(public[drawn], np.repeat(truth[:1], DRAWS, axis=0)).mean())


def test_with_fewer_public_pictures_than_a_batch_some_come_twice():
    assert blind_guesses(_pictures(5), _pictures(2, seed=1)).shape == (DRAWS, 5)
    assert floors(_pictures(1), None)[0].blind is None


@given(st.integers(0, 15), st.integers(0, 15))
@settings(max_examples=examples(10), deadline=None)
def test_a_shifted_picture_is_found_again(down, right):
    x = _pictures(1, 3)
    moved = np.roll(x, (down, right), axis=(2, 3))
    assert psnr_shifted(moved, x) == [CAP]
    assert psnr_shifted(x, x) == [CAP]


def test_the_best_shift_is_the_best_of_all_of_them():
    x, y = _pictures(2, 2, 6, 5), _pictures(2, 2, 6, 5, seed=1)
    every = [psnr(np.roll(x, (i, j), axis=(2, 3)), y) for i in range(6) for j in range(5)]
    assert psnr_shifted(x, y) == pytest.approx(np.max(every, axis=0))
    assert psnr_shifted(x[:0], y[:0]).shape == (0,)


def test_a_relative_error_goes_on_where_psnr_is_capped():
    x = _pictures(2) * 0.5 + 0.25
    assert relative_error(x, x).tolist() == [0, 0]
    for share in (1e-3, 1e-6):
        near = x.astype(np.float64) * (1 + share)
        assert relative_error(near, x) == pytest.approx([share, share], rel=1e-3)
        (one, _) = score(_guess(near.astype(np.float32), [0, 0]), x, np.zeros(2, np.int64), None)
        assert one.error == pytest.approx(share, rel=0.1)
    assert (psnr(x * (1 + 1e-6), x) == CAP).all()


def test_a_score_stands_beside_its_blind_floor_and_its_best_shift():
    truth, public = _pictures(3), _pictures(9, seed=9)
    moved = np.roll(truth, (2, 3), axis=(2, 3))
    known = floors(truth, public)
    for s, floor in zip(score(_guess(moved, [0, 0, 0]), truth, np.zeros(3, np.int64), public), known, strict=True):
        assert (s.floor_blind, s.floor_shifted) == (floor.blind, floor.blind_shifted)
        assert s.psnr <= s.psnr_shifted
        assert s.best_floor >= s.floor_blind
    (one,) = score(_guess(moved[:1], [0]), truth[:1], np.zeros(1, np.int64), public)
    assert one.psnr_shifted == CAP
    assert one.psnr < 20


def test_where_pixels_have_labels_only_the_pictures_are_scored():
    truth = _pictures(2)
    masks = np.zeros((2, 16, 16), np.int64)
    scored = score(_guess(truth[::-1], masks), truth, masks, None)
    assert [s.psnr for s in scored] == [CAP] * 2
    assert [s.label for s in scored] == [s.label_ok for s in scored] == [None, None]
