"""A layer of bins gives a batch away, whatever stands behind it; an honest layer is not taken for one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veilmesh.attacks import ATTACKS, Public
from veilmesh.attacks.inversion.bins import bins_of
from veilmesh.attacks.inversion.imprint import ReadImprint
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
