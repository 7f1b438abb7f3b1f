"""What comes of smashed data: decoders, the head run backwards, clones, pseudo-clients, and what their makers know."""

import dataclasses

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.seen.own_stage import own_stages, tail_over_time
from veilmesh.attacks.smashed.decoders import Decoder, batches, begin
from veilmesh.attacks.smashed.known_head import Inversion, Recipe, activations, invert
from veilmesh.attacks.smashed.passage import Passage
from veilmesh.core import BadInput
from veilmesh.split.cut import divide, pieces
from veilmesh.tasks.models.build import build_model

RECIPE = Recipe(iterations=20, refinements=20, width=16)


def _psnr(x, truth):
    return float(-10 * np.log10(np.square(x - truth).mean()))


def _head(depth, width=8):
    network = build_model("convnet", {"width": width, "depth": 3, "stride": 2}, (1, 8, 8), 4, 0)
    head = divide(network, [1 + 2 * depth])[0]
    return head.requires_grad_(False)


@pytest.fixture
def draws():
    return torch.Generator().manual_seed(0)


def test_the_published_depths_are_cuts_of_the_published_network():
    network = build_model("cifarnet", {"width": 4, "hidden": 8}, (3, 32, 32), 10, 0)
    names = [name for name, _ in pieces(network)]
    assert [names[depth + 1] for depth in (1, 4, 7, 11)] == ["relu11", "pool1", "conv22", "relu31"]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pictures_come_back_through_a_known_head_the_worse_the_deeper(digits):
    x, _ = digits
    private, public = x[:20], x[100:400]
    found = []
    for depth in (1, 2, 3):
        head = _head(depth)
        z = activations(head, torch.from_numpy(private)).numpy()
        found.append(_psnr(invert(head, z, public, RECIPE, np.random.default_rng(0)), private))
    grey = _psnr(np.broadcast_to(public.mean(axis=0), private.shape), private)
    assert found[0] > found[1] > found[2]
    assert found[0] > grey + 8


def test_running_the_head_backwards_adds_to_the_decoder(digits):
    x, _ = digits
    head, private = _head(1), x[:20]
    z = activations(head, torch.from_numpy(private)).numpy()
    plain, refined = (
        _psnr(
            invert(head, z, x[100:400], dataclasses.replace(RECIPE, refinements=n), np.random.default_rng(0)), private
        )
        for n in (0, 40)
    )
    assert refined > plain + 1


def test_the_closed_form_finds_a_linear_head_exactly(draws):
    x = torch.rand(200, 1, 8, 8, generator=draws)
    decoder = begin(lambda: Decoder((64,), (1, 8, 8), width=4, blocks=0), draws)
    mixing = torch.randn(64, 64, generator=draws)
    decoder.solve(x.flatten(1) @ mixing, x, draws, ridge=1e-9)
    assert float((decoder(x.flatten(1) @ mixing) - x).detach().square().mean()) < 1e-4


def test_batches_go_on_for_ever_and_are_never_larger_than_what_there_is(draws):
    some = batches(5, 8, draws)
    assert [sorted(next(some).tolist()) for _ in range(3)] == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("seat", ["tail", "body"])
def test_an_adversary_has_its_own_stage_as_it_was_at_every_step(make_split, seat):
    run = make_split(seat).train(3)
    view = run.view(seat)
    own = own_stages(view)
    seen = [(step, head) for step, head, _ in tail_over_time(view)]
    assert seen == [(step, "peer:0") for step in range(3)]
    *_, (_, _, module) = tail_over_time(view)  # after the last step it is as that left it
    for mine, its in zip(module.parameters(), run.stages[own.low].parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def test_whoever_plays_no_stage_above_a_head_is_told_so(make_split):
    with pytest.raises(BadInput, match="tail"):
        own_stages(make_split("tail").train(1).view("peer:0"))


@pytest.mark.parametrize(
    ("guard", "codec"),
    [({"name": "laplace", "scale": 0.3}, "dense"), ({"name": "gaussian", "std": 0.3, "bound": 1.0}, "dense"),
     ({"name": "disco"}, "dense"), (None, "8-bit"), (None, "top-k")],
)  # fmt: skip
def test_a_passage_does_to_activations_what_guards_and_codecs_do(make_split, draws, guard, codec):
    public = make_split("tail").public
    split = {**public.split, "guards": [guard] if guard else [], "codec": {"name": codec}}
    public = dataclasses.replace(public, split=split)
    z = torch.randn(6, 4, 4, 4, generator=draws)
    seen = z.clone()
    seen[:, 1] = 0
    passage = Passage.of(public, seen)
    passed = passage(z, draws)
    assert not passage.clear
    assert passed.shape == z.shape
    assert not torch.equal(passed, z)
    assert passage.silent == (codec == "top-k" or guard == {"name": "disco"})
    if guard == {"name": "disco"}:
        assert not passed[:, 1].any()
        assert torch.equal(passed[:, 2], z[:, 2])


@pytest.mark.parametrize("name", ["decoder-inversion", "pcat", "sdar"])
def test_what_learns_from_public_pictures_says_so_without_any(make_split, name):
    view = make_split("tail").train(1).view("tail")
    view = dataclasses.replace(view, public=dataclasses.replace(view.public, pictures=None, picture_labels=None))
    with pytest.raises(BadInput, match="public pictures"):
        list(ATTACKS.build(name, {}).run(view, np.random.default_rng(0)))


def test_unsplit_needs_no_pictures(make_split):
    view = make_split("tail").train(1).view("tail")
    view = dataclasses.replace(view, public=dataclasses.replace(view.public, pictures=None, picture_labels=None))
    [guess] = ATTACKS.build("unsplit", {"iterations": 2}).run(view, np.random.default_rng(0))
    assert guess.pictures.shape == (10, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sdar", {"reader": "decoder"}), ("sdar", {"start": "random", "rate": 1e-3}), ("pcat", {"start": "random"}),
     ("unsplit", {"start": "random"}), ("decoder-inversion", {"refinements": 0})],
)  # fmt: skip
def test_options_of_the_papers_run(make_split, name, options):
    view = make_split("tail").train(2).view("tail")
    guesses = list(ATTACKS.build(name, {"iterations": 2, **options}).run(view, np.random.default_rng(0)))
    assert guesses
    assert all(np.isfinite(guess.loss) for guess in guesses)


def test_where_labels_stay_with_the_data_owner_a_stand_in_guesses_them(make_split):
    view = make_split("body").train(2).view("body")
    for guess in ATTACKS.build("pcat", {"iterations": 2}).run(view, np.random.default_rng(0)):
        assert guess.labels.shape == (10,)


def test_a_clone_of_the_head_follows_where_the_head_that_is_known_has_changed(digits, draws):
    x, _ = digits
    known, changed = _head(1), _head(1)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.3)
    z = activations(changed, torch.from_numpy(x[:20]))
    public, misfits = torch.from_numpy(x[100:400]), []
    for turns in (0, 20):
        recipe = dataclasses.replace(RECIPE, iterations=2, turns=turns)
        pictures, misfit = Inversion(known, public, Passage(), recipe, torch.Generator().manual_seed(0))(z)
        assert pictures.shape == (20, 1, 8, 8)
        misfits.append(float(misfit.median()))
    assert misfits[1] < misfits[0] / 2
