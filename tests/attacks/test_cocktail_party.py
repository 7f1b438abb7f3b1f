"""Unmixing by independence gives a batch back approximately, by the attacker's own loss."""

import numpy as np
import pytest

from veilmesh.attacks import ATTACKS
from veilmesh.sim.score import match, psnr


def _score(pictures, truth):
    pairs = match(pictures, truth)
    return float(np.mean([psnr(pictures[i], truth[j])[0] for i, j in pairs]))


def _run(view, **options):
    (guess,) = ATTACKS.build("cocktail-party", options).run(view, np.random.default_rng(0))
    return guess


@pytest.fixture
def mesh(make_mesh):
    """A batch of 6 smooth pictures of 16x16 in a small perceptron."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[0:16, 0:16] / 15
    shapes = [np.sign(np.sin(rng.uniform(2, 6) * rows + rng.uniform(2, 6) * columns + k)) for k in range(6)]
    x = (0.5 + 0.35 * np.stack(shapes))[:, None].astype(np.float32)
    mesh = make_mesh(shape=(1, 16, 16), model={"name": "mlp", "hidden": (128,)}, batch=6)
    mesh.train("b", ["a"], x, np.array([0, 1, 2, 3, 0, 1]))
    return mesh, x


def test_a_longer_search_has_a_lower_loss_and_better_pictures(mesh):
    mesh, x = mesh
    short, long_ = _run(mesh.view("a"), iterations=1), _run(mesh.view("a"), iterations=400)
    assert long_.loss < short.loss
    assert long_.pictures.shape == (6, 1, 16, 16)
    assert _score(long_.pictures, x) > _score(short.pictures, x)
    assert _score(long_.pictures, x) > _score(np.full_like(x, 0.5), x)


def test_it_needs_a_layer_that_sees_the_picture(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 4}, batch=2)
    mesh.train("b", ["a"], x[:2], y[:2])
    assert len(_run(mesh.view("a"), iterations=1).pictures) == 0
