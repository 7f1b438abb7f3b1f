"""A layer of bins gives a batch away, whatever stands behind it; an honest layer is not taken for one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS, Public
from veilmesh.attacks.inversion.bins import bins_of, effects, rows_of
from veilmesh.attacks.inversion.imprint import ReadImprint, prepare
from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.seen.observed import Observed
from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.sim.score import match, psnr
from veilmesh.tasks.data.base import SOURCES
from veilmesh.tasks.models.build import build_model

SHARED = Path(__file__).parents[3] / "shared" / "data"
INNER = {"name": "convnet", "width": 4}


def _craft(public: Public, **options):
    return PAYLOADS.build("imprint", options).craft(public, public.initial, np.random.default_rng(0))


def _read(make_mesh, public, start, x, y, **options):
    mesh = make_mesh()
    mesh.public = replace(public, initial=start, batch=len(x))
    mesh.train("b", ["a"], x, y)
    (guess,) = ATTACKS.build("imprint", options).run(mesh.view("a"), np.random.default_rng(0))
    return guess


def _pairs(guess, truth, decibels=30.0):
    return [(i, j) for i, j in match(guess.pictures, truth) if psnr(guess.pictures[[i]], truth[[j]])[0] >= decibels]


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "hidden": (96,)},
        {"name": "mlp", "hidden": (96, 16)},
        {"name": "imprinted", "bins": 96, "inner": INNER},
        {"name": "imprinted", "bins": 96, "kind": "hardtanh", "inner": INNER},
    ],
    ids=lambda m: f"{m['name']}-{m.get('kind', len(m.get('hidden', ())))}",
)
def test_every_picture_of_a_batch_comes_out_with_its_label(make_mesh, digits, model):
    x, y = digits
    public = make_mesh(model=model, pictures=x[300:500]).public
    at = np.random.default_rng(1).permutation(300)[:24]
    guess = _read(make_mesh, public, _craft(public), x[at], y[at])
    pairs = _pairs(guess, x[at], 40.0)
    assert len(pairs) == 24
    assert guess.details["sure"] >= 22
    assert all(guess.labels[i] == y[at][j] for i, j in pairs)
    assert sorted(guess.labels.tolist()) == sorted(y[at].tolist())


def test_one_functional_is_the_papers_and_gives_what_is_alone_in_its_bin(make_mesh, digits):
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (64,)}, pictures=x[300:500]).public
    at = np.random.default_rng(2).permutation(300)[:16]
    start = _craft(public, functionals=1)
    network = Network(public)
    network.load(start)
    bins = bins_of(network)
    (group,) = bins.groups
    assert not bins.sparse
    assert (group == np.arange(64)).all()
    inputs = 2 * x[at].reshape(16, -1).astype(np.float64) - 1
    layer = bins.layer
    places = bins.places(inputs @ layer.weight_of(start).T + layer.bias_of(start))[:, 0]
    alone = [j for j in range(16) if (places == places[j]).sum() == 1]
    guess = _read(make_mesh, public, start, x[at], y[at])
    assert {j for _, j in _pairs(guess, x[at])} >= set(alone)
    assert guess.details["sure"] >= len(alone)


def test_without_the_scale_of_an_update_it_is_found_out(make_mesh, digits):
    """Behind clipping the bias parts say nothing by themselves; pictures that two bins agree on give the scale."""
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (128,)}, pictures=x[300:500]).public
    public = replace(public, guards=({"name": "clip", "bound": 1.0},))
    guess = _read(make_mesh, public, _craft(public), x[:20], y[:20])
    assert len(_pairs(guess, x[:20])) >= 19


def test_a_sum_over_peers_gives_away_all_of_them(make_mesh, digits):
    """Masks that show only sums do not help: the sum's bins are those of one large batch."""
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (128,)}, pictures=x[300:500], batch=6).public
    start, network = _craft(public), Network(public)
    network.load(start)
    updates = [-0.1 * network.gradient(x[at : at + 6], y[at : at + 6]) for at in (0, 6, 12, 18)]
    mean = np.mean(updates, axis=0).astype(np.float32)
    members = tuple(map(PeerId, "bcde"))
    guess = ReadImprint().read(network, Observed(members[0], 0, start, mean, None, 24, True, 1.0, members), public)
    assert guess.among == members
    assert len(_pairs(guess, x[:24])) >= 23


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "hidden": (96, 16)},
        {"name": "imprinted", "bins": 96, "kind": "hardtanh", "inner": INNER},
        {"name": "imprinted", "bins": 96, "armed": True, "inner": INNER},
    ],
    ids=["relu", "hardtanh", "armed"],
)
def test_what_is_prepared_before_a_round_says_all_that_the_layer_answers(make_mesh, digits, model):
    x, _ = digits
    public = make_mesh(model=model, pictures=x[300:500]).public
    start = public.initial if model.get("armed") else _craft(public)
    network = Network(public)
    bins = prepare(network, start)
    asked = rows_of(network, bins.layer, x[:30])
    np.testing.assert_allclose(bins.answers(x[:30].reshape(30, -1)), asked, atol=1e-5 * np.abs(asked).max())


@pytest.mark.parametrize("peel", [False, True])
def test_a_reading_that_was_prepared_gives_the_pictures_of_the_whole_attack(make_mesh, digits, peel):
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (96,)}, pictures=x[300:500]).public
    public = replace(public, initial=_craft(public, functionals=3 if peel else 1), batch=20)
    network = Network(public)
    bins = prepare(network, public.initial)
    update = (-public.learning_rate * network.gradient(x[:20], y[:20])).astype(np.float32)
    observed = Observed(PeerId("b"), 0, public.initial, update, None, 20, True, 1.0)
    reader = ReadImprint(peel=peel)
    whole = reader.read(Network(public), observed, public)
    found = reader.pictures(network, bins, observed, public)
    assert len(found.pictures) > 10
    assert (found.pictures == whole.pictures).all()


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_effects_in_one_pass_are_those_of_a_pass_for_each_class(make_mesh, digits, norm):
    """Where a network has a step of its own without a forward derivative, it is asked class by class."""
    x, _ = digits
    inner = {"name": "resnet"} if norm else INNER
    public = make_mesh(model={"name": "imprinted", "bins": 32, "inner": inner}, pictures=x[300:500]).public
    network = Network(public)
    bins = prepare(network, _craft(public))
    rows = np.full(6, bins.groups[0][0])
    found = effects(network, bins.layer, x[:6], rows)
    logits, slope = _slopes(network, bins.layer, x[:6], int(rows[0]))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, (p * slope).sum(axis=1, keepdims=True) - slope, atol=1e-4 * np.abs(found).max())


def _slopes(network, layer, x, row):
    """The answers (n, K), and how all pictures' answers together change with one picture's in one row of the layer."""
    nudge = torch.zeros(len(x), layer.module.out_features, requires_grad=True)
    handle = layer.module.register_forward_hook(lambda _, inputs, output: output + nudge)
    logits = network.module(torch.from_numpy(x))
    handle.remove()
    slopes = [torch.autograd.grad(logits[:, k].sum(), nudge, retain_graph=True)[0][:, row] for k in range(4)]
    return logits.detach().numpy(), torch.stack(slopes, dim=1).numpy()


def test_a_layer_that_is_built_in_needs_no_crafted_parameters(make_mesh, digits):
    x, y = digits
    model = {"name": "imprinted", "bins": 256, "armed": True, "inner": INNER}
    public = make_mesh(model=model, pictures=x[300:500]).public
    guess = _read(make_mesh, public, public.initial, x[:8], y[:8])
    assert guess.details["imprinted"]
    assert len(_pairs(guess, x[:8])) >= 5


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "hidden": (64,)}, {"name": "mlp", "hidden": ()}, {"name": "imprinted", "inner": INNER}]
)
def test_an_honest_layer_is_not_taken_for_bins(make_mesh, digits, model):
    x, y = digits
    public = make_mesh(model=model).public
    guess = _read(make_mesh, public, public.initial, x[:4], y[:4])
    assert not guess.details["imprinted"]
    assert guess.pictures.shape == (0, 1, 8, 8)
    assert guess.labels.shape == (4,)


def test_no_more_pictures_are_said_than_there_were(make_mesh, digits):
    """64 pictures in 32 bins: most are mixtures, and the attack says so itself."""
    x, y = digits
    public = make_mesh(model={"name": "mlp", "hidden": (32,)}, pictures=x[300:500]).public
    guess = _read(make_mesh, public, _craft(public), x[:64], y[:64])
    assert len(guess.pictures) <= 64
    assert guess.details["sure"] < 32
    assert guess.loss > 0.3


def test_an_inner_network_must_name_a_class_for_a_picture():
    for options in ({"inner": {"name": "segnet"}}, {"inner": {}}, {"kind": "hardtanh", "armed": True}):
        with pytest.raises(BadInput, match="imprinted"):
            build_model("imprinted", options, (1, 8, 8), 4, 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this repository")
@pytest.mark.parametrize(("bins", "paper", "ours"), [(128, 36, 62), (512, 50, 63)])
def test_photographs_in_a_batch_of_64(make_mesh, bins, paper, ours):
    """The original's block gives 36 and 50 of 64 pictures at 30 dB; so does its one functional here, and three do
    better. Quantiles are of other pictures, from the training file."""
    data = SOURCES.build("cifar10", {"path": SHARED, "limit": 500}).load()
    public = make_mesh(shape=(3, 32, 32), classes=10, model={"name": "mlp", "hidden": (bins,)}).public
    public = replace(public, pictures=data.train_x)
    for functionals, wanted in ((1, paper), (3, ours)):
        counts = []
        for seed in range(2):
            at = np.random.default_rng(seed).permutation(len(data.test_x))[:64]
            guess = _read(make_mesh, public, _craft(public, functionals=functionals), data.test_x[at], data.test_y[at])
            counts.append(len(_pairs(guess, data.test_x[at])))
        assert np.mean(counts) >= wanted
