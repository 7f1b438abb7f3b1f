"""Closed-form recovery is exact where theory says so."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.inversion.analytic import distinct_inputs, plausible_pictures, single_input
from veilmesh.core import BadInput
from veilmesh.sim.score import match, psnr
from veilmesh.tasks.models.build import build_model, initial_vector, vector_to_parameters


def _run(view, **options):
    return list(ATTACKS.build("analytic", options).run(view, np.random.default_rng(0)))


@given(inputs=st.integers(1, 40), outputs=st.integers(1, 20), seed=st.integers(0, 999))
def test_one_example_is_exact_for_any_shape(inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, delta = rng.standard_normal(inputs), rng.standard_normal(outputs)
    np.testing.assert_allclose(single_input(np.outer(delta, x), delta), x, rtol=1e-9)


@given(batch=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_neurons_that_see_one_example_each_give_the_batch(batch, seed):
    rng = np.random.default_rng(seed)
    x = rng.random((batch, 30))
    delta = np.zeros((2 * batch, batch))
    delta[np.arange(2 * batch), np.arange(2 * batch) % batch] = rng.standard_normal(2 * batch) + 3
    delta = np.vstack([delta, np.abs(rng.standard_normal((4, batch)))])  # and some that see all of it
    found = plausible_pictures(distinct_inputs(delta @ x, delta.sum(1)), (1, 5, 6), batch)
    truth = x.reshape(-1, 1, 5, 6)
    pairs = match(found, truth)
    assert len(pairs) == batch
    assert all(psnr(found[i], truth[j])[0] == 60 for i, j in pairs)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_a_perceptron_gives_its_picture_away(make_mesh, activation, shape):
    x = np.random.default_rng(1).random((2, *shape), dtype=np.float32)
    mesh = make_mesh(shape=shape, model={"name": "mlp", "hidden": (32, 16), "activation": activation})
    mesh.train("b", ["a"], x[:1], np.array([2]))
    mesh.train("c", ["a"], x[1:], np.array([0]))
    guesses = _run(mesh.view("a"))
    for guess, truth, label in zip(guesses, x, (2, 0), strict=True):
        assert psnr(guess.pictures, truth)[0] == 60
        assert guess.labels.tolist() == [label]
        assert guess.loss < 1e-5
        assert set(guess.details["features"]) == {"4", "6"} or len(guess.details["features"]) == 2


@pytest.mark.parametrize(("shape", "hidden"), [((1, 8, 8), 64), ((3, 32, 32), 1024)])
def test_one_picture_is_exact_to_the_last_bits_of_a_float(make_mesh, digits, shape, hidden):
    x = digits[0][:1] if shape == (1, 8, 8) else np.random.default_rng(2).random((1, *shape), dtype=np.float32)
    mesh = make_mesh(shape=shape, model={"name": "mlp", "hidden": (hidden,)}, classes=10)
    mesh.train("b", ["a"], x, np.array([3]))
    (guess,) = _run(mesh.view("a"))
    error = np.square(guess.pictures.astype(np.float64) - x).mean()
    assert -10 * np.log10(max(error, 1e-30)) >= 120  # no cap here
    assert guess.details["snr"] > 120


def test_a_gradient_that_is_not_of_one_picture_has_a_low_signal(make_mesh, digits):
    x, y = digits
    mesh = make_mesh()
    noise = np.random.default_rng(0).standard_normal(mesh.public.initial.size).astype(np.float32)
    mesh.update("b", ["a"], 0, noise)
    (guess,) = _run(mesh.view("a"))
    assert guess.details["snr"] < 10


def _inputs_of_layers(mesh, x):
    """What every fully connected layer of the mesh's network is fed, in double precision, by its name: (B, in)."""
    options = {k: v for k, v in mesh.public.model.items() if k != "name"}
    module = build_model(mesh.public.model["name"], options, mesh.public.shape, mesh.public.classes, 0)
    vector_to_parameters(module, mesh.public.initial)
    seen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
    with torch.no_grad():
        module.double()(torch.from_numpy(x).double())
    return {name: z.numpy() for name, z in seen.items()}


@given(
    hidden=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    activation=st.sampled_from(["tanh", "sigmoid", "leaky-relu"]),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_behind_a_layer_its_input_is_exact(make_mesh, hidden, activation, seed):
    """Geiping et al., proposition 3.1, on random networks of any depth: the picture, and the features of every deeper
    layer, but for the rounding of single precision."""
    x = np.random.default_rng(seed).random((1, 3, 5, 7), dtype=np.float32)
    model = {"name": "mlp", "hidden": tuple(hidden), "activation": activation}
    shape = {"shape": (3, 5, 7), "classes": 4}
    initial = initial_vector("mlp", {"hidden": tuple(hidden), "activation": activation}, (3, 5, 7), 4, seed)
    mesh = make_mesh(model=model, initial=initial, **shape)
    mesh.train("b", ["a"], x, np.array([seed % 4]))
    (guess,) = _run(mesh.view("a"))
    assert np.linalg.norm(guess.pictures - x) <= 1e-5 * np.linalg.norm(x)
    truth = _inputs_of_layers(mesh, x)
    assert len(guess.details["features"]) == len(hidden)
    for name, features in guess.details["features"].items():
        assert np.linalg.norm(np.array(features) - truth[name]) <= 1e-5 * np.linalg.norm(truth[name])


@given(batch=st.integers(2, 8), outputs=st.integers(1, 12), seed=st.integers(0, 999))
def test_a_batch_gives_the_mean_weighted_with_what_every_neuron_feels_of_each(batch, outputs, seed):
    rng = np.random.default_rng(seed)
    x, delta = rng.random((batch, 20)), rng.random((outputs, batch)) + 0.1
    weight, bias = delta @ x, delta.sum(1)
    np.testing.assert_allclose(weight / bias[:, None], (delta / bias[:, None]) @ x, rtol=1e-9)
    mean = single_input(weight[:1], bias[:1])
    np.testing.assert_allclose(mean, np.average(x, axis=0, weights=delta[0]), rtol=1e-9)


def test_a_wide_perceptron_gives_a_batch_away(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "mlp", "hidden": (512,)}, batch=4)
    mesh.train("b", ["a"], x[:4], y[:4])
    (guess,) = _run(mesh.view("a"))
    pairs = match(guess.pictures, x[:4])
    assert min(psnr(guess.pictures[i], x[j])[0] for i, j in pairs) > 30


def test_the_last_layer_of_a_convnet_gives_its_features_away(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 4, "activation": "tanh"})
    mesh.train("b", ["a"], x[:1], y[:1])
    (guess,) = _run(mesh.view("a"))
    assert guess.pictures.shape == (0, 1, 8, 8)
    ((_, features),) = guess.details["features"].items()
    module = build_model("convnet", {"width": 4, "activation": "tanh"}, (1, 8, 8), 4, 0)
    vector_to_parameters(module, mesh.public.initial)
    with torch.no_grad():
        truth = list(module.children())[:-1]
        z = torch.from_numpy(x[:1])
        for layer in truth:
            z = layer(z)
    np.testing.assert_allclose(np.array(features[0]), z.numpy().reshape(-1), rtol=1e-3, atol=1e-4)


def test_a_network_without_a_label_for_a_picture_is_refused(make_mesh):
    mesh = make_mesh(model={"name": "segnet", "width": 2})
    with pytest.raises(BadInput, match="every pixel"):
        _run(mesh.view("a"))
