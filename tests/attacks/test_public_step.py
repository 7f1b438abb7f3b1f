"""Attackers who know of a public step get behind it; the choice is told only where it was asked for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS, Public, View
from veilmesh.attacks.matching import public_steps
from veilmesh.attacks.matching.predict import SingleGradient
from veilmesh.attacks.matching.public_steps import Aside, PublicPool, TwoStages, gradient_of
from veilmesh.attacks.network import Network
from veilmesh.attacks.stored import from_bytes, to_bytes
from veilmesh.core import BadInput
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting
from veilmesh.swarm.sharing.public_step import PublicStep
from veilmesh.tasks.work import Settings, Train, Trained

torch.set_num_threads(1)

NETWORK = {"name": "convnet", "width": 6, "depth": 2, "stride": 1, "activation": "leaky-relu"}


def behind(make_mesh: Any, digits: tuple[np.ndarray, np.ndarray], **options: Any) -> tuple[View, np.ndarray]:
    """What peer a has of b, who shares by public step; and b's one picture."""
    x, y = digits
    sharing = {"name": "public-step", "aligner": "given", **options}
    mesh = make_mesh(
        model=NETWORK, sharing=sharing, pictures=x[100:120], picture_labels=y[100:120], learning_rate=0.1, batch=1
    )
    public: Public = mesh.public
    scheme = SHARINGS.build("public-step", {k: v for k, v in sharing.items() if k != "name"})
    assert isinstance(scheme, PublicStep)
    given = Settings(batch=1, local_steps=1, learning_rate=0.1)
    setting = Setting(NETWORK, public.shape, 4, given, 0, 3, public.pictures, public.picture_labels)  # type: ignore[arg-type]  # there are some
    for peer, at in zip("abc", (0, 1, 2), strict=True):
        own = Own(at, x[at : at + 1], y[at : at + 1], x[:2], y[:2], None, private=50 + at)
        (trained,) = scheme.learner(setting, own).run([Train(0, public.initial)])
        assert isinstance(trained, Trained)
        mesh.update(peer, mesh.near(peer), 0, trained.update)

    def chosen(peer: str, round_: int) -> np.ndarray:
        at = "abc".index(peer)
        return scheme.drawn(setting, 50 + at, at, round_)

    def told(peer: str, round_: int) -> np.ndarray:
        return y[["abc".index(peer)]]

    return replace(mesh.view("a"), chosen=chosen, told=told), x[1:2]


def psnr(view: View, truth: np.ndarray, name: str = "public-step", **options: Any) -> float:
    options = {"iterations": 80, "labels": "told", **options}
    guess = next(iter(ATTACKS.build(name, options).run(view, np.random.default_rng(0))))
    assert guess.victim == "b"
    return float(-10 * np.log10(np.square(guess.pictures - truth).mean()))


@pytest.mark.parametrize("batch", [1, 8])
def test_who_knows_of_the_step_gets_behind_it(make_mesh: Any, digits: Any, batch: int) -> None:
    view, truth = behind(make_mesh, digits, batch=batch)
    naive = psnr(view, truth, "cosine-inversion")
    told = psnr(view, truth, public_batch="told")
    untold = psnr(replace(view, chosen=None), truth, every=10)
    assert told > naive + 8
    assert untold > naive + 5


def test_the_label_is_found_by_trying(make_mesh: Any, digits: Any) -> None:
    view, _ = behind(make_mesh, digits, batch=4)
    attack = ATTACKS.build("public-step", {"public_batch": "told", "iterations": 30})
    guess = next(iter(attack.run(replace(view, told=None), np.random.default_rng(0))))
    assert guess.labels.tolist() == [digits[1][1]]


def test_four_steps_are_followed_in_order(make_mesh: Any, digits: Any) -> None:
    view, truth = behind(make_mesh, digits, batch=2, steps=4)
    assert psnr(view, truth, public_batch="told") > psnr(view, truth, "cosine-inversion") + 8


@pytest.mark.parametrize("options", [{"how": "mean"}, {"how": "subtract", "public_batch": "told"}])
def test_the_cheap_ways_guess_too(make_mesh: Any, digits: Any, options: dict[str, str]) -> None:
    view, truth = behind(make_mesh, digits, batch=8)
    assert np.isfinite(psnr(view, truth, iterations=5, **options))


def test_what_is_not_told_is_not_known(make_mesh: Any, digits: Any) -> None:
    view, truth = behind(make_mesh, digits)
    with pytest.raises(BadInput, match="public_batch"):
        ATTACKS.build("public-step", {"how": "simulate"})
    with pytest.raises(BadInput, match="chosen"):
        psnr(replace(view, chosen=None), truth, public_batch="told")


def test_without_a_public_step_it_is_cosine_matching(make_mesh: Any, digits: Any) -> None:
    x, y = digits
    mesh = make_mesh(model=NETWORK)
    for peer, at in zip("abc", (0, 1, 2), strict=True):
        mesh.train(peer, mesh.near(peer), x[at : at + 1], y[at : at + 1])
    assert psnr(mesh.view("a"), x[1:2], labels="inferred") > 25


@pytest.fixture
def network(make_mesh: Any) -> Network:
    public = make_mesh(model=NETWORK).public
    network = Network(public)
    network.load(public.initial)
    return network


def pool(digits: Any, places: slice) -> PublicPool:
    return PublicPool(torch.from_numpy(digits[0][places]), torch.from_numpy(digits[1][places]))


def test_two_stages_are_two_steps(network: Network, digits: Any, make_mesh: Any) -> None:
    start = torch.from_numpy(make_mesh(model=NETWORK).public.initial)
    one, other = pool(digits, slice(0, 1)), pool(digits, slice(100, 103))
    first = gradient_of(network, start, one)
    second = gradient_of(network, start - 0.1 * first, other)
    found = TwoStages(network, [other], 0.1, 0.3).predict(one.x[None], one.y[None])
    torch.testing.assert_close(found.gradient[0], first + 3 * second, rtol=1e-3, atol=1e-5)


def test_whatever_public_pictures_add_is_not_seen_aside(network: Network, digits: Any, make_mesh: Any) -> None:
    start = torch.from_numpy(make_mesh(model=NETWORK).public.initial)
    one, public = pool(digits, slice(0, 1)), pool(digits, slice(100, 110))
    gradient = gradient_of(network, start, one)
    target = gradient + 5 * gradient_of(network, start, public, 3) - gradient_of(network, start, public, 8)
    aside = Aside(network, public, target, start, 0.0, 1000, torch.Generator().manual_seed(0))
    value, pull = aside.at(SingleGradient(network).predict(one.x[None], one.y[None]).gradient)
    assert float(value) == pytest.approx(0, abs=1e-4)
    assert pull.shape == (1, len(start))
    other = gradient_of(network, start, pool(digits, slice(1, 2)))[None]
    value, pull = aside.at(other)
    assert float(value) > 0.1
    ahead = aside.at(other - 1e-3 * pull / pull.norm())[0]
    assert float(ahead) < float(value)


def test_many_public_pictures_are_looked_past_on_some_coordinates(
    network: Network, digits: Any, make_mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_steps, "_MOST", 10 * 200)
    start = torch.from_numpy(make_mesh(model=NETWORK).public.initial)
    one, public = pool(digits, slice(0, 1)), pool(digits, slice(100, 110))
    gradient = gradient_of(network, start, one)
    target = gradient - 2 * gradient_of(network, start, public, 3)
    first = Aside(network, public, target, start, 0.0, 2, torch.Generator().manual_seed(0))
    for aside in (first, first.anew()):
        for _ in range(3):  # the third looks anew
            value, pull = aside.at(torch.stack([gradient, 2 * gradient + 0.1]))
            assert float(value[0]) == pytest.approx(0, abs=1e-4)
            assert float(value[1]) > 1e-3
            assert 0 < int((pull[1] != 0).sum()) <= 200


def test_the_choice_is_stored_with_a_view(make_mesh: Any, digits: Any) -> None:
    view, _ = behind(make_mesh, digits, batch=4)
    again = from_bytes(to_bytes(view))
    assert again.chosen is not None
    assert view.chosen is not None
    np.testing.assert_array_equal(again.chosen("b", 0), view.chosen("b", 0))
    assert to_bytes(again) == to_bytes(view)
    assert from_bytes(to_bytes(replace(view, chosen=None))).chosen is None
    with pytest.raises(BadInput, match="chosen"):
        from_bytes(to_bytes(replace(view, chosen=lambda peer, round_: np.array([20]))))
