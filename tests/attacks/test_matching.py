"""The machinery of gradient matching against what torch says by itself, and against real local training."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from veilmesh.attacks import ATTACKS, observe_updates
from veilmesh.attacks.matching.cheaper import Differenced, Rounded
from veilmesh.attacks.matching.descent import Adam, Evaluation, Lbfgs, Variable
from veilmesh.attacks.matching.distance import Absolute, Cosine, Squared
from veilmesh.attacks.matching.predict import SingleGradient, Surrogate, Unrolled
from veilmesh.attacks.matching.prior import Consensus, FeatureAnchor, Smooth, SmoothSquared
from veilmesh.attacks.matching.rounding import RoughCurvature
from veilmesh.attacks.matching.space import Coarse, starting_pictures
from veilmesh.attacks.matching.tiles import Weight, is_convolutional
from veilmesh.attacks.network import Network
from veilmesh.core import BadInput
from veilmesh.sim.score import psnr
from veilmesh.tasks.models.build import build_model
from veilmesh.tasks.training import Settings, Train, Trainer

SHAPE = (3, 12, 12)
NETWORKS = [
    {"name": "convnet", "width": 8, "depth": 2},
    {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"},
    {"name": "convnet", "width": 8, "depth": 2, "activation": "leaky-relu", "norm": "group"},
    {"name": "ig-convnet", "width": 2},
    {"name": "vit-tiny", "width": 16, "depth": 1, "heads": 2},
]


def _public(make_mesh, model, **changes):
    return make_mesh(shape=SHAPE, classes=4, model=model, **changes).public


def _batch(count, candidates=1):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((candidates, count, *SHAPE), dtype=np.float32))
    return x, torch.from_numpy(rng.integers(0, 4, (candidates, count)))


@pytest.fixture(params=NETWORKS, ids=lambda m: "-".join(map(str, m.values())))
def network(request, make_mesh):
    public = _public(make_mesh, request.param)
    network = Network(public)
    network.load(public.initial)
    return network


def _slope(predictor, x, y, pull):
    leaf = x.clone().requires_grad_(True)
    prediction = predictor.predict(leaf, y)
    return prediction.gradient, prediction.back(pull, [leaf])[0]


@pytest.mark.parametrize("cheap", [Differenced, Rounded])
def test_a_cheaper_way_back_is_the_second_derivative(network, cheap):
    x, y = _batch(2)
    exact = SingleGradient(network)
    gradient = exact.predict(x, y).gradient
    pull = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)) / gradient.shape[1] ** 0.5
    pull = network.exchanged_statistics(None) * pull if network.exchanged_statistics(None) is not None else pull
    same, wanted = _slope(exact, x, y, pull)
    found_gradient, found = _slope(cheap(network), x, y, pull)
    assert torch.cosine_similarity(found_gradient, same) > 1 - 1e-6
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.99
    assert (found.sign() == wanted.sign()).float().mean() > 0.95


class _Strange(nn.Module):
    """Convolutions as few networks have them: one of groups, stride and dilation, one whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding="same")
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)
        self.twice = nn.Parameter(torch.full((4, 8, 2, 2), 0.1))

    def forward(self, x):
        x = self.grouped(self.first(x).tanh()).tanh()
        return functional.conv2d(x, self.twice * x.mean(), None, (1, 1), (0, 0), (1, 1), 1).square().mean((2, 3))


def test_rounding_meets_convolutions_of_every_kind():
    module, stream = _Strange(), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=stream)
    x = torch.rand(2, 3, 9, 9, generator=stream).requires_grad_(True)
    pulls = [torch.randn(p.shape, generator=stream) for p in module.parameters()]

    def slopes(mode):
        with mode:
            loss = functional.cross_entropy(module(x), torch.tensor([0, 2]))
        first = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
        return first, torch.autograd.grad(first, x, pulls)[0]

    (first, second), (same, rounded) = slopes(nullcontext()), slopes(RoughCurvature())
    for here, there in zip(first, same, strict=True):
        torch.testing.assert_close(here, there)
    assert torch.cosine_similarity(second.flatten(), rounded.flatten(), dim=0) > 0.999
    assert not torch.equal(second, rounded)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_products_in_tiles_are_those_of_float32(padding):
    """Where there are no tiles, or this torch cannot use them, both sides are float32's."""
    stream = torch.Generator().manual_seed(0)
    x, out = (torch.randn(2, 128, side, side, generator=stream) for side in (20, 18 + 2 * padding))
    weight, bias = torch.randn(128, 128, 3, 3, generator=stream), torch.randn(128, generator=stream)
    by = Weight(weight, ([1, 1], [padding, padding], [1, 1], False, [0, 0], 1))
    whole = functional.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    to_input = functional.conv_transpose2d(out.double(), weight.double(), padding=padding)
    for found, wanted in ((by.forward(x, bias), whole), (by.to_input(out, x), to_input)):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 2e-5 * wanted.norm()


@pytest.mark.parametrize(("model", "mostly"), [("convnet", True), ("ig-convnet", True), ("mlp", False)])
def test_rounding_is_for_networks_of_convolutions(make_mesh, model, mostly):
    assert is_convolutional(Network(_public(make_mesh, {"name": model})).module) is mostly


def test_a_difference_that_misses_the_derivative_is_not_trusted(make_mesh):
    public = _public(make_mesh, {"name": "convnet", "width": 8, "activation": "tanh"})
    network = Network(public)
    network.load(public.initial)
    x, y = _batch(1)
    predictor = Differenced(network)
    predictor._step *= 1e6  # so far that nothing there says anything about here, as behind kinks that are not known
    pull = torch.ones(1, public.initial.size)
    _slope(predictor, x, y, pull)
    assert predictor._trusted is False
    found, wanted = _slope(predictor, x, y, pull)[1], _slope(SingleGradient(network), x, y, pull)[1]
    assert torch.equal(found, wanted)


def test_candidates_in_one_batch_are_the_candidates_one_by_one(network):
    x, y = _batch(2, candidates=5)
    whole = SingleGradient(network).predict(x, y).gradient
    alone = torch.cat([SingleGradient(network).predict(x[i : i + 1], y[i : i + 1]).gradient for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-5)


def _trained(public, x, y):
    """What a real trainer makes of the pictures, step by step."""
    options = {k: v for k, v in public.model.items() if k != "name"}
    trainer = Trainer(
        x, y, x, y,
        build=lambda: build_model(str(public.model["name"]), options, public.shape, public.classes, 0),
        settings=Settings(public.batch, public.local_steps, public.learning_rate), seed=1, peer_index=0,
    )  # fmt: skip
    drawn = np.concatenate([trainer._batch(0, step) for step in range(public.local_steps)])
    return trainer.run([Train(0, public.initial)])[0].update, drawn


@pytest.mark.parametrize("model", NETWORKS[:2], ids=["plain", "batch norm"])
def test_unrolled_steps_are_those_of_local_training(make_mesh, model):
    public = _public(make_mesh, model, batch=2, local_steps=3, learning_rate=0.2)
    x, y = (t[0].numpy() for t in _batch(6))
    update, drawn = _trained(public, x, y)
    network = Network(public)
    network.load(public.initial)
    unrolled = Unrolled(network, public.local_steps, public.batch, public.learning_rate)
    said = unrolled.predict(torch.from_numpy(x[drawn])[None], torch.from_numpy(y[drawn])[None]).gradient[0]
    np.testing.assert_allclose(-0.6 * said.numpy(), update, rtol=1e-3, atol=2e-6)


def test_a_surrogate_at_the_start_is_the_gradient_there(make_mesh):
    public = _public(make_mesh, NETWORKS[0])
    network = Network(public)
    network.load(public.initial)
    x, y = _batch(3)
    move = torch.randn(public.initial.size, generator=torch.Generator().manual_seed(0)) * 0.1
    here = Surrogate(network, move).predict(x, y, torch.zeros(1)).gradient
    torch.testing.assert_close(here, SingleGradient(network).predict(x, y).gradient)
    there = Surrogate(network, move).predict(x, y, torch.ones(1)).gradient
    network.load(public.initial + move.numpy())
    torch.testing.assert_close(there, SingleGradient(network).predict(x, y).gradient, rtol=1e-4, atol=1e-6)


def test_a_surrogate_moves_along_the_way(make_mesh):
    public = _public(make_mesh, NETWORKS[0])
    network = Network(public)
    network.load(public.initial)
    x, y = _batch(2)
    alpha = torch.full((1,), 0.5, requires_grad=True)
    predicted = Surrogate(network, torch.ones(public.initial.size) * 0.01).predict(x, y, alpha)
    (slope,) = predicted.back(torch.ones_like(predicted.gradient), [alpha])
    assert slope.shape == (1,)
    assert float(slope) != 0


_MASK = torch.tensor([1.0, 0, 1, 1, 0, 1])
_TARGET = torch.tensor([0.3, -1, 2, 0.5, 0.1, -0.7])


@pytest.mark.parametrize(
    "distance",
    [Cosine(_TARGET), Cosine(_TARGET, _MASK), Squared(_TARGET), Squared(_TARGET, _MASK), Absolute(_TARGET, _MASK)],
    ids=["cosine", "masked cosine", "squared", "weighted", "absolute"],
)
def test_closed_form_derivatives_are_what_differences_say(distance):
    at = torch.tensor([[0.5, 0.2, -1.0, 0.7, 1.0, -0.1], [1.0, 2.0, 0.3, -0.4, 0.5, 0.6]])
    values, pull = distance.at(at, 0.0)
    assert values.shape == (2,)
    for n in range(6):
        step = torch.zeros(6)
        step[n] = 1e-3
        up, down = distance.at(at + step, 0.0)[0], distance.at(at - step, 0.0)[0]
        torch.testing.assert_close(pull[:, n], (up - down) / 2e-3, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("distance", [Cosine, Squared, Absolute])
def test_there_is_no_distance_from_what_was_seen(distance):
    value, pull = distance(_TARGET).at(_TARGET[None], 0.0)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert float(pull.norm()) < 1e-3 or distance is Absolute


def _bowl(values, share):
    x = values["x"]
    loss = (x - torch.tensor([0.25, 0.75])).square().sum(1)
    return Evaluation(loss, loss, {"x": 2 * (x - torch.tensor([0.25, 0.75]))})


@pytest.mark.parametrize("sign", ["sign", "soft", "plain"])
def test_adam_arrives(sign):
    found = Adam(300, 0.1, sign=sign, schedule="cosine").run(_bowl, {"x": Variable(torch.zeros(3, 2), (0.0, 1.0))})
    assert found.loss.max() < 1e-4


def test_a_box_is_kept_and_the_best_iterate_is_what_is_returned():
    def away(values, share):
        loss = values["x"].sum(1)
        return Evaluation(-loss, -loss, {"x": -torch.ones_like(values["x"])})

    found = Adam(50, 0.1).run(away, {"x": Variable(torch.zeros(1, 2), (0.0, 1.0))})
    assert found.values["x"].tolist() == [[1.0, 1.0]]
    assert float(found.loss) == -2


def test_quasi_newton_stops_where_it_arrived():
    found = Lbfgs(20, enough=1e-6).run(_bowl, {"x": Variable(torch.rand(1, 2))})
    assert found.loss.item() < 1e-6


def test_deep_leakage_arrives_at_rounding_errors_and_tries_no_further(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "lenet", "width": 4})
    mesh.train("b", ["a"], x[:1], y[:1])
    guess, rough = _attacked(mesh, "idlg", iterations=50), _attacked(mesh, "idlg", iterations=50, newton=0)
    assert psnr(guess.pictures, x[:1])[0] == 60
    assert guess.loss < 1e-9
    assert rough.loss < 1e-6
    assert guess.details["restarts"] < 5


def test_priors_know_flat_from_rough_and_alike_from_different():
    flat, rough = torch.full((1, 2, *SHAPE), 0.5), torch.rand(1, 2, *SHAPE)
    for prior in (Smooth(1.0), Smooth(1.0, doubled=True), SmoothSquared(1.0)):
        assert float(prior(flat)) == 0 < float(prior(rough))
    assert Consensus(1.0)(torch.cat([flat, flat])).tolist() == [0, 0]
    assert (Consensus(1.0)(torch.cat([flat, rough])) > 0).all()


def test_a_feature_anchor_leaves_out_what_is_not_known(make_mesh):
    public = _public(make_mesh, NETWORKS[0])
    network = Network(public)
    network.load(public.initial)
    x, _ = _batch(2)
    anchors = network.features(x[0]).detach()
    anchors[1] = torch.nan
    anchor = FeatureAnchor(1.0, network.features, anchors)
    assert anchor(x).item() == pytest.approx(0, abs=1e-10)
    assert anchor(1 - x).item() > 0


def test_a_coarse_space_brings_fewer_numbers_to_full_size():
    space = Coarse(4, (12, 12))
    raw = space.raw(torch.rand(2, 3, *SHAPE))
    assert raw.shape == (2, 3, 3, 3, 3)
    assert space.pictures(raw).shape == (2, 3, *SHAPE)


@pytest.mark.parametrize("how", ["noise", "grey", "pattern-4", "pattern-16"])
def test_starting_pictures_are_named_by_their_stream(how):
    a, b, c = (starting_pictures(how, (2, *SHAPE), 3, name) for name in ("a", "a", "b"))
    assert torch.equal(a, b)
    assert how == "grey" or not torch.equal(a, c)
    assert a.shape == (2, *SHAPE)
    if how == "pattern-4":
        assert torch.equal(a[..., :4, :4], a[..., 4:8, 8:12])


def _attacked(mesh, name, **options):
    return next(iter(ATTACKS.build(name, options).run(mesh.view("a"), np.random.default_rng(0))))


def test_more_restarts_are_never_worse_by_the_attackers_own_loss(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 8, "depth": 2, "activation": "tanh"})
    mesh.train("b", ["a"], x[:1], y[:1])
    one, three = (_attacked(mesh, "cosine-inversion", iterations=30, restarts=n) for n in (1, 3))
    assert three.loss <= one.loss
    assert three.details["restarts"] == 3


def test_victims_who_began_alike_may_be_searched_for_together(make_mesh, digits):
    x, y = digits
    model = {"name": "convnet", "width": 8, "depth": 2, "activation": "tanh"}
    mesh = make_mesh(model=model, peers=("a", "b", "c", "d"))
    for n, peer in enumerate("bcd"):
        mesh.train(peer, ["a"], x[n : n + 1], y[n : n + 1])
    together = ATTACKS.build("cosine-inversion", {"iterations": 200, "together": True, "restarts": 2, "trial": True})
    guesses = list(together.run(mesh.view("a"), np.random.default_rng(0)))
    assert [g.victim for g in guesses] == ["b", "c", "d"]
    for n, guess in enumerate(guesses):
        assert psnr(guess.pictures, x[n : n + 1])[0] > 20
        assert guess.labels.tolist() == [y[n]]


def test_labels_may_be_searched_and_are_then_found(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 16, "depth": 2, "activation": "tanh"})
    mesh.train("b", ["a"], x[3:4], y[3:4])
    guess = _attacked(mesh, "dlg", iterations=60)
    assert guess.labels.tolist() == [y[3]]
    assert guess.loss < 1e-5


def test_a_label_that_cannot_be_read_off_is_tried(make_mesh, digits, monkeypatch):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 16, "depth": 2, "activation": "tanh"})
    mesh.train("b", ["a"], x[3:4], y[3:4])
    (whole,) = observe_updates(mesh.view("a"))
    heard = np.arange(whole.update.size) < 1500  # the convolutions, and nothing of the last layer
    part = replace(whole, update=np.where(heard, whole.update, 0).astype(np.float32), said=heard)
    monkeypatch.setattr("veilmesh.attacks.matching.invert.observe_updates", lambda *_: [part])
    guess = _attacked(mesh, "cosine-inversion", iterations=100)
    assert guess.labels.tolist() == [y[3]]
    assert psnr(guess.pictures, x[3:4])[0] > 15


def test_labels_are_told_only_to_whom_they_are_granted(make_mesh, digits):
    x, y = digits
    mesh = make_mesh()
    mesh.train("b", ["a"], x[:1], y[:1])
    attack = ATTACKS.build("cosine-inversion", {"iterations": 3, "labels": "told"})
    with pytest.raises(BadInput, match="told"):
        list(attack.run(mesh.view("a"), np.random.default_rng(0)))
    view = replace(mesh.view("a"), told=lambda peer, round_: np.array([2]))
    assert next(iter(attack.run(view, np.random.default_rng(0)))).labels.tolist() == [2]


def test_pixels_with_labels_are_inverted_where_labels_are_searched(make_mesh):
    rng = np.random.default_rng(0)
    mesh = make_mesh(shape=SHAPE, classes=2, model={"name": "unet", "widths": (4, 4, 4)})
    x, masks = rng.random((1, *SHAPE), dtype=np.float32), rng.integers(0, 2, (1, 12, 12))
    mesh.train("b", ["a"], x, masks)
    guess = _attacked(mesh, "cosine-inversion", iterations=5, labels="searched")
    assert guess.labels.shape == (1, 12, 12)
    with pytest.raises(BadInput, match="every pixel"):
        _attacked(mesh, "cosine-inversion", iterations=5)


def test_pictures_that_were_used_again_are_guessed_as_often(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(local_steps=4, batch=1, learning_rate=0.1, model={"name": "convnet", "width": 8, "depth": 2})
    rng_update = -0.4 * Network(mesh.public).gradient(x[:1], y[:1])
    mesh.update("b", ["a"], 0, rng_update.astype(np.float32))
    for local in ("gradient", "unroll", "surrogate"):
        guess = _attacked(mesh, "cosine-inversion", iterations=3, local=local, epochs=4)
        assert guess.pictures.shape == (4, 1, 8, 8)
        assert (guess.pictures == guess.pictures[:1]).all()
    assert _attacked(mesh, "cosine-inversion", iterations=3).pictures.shape == (4, 1, 8, 8)
