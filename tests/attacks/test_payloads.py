"""What every registered payload keeps to, and what each of them is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.inversion.fishing import alone
from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.payloads.fishing import as_single, fished_class
from veilmesh.attacks.payloads.functionals import cosine_mode, quantiles, supposed_quantiles
from veilmesh.attacks.payloads.suppression import spoken
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.core import BadInput
from veilmesh.sim.score import match, psnr

NETWORKS = [
    {"name": "mlp", "hidden": (32,)},
    {"name": "mlp", "hidden": (32, 12)},
    {"name": "mlp", "hidden": (12,), "activation": "tanh"},
    {"name": "convnet", "width": 4},
    {"name": "imprinted", "bins": 16, "inner": {"name": "convnet", "width": 4}},
    {"name": "imprinted", "bins": 16, "kind": "hardtanh", "inner": {"name": "mlp", "hidden": (8,)}},
]
PLACES = {  # which of NETWORKS have a place for it
    "fishing": (0, 1, 2, 3, 4, 5),
    "imprint": (0, 1, 4, 5),
    "suppression": (0, 1, 3, 4, 5),
    "trap-weights": (0, 1, 4),
}


def _craft(name, public, start=None, seed=0, **options):
    given = public.initial if start is None else start
    return PAYLOADS.build(name, options).craft(public, given, np.random.default_rng(seed))


def _answer(make_mesh, public, start, x, y):
    """The view of a, to whom b said what it trained from `start`."""
    mesh = make_mesh()
    mesh.public = replace(public, initial=start, batch=len(x))
    mesh.train("b", ["a"], x, y)
    return mesh.view("a")


def _exact(pictures, truth, decibels=30.0):
    return sum(psnr(pictures[[i]], truth[[j]])[0] >= decibels for i, j in match(pictures, truth))


@pytest.mark.parametrize("at", range(len(NETWORKS)))
@pytest.mark.parametrize("name", PAYLOADS.names())
class TestContract:
    def test_it_crafts_parameters_or_says_why_not(self, make_mesh, digits, name, at):
        public = make_mesh(model=NETWORKS[at], batch=4, pictures=digits[0][100:150]).public
        if at not in PLACES.get(name, range(len(NETWORKS))):
            with pytest.raises(BadInput, match=r"take model|take mlp"):
                _craft(name, public)
            return
        start = public.initial.copy()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        crafted = _craft(name, public, start)
        assert torch.equal(before, torch.get_rng_state())
        assert (start == public.initial).all()
        assert crafted.dtype == np.float32
        assert crafted.shape == start.shape
        assert np.isfinite(crafted).all()
        assert (crafted != start).any() or name not in PLACES
        assert (crafted == _craft(name, public, start)).all()

    def test_it_does_without_public_pictures(self, make_mesh, name, at):
        if at in PLACES.get(name, ()):
            assert np.isfinite(_craft(name, make_mesh(model=NETWORKS[at], batch=4).public)).all()

    def test_training_from_it_stays_finite(self, make_mesh, digits, name, at):
        x, y = digits
        public = make_mesh(model=NETWORKS[at], batch=4, pictures=x[100:150]).public
        if at in PLACES.get(name, ()):
            network = Network(public)
            network.load(_craft(name, public))
            assert np.isfinite(network.gradient(x[:4], y[:4])).all()


@pytest.mark.parametrize("name", PAYLOADS.names())
def test_a_payload_says_what_it_is_and_refuses_other_options(name):
    assert PAYLOADS.describe(name)[0].endswith(".")
    with pytest.raises(BadInput, match="There is no option"):
        PAYLOADS.build(name, {"truth": 1})


def test_modes_are_orthogonal_and_quantiles_rise():
    modes = np.array([cosine_mode(i, (3, 6, 5)) for i in range(30)])
    gram = modes @ modes.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-12
    levels = np.arange(1, 64) / 64
    sample = np.random.default_rng(0).normal(2.0, 3.0, 40)
    assert (np.diff(quantiles(sample, levels)) > 0).all()
    assert abs(quantiles(sample, np.array([0.5]))[0] - np.median(sample)) < 1
    for mode in (0, 1, 7):
        assert (np.diff(supposed_quantiles(mode, (1, 8, 8), levels)) > 0).all()


def test_trapped_rows_give_more_of_a_batch_away(make_mesh, digits):
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (256,)}, batch=16, pictures=x[100:400]).public
    exact = {}
    for name, start in (
        ("honest", public.initial),
        ("trapped", _craft("trap-weights", public)),
        ("calibrated", _craft("trap-weights", public, calibrated=True, scale=1.0)),
    ):
        (guess,) = ATTACKS.build("analytic").run(_answer(make_mesh, public, start, x[:16], y[:16]), None)
        exact[name] = _exact(guess.pictures, x[:16])
    assert exact["trapped"] >= exact["honest"] + 2
    assert exact["calibrated"] >= exact["honest"] + 4


def test_a_trapped_neuron_fires_for_few(make_mesh, digits):
    x, _ = digits
    public = make_mesh(model={"name": "mlp", "hidden": (64,)}, batch=20, pictures=x[:300]).public
    network = Network(public)
    layer = network.linear_layers()[0]
    for options, most in (({"scale": 0.6}, 0.3), ({"calibrated": True}, 0.1)):
        start = _craft("trap-weights", public, **options)
        flat = 2 * x[300:600].reshape(300, -1).astype(np.float64) - 1
        fires = flat @ layer.weight_of(start).T + layer.bias_of(start) > 0
        assert 0 < fires.mean() < most


@pytest.mark.parametrize("model", [NETWORKS[0], NETWORKS[1], NETWORKS[3]], ids=["mlp", "deeper", "convnet"])
def test_what_was_suppressed_adds_nothing_to_a_sum_but_last_biases(make_mesh, digits, model):
    """The sum over a group is the victim's update, where everybody else trains from the suppressed model."""
    x, y = digits
    public = make_mesh(model=model, batch=4).public
    network = Network(public)
    network.load(public.initial)
    victim = network.gradient(x[:4], y[:4])
    network.load(_craft("suppression", public))
    others = sum(network.gradient(x[at : at + 4], y[at : at + 4]) for at in (4, 8, 12))
    told = spoken(public)
    assert told.sum() == victim.size - 4
    assert (others[told] == 0).all()
    assert others[~told].any()
    assert ((victim + others)[told] == victim[told]).all()


def test_of_a_batch_only_the_fished_class_has_a_gradient(make_mesh, digits):
    x, y = digits
    at = np.concatenate([np.flatnonzero(y == 2)[:1], np.flatnonzero(y != 2)[:15]])
    public = make_mesh(model=NETWORKS[3], batch=16).public
    start = _craft("fishing", public, target=2)
    network = Network(public)
    assert fished_class(network, start) == 2
    assert fished_class(network, public.initial) is None
    (observed,) = observe_updates(_answer(make_mesh, public, start, x[at], y[at]))
    caught = as_single(observed, replace(public, initial=start), network)
    assert caught.samples == 1
    network.load(start)
    truth = network.gradient(x[at[:1]], y[at[:1]])
    np.testing.assert_allclose(caught.update, -0.1 * truth, rtol=1e-3, atol=1e-5 * np.abs(truth).max())


def test_all_of_the_fished_class_come_out_together(make_mesh, digits):
    x, y = digits
    at = np.concatenate([np.flatnonzero(y == 1)[:3], np.flatnonzero(y != 1)[:9]])
    public = make_mesh(model=NETWORKS[1], batch=12).public
    start = _craft("fishing", public, target=1)
    network = Network(public)
    (observed,) = observe_updates(_answer(make_mesh, public, start, x[at], y[at]))
    caught = as_single(observed, replace(public, initial=start), network)
    assert caught.samples == 3
    network.load(start)
    truth = network.gradient(x[at[:3]], y[at[:3]])
    np.testing.assert_allclose(caught.update, -0.1 * truth, rtol=1e-3, atol=1e-5 * np.abs(truth).max())
    (again,) = observe_updates(alone(caught, public))
    assert (again.update == caught.update).all()
    assert (again.start == start).all()


def test_a_feature_chooses_one_example_of_the_class(make_mesh, digits):
    """The threshold between the two largest of the class: quantile, of these very pictures here, made public."""
    x, y = digits
    mine = np.flatnonzero(y == 3)[:8]
    at = np.concatenate([mine, np.flatnonzero(y != 3)[:24]])
    public = make_mesh(model=NETWORKS[0], batch=32, pictures=x[mine], picture_labels=np.full(8, 3, np.int64)).public
    start = _craft("fishing", public, target=3, feature=5, quantile=0.93)
    view = _answer(make_mesh, public, start, x[at], y[at])
    (guess,) = ATTACKS.build("fishing").run(view, np.random.default_rng(0))
    assert guess.details["caught"] == 1
    assert guess.labels[0] == 3
    assert _exact(guess.pictures, x[mine], 40.0) == 1


def test_nothing_is_caught_where_the_class_is_missing(make_mesh, digits):
    x, y = digits
    at = np.flatnonzero(y != 0)[:8]
    public = make_mesh(model=NETWORKS[3], batch=8).public
    view = _answer(make_mesh, public, _craft("fishing", public, target=0), x[at], y[at])
    (guess,) = ATTACKS.build("fishing", {"iterations": 2}).run(view, np.random.default_rng(0))
    assert guess.details["caught"] == 0
    assert guess.pictures.shape == (0, 1, 8, 8)
    assert sorted(guess.labels.tolist()) == sorted(y[at].tolist())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("fishing", {"target": 4}, "more classes"),
        ("fishing", {"feature": 99}, "another feature"),
        ("imprint", {"functionals": 16}, "twice as many rows"),
    ],
)
def test_what_cannot_be_is_one_sentence(make_mesh, name, options, says):
    with pytest.raises(BadInput, match=says):
        _craft(name, make_mesh(model={"name": "mlp", "hidden": (16,)}).public, **options)
