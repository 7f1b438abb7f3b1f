"""Progressive matching at full length: the order of tensors, the loss of a stage, label maps, and that it finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from veilmesh.attacks.inversion.progressive_matching import ProgressiveMatching, _numbered, _Objective, _Search
from veilmesh.attacks.matching.predict import SingleGradient
from veilmesh.attacks.network import Network
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.core import BadInput

SEGMENTS = {"name": "unet", "widths": (3, 4)}


@pytest.fixture
def masks(make_mesh, digits):
    """A mesh whose pictures are labelled pixel by pixel: what is ink and what is not."""
    x, _ = digits
    y = (x[:, 0] > 0.3).astype(np.int64)
    mesh = make_mesh(model=SEGMENTS, classes=2, batch=1, pictures=x[100:120])
    for at, peer in enumerate("abc"):
        mesh.train(peer, mesh.near(peer), x[at : at + 1], y[at : at + 1])
    return mesh, x, y


def _search(attack, view):
    network = Network(view.public, per_pixel=True)
    observed = observe_updates(view, 1)[0]
    network.load(observed.start)
    return _Search(attack, view, network, observed, _numbered(network), 0), network


def test_tensors_are_numbered_by_depth_and_not_as_listed(masks):
    mesh, _, _ = masks
    network = Network(mesh.public, per_pixel=True)
    numbers = _numbered(network)
    first = [int(part[0]) for part in torch.split(numbers, [p.numel() for p in network.parameters])]
    names = [name for name, _ in network.module.named_parameters()]
    order = [names[at] for at in np.argsort(first)]
    assert sorted(first) == list(range(len(names)))
    assert order[0] == "down.0.0.weight"
    assert order[-2:] == ["head.weight", "head.bias"]
    assert order.index("down.1.2.bias") < order.index("wider.0.weight") < order.index("up.0.0.weight")


@pytest.mark.parametrize("stage", [0, 2, 14])
def test_a_stage_minimises_what_the_paper_says(masks, stage):
    mesh, _, _ = masks
    search, network = _search(ProgressiveMatching(), mesh.view("a"))
    begin = search._beginning(0)
    values = {name: variable.begin for name, variable in begin.items()}
    values["x"] = values["x"] * 3 - 1  # some of it outside of [0, 1]
    here = _Objective(search, SingleGradient(network), search._goal(), search._counts(stage))(values, 0.0)

    x = values["x"][0].clone().requires_grad_(True)
    y = values["labels"][0].clone().requires_grad_(True)
    loss = functional.cross_entropy(network.module(x), torch.cat([1 - y, y], 1))
    gradient = torch.autograd.grad(loss, network.parameters, create_graph=True)
    numbers = [int(n[0]) for n in torch.split(search.tensor, [p.numel() for p in network.parameters])]
    wanted = sum(
        (15 - number) * (g - goal).square().sum()
        for number, g, goal in zip(numbers, gradient, network.split(search._goal()), strict=True)
        if number <= stage and number < 15
    )
    wanted = wanted + 2.0 * (x - x.clamp(0, 1)).square().sum()
    wanted = wanted + 1e-4 * (x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum())
    torch.testing.assert_close(here.loss[0], wanted, rtol=1e-4, atol=1e-6)
    slopes = torch.autograd.grad(wanted, [x, y], materialize_grads=True)
    torch.testing.assert_close(here.slopes["x"][0], slopes[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(here.slopes["labels"][0], slopes[1], rtol=1e-3, atol=1e-5)


def test_label_maps_begin_in_the_middle_and_stay_probabilities(masks):
    mesh, _, _ = masks
    search, _ = _search(ProgressiveMatching(), mesh.view("a"))
    begin = search._beginning(0)
    assert begin["labels"].begin.shape == (1, 1, 1, 8, 8)
    assert begin["labels"].box == (0.0, 1.0)
    assert begin["x"].box is None
    assert abs(float(begin["labels"].begin.mean()) - 0.5) < 0.1
    torch.testing.assert_close(search.probabilities({"labels": begin["labels"].begin}).sum(2), torch.ones(1, 1, 8, 8))


def test_many_classes_have_a_map_each_and_together_are_probabilities(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model={"name": "convnet", "width": 4}, batch=1, pictures=x[100:120])
    mesh.train("b", mesh.near("b"), x[:1], y[:1])
    search, _ = _search(ProgressiveMatching(), mesh.view("a"))
    maps = search._beginning(0)["labels"].begin
    assert maps.shape == (1, 1, 4)
    torch.testing.assert_close(search.probabilities({"labels": maps}).sum(2), torch.ones(1, 1))


def test_masks_are_guessed_as_masks(masks):
    mesh, _, _ = masks
    guess = next(ProgressiveMatching(iterations=2, stages=2).run(mesh.view("a"), np.random.default_rng(0)))
    assert guess.labels.shape == (1, 8, 8)
    assert set(np.unique(guess.labels)) <= {0, 1}


def test_a_known_mask_is_an_easier_setting_that_has_to_be_granted(masks):
    mesh, _, y = masks
    attack = ProgressiveMatching(iterations=2, stages=2, labels="told")
    with pytest.raises(BadInput, match="Nobody told"):
        next(attack.run(mesh.view("a"), np.random.default_rng(0)))
    told = replace(mesh.view("a"), told=lambda peer, round_: y["abc".index(peer)][None])
    guess = next(attack.run(told, np.random.default_rng(0)))
    assert (guess.labels == y[1]).all()


@pytest.mark.parametrize("match", ["squared", "cosine"])
def test_it_gets_nearer_to_the_picture(make_mesh, digits, match):
    x, y = digits
    mesh = make_mesh(
        model={"name": "convnet", "width": 8, "stride": 1, "depth": 2, "activation": "leaky-relu"},
        batch=1,
        pictures=x[100:120],
    )
    for at, peer in enumerate("abc"):
        mesh.train(peer, mesh.near(peer), x[at : at + 1], y[at : at + 1])
    near, far = (
        [
            g.pictures
            for g in ProgressiveMatching(iterations=n, match=match, rate=0.05).run(
                mesh.view("a"), np.random.default_rng(0)
            )
        ]
        for n in (80, 1)
    )
    for found, before, picture in zip(near, far, x[1:3], strict=True):
        assert np.square(found[0] - picture).mean() < 0.5 * np.square(before[0] - picture).mean()


def test_of_several_restarts_the_one_with_the_lowest_loss_is_kept(masks):
    mesh, _, _ = masks
    view = mesh.view("a")
    alone, several = (
        list(ProgressiveMatching(iterations=3, stages=3, restarts=n).run(view, np.random.default_rng(0)))
        for n in (1, 3)
    )
    assert all(s.loss <= a.loss for a, s in zip(alone, several, strict=True))
