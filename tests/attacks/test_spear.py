"""SPEAR gives whole batches back, exactly, where single neurons do not."""

import numpy as np
import pytest

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.inversion.spear import numerical_rank, unmix
from veilmesh.sim.score import match


def _run(view, name, **options):
    (guess,) = ATTACKS.build(name, options).run(view, np.random.default_rng(0))
    return guess


def _decibels(guess, truth):
    """Without the cap of the scores, the worst picture last."""
    pairs = match(guess.pictures, truth)
    error = [np.square(guess.pictures[i].astype(np.float64) - truth[j]).mean() for i, j in pairs]
    return sorted((-10 * np.log10(max(e, 1e-30)) for e in error), reverse=True)


@pytest.mark.parametrize("batch", [4, 8])
def test_a_batch_of_digits_is_recovered_exactly(make_mesh, digits, batch):
    x, y = digits
    mesh = make_mesh(model={"name": "mlp", "hidden": (256,)}, batch=batch, pictures=x[100:150])
    mesh.train("b", ["a"], x[:batch], y[:batch])
    found = _run(mesh.view("a"), "spear")
    assert found.details["rank"] == batch
    assert found.details["agreement"] > 0.999
    assert len(found.pictures) == batch
    assert _decibels(found, x[:batch])[-1] > 60


def test_it_finds_more_than_single_neurons_say(make_mesh, digits):
    x, y = digits[0][40:52], digits[1][40:52]
    mesh = make_mesh(model={"name": "mlp", "hidden": (256,)}, batch=12)
    mesh.train("b", ["a"], x, y)
    exact = [sum(d > 60 for d in _decibels(_run(mesh.view("a"), name), x)) for name in ("spear", "analytic")]
    assert exact[0] == 12
    assert exact[1] < 12


def test_a_gradient_without_low_rank_falls_back_on_single_neurons(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "mlp", "hidden": (64,)}, batch=4)
    noise = np.random.default_rng(0).standard_normal(mesh.public.initial.size).astype(np.float32)
    mesh.update("b", ["a"], 0, 0.01 * noise)
    guess = _run(mesh.view("a"), "spear", iterations=1)
    assert len(guess.pictures) <= 4
    assert guess.loss > 0.1


def test_the_rank_is_read_off_the_gap():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 80))
    noisy = matrix + 1e-6 * rng.standard_normal(matrix.shape)
    rank, error = numerical_rank(np.linalg.svd(noisy, compute_uv=False), matrix.shape)
    assert rank == 5
    assert 0.5e-6 < error < 2e-6
    assert numerical_rank(np.zeros(4), (4, 4)) == (0, 0.0)


def test_inputs_of_any_layer_before_a_relu_are_unmixed_at_any_scale():
    rng = np.random.default_rng(2)
    x, weight, bias = rng.standard_normal((6, 40)), rng.standard_normal((200, 40)), rng.standard_normal(200)
    active = weight @ x.T + bias[:, None] > 0
    delta = 1e-3 * rng.standard_normal((200, 6)) * active
    found = unmix(delta @ x, delta.sum(axis=1), (weight, bias), None, 10, rng)
    nearest = np.linalg.norm(found.inputs[:, None] - x[None], axis=2).argmin(axis=1)
    assert sorted(nearest) == list(range(6))
    np.testing.assert_allclose(found.inputs, x[nearest], atol=1e-6)
