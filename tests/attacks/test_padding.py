"""What padding says of places: whether the gradient of a shifted picture is another one (Geiping et al., section 4)."""

import numpy as np
import pytest

from veilmesh.attacks.network import Network
from veilmesh.sim.measures import psnr, psnr_shifted
from veilmesh.tasks.data.base import SOURCES


@pytest.fixture(scope="module")
def photos():
    return SOURCES.build("photos", {"limit": 4}).load().train_x


def _change(make_mesh, picture, **model):
    """How much the gradient changes, relatively, when a picture is shifted by (8, 8) around its edges."""
    model = {"name": "convnet", "width": 16, "depth": 3, "stride": 1, "activation": "leaky-relu", **model}
    network = Network(make_mesh(shape=(3, 32, 32), model=model).public)
    x = picture[None]
    here = network.gradient(x, np.array([1])).astype(np.float64)
    there = network.gradient(np.roll(x, (8, 8), axis=(2, 3)), np.array([1])).astype(np.float64)
    return np.linalg.norm(there - here) / np.linalg.norm(here)


@pytest.mark.parametrize("at", range(4))
def test_circular_padding_and_a_mean_over_places_do_not_say_where_anything_was(make_mesh, photos, at):
    assert _change(make_mesh, photos[at], padding="circular", pool="average") <= 1e-5


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_any_other_padding_says_it(make_mesh, photos, padding):
    """By how much depends on what is at a picture's edges: hardly, where it is plain sky."""
    changes = [_change(make_mesh, photo, padding=padding, pool="average") for photo in photos]
    assert np.mean(changes) >= 1e-2
    assert min(changes) >= 1e-3


def test_and_so_do_a_last_layer_that_knows_places_and_strides(make_mesh, photos):
    assert _change(make_mesh, photos[0], padding="circular") >= 1e-2
    odd_strides = {"padding": "circular", "pool": "average", "stride": 3, "depth": 2}
    assert _change(make_mesh, photos[0], **odd_strides) >= 1e-2


def test_a_score_at_the_best_shift_finds_a_picture_that_is_right_but_for_its_place():
    x = np.random.default_rng(0).random((2, 3, 32, 32))
    moved = np.roll(x, (8, 5), axis=(2, 3))
    assert (psnr(moved, x) < 12).all()
    assert (psnr_shifted(moved, x) == 60).all()
