"""Knowing the defence: composed for every codec and guard, and worth something where it is meant to be."""

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.matching.defended import Defence
from veilmesh.crypto.codecs import CODECS
from veilmesh.sim.score import psnr
from veilmesh.swarm.guards.base import GUARDS, RoundInfo
from veilmesh.tasks.models.build import build_model, vector_to_parameters

NET = {"name": "convnet", "width": 16, "depth": 2}
NOISY = {"noise", "private-update", "correlated-noise"}


def _update(public, x, y):
    """One step of SGD on x (B, C, H, W), as an update (d,)."""
    options = {k: v for k, v in public.model.items() if k != "name"}
    module = build_model(str(public.model["name"]), options, public.shape, public.classes, 0)
    vector_to_parameters(module, public.initial)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
    pieces = torch.autograd.grad(loss, list(module.parameters()))
    return (-public.learning_rate * torch.cat([p.reshape(-1) for p in pieces])).numpy()


@pytest.fixture
def defended(make_mesh, digits):
    """The view of a neighbour whose victim sent one picture through a guard and a codec."""

    def view(codec=None, guard=None, at=0, **changes):
        x, y = digits
        codec, guard = codec or {"name": "dense"}, guard or {}
        mesh = make_mesh(model=NET, codec=codec, guards=(guard,) if guard else (), pictures=x[200:], **changes)
        update = _update(mesh.public, x[at : at + 1], y[at : at + 1])
        if guard:
            options = {k: v for k, v in guard.items() if k != "name"}
            built = GUARDS.build(guard["name"], options)
            update = built.outgoing(update, RoundInfo(0, 1), np.random.default_rng(5))
        mesh.update("b", ["a"], 0, update, CODECS.build(codec["name"], {k: v for k, v in codec.items() if k != "name"}))
        return mesh.view("a")

    return view


def _run(view, name="adaptive", **options):
    (guess,) = ATTACKS.build(name, {"iterations": 3, **options}).run(view, np.random.default_rng(0))
    return guess


@pytest.mark.parametrize("codec", CODECS.names())
def test_every_codec_is_met_by_a_guess_that_says_how_it_compared(defended, codec):
    guess = _run(defended({"name": codec}))
    assert guess.pictures.shape == (1, 1, 8, 8)
    assert (guess.details["variant"] == "cosine") == (codec in ("bf16", "dense", "nf4", "normal-float"))
    assert -1 <= guess.details["explained"] <= 1
    assert guess.details["noise"] == 0


@pytest.mark.parametrize("guard", GUARDS.names())
def test_every_guard_is_met_by_a_guess_with_a_prior_as_strong_as_its_noise(defended, guard):
    guess, plain = _run(defended(guard={"name": guard})), _run(defended())
    assert np.isfinite(guess.pictures).all()
    assert (guess.details["noise"] > 0) == (guard in NOISY)
    assert (guess.details["tv"] > plain.details["tv"]) == (guard in NOISY)


def test_noise_is_measured_against_the_norm_of_the_message(defended):
    ratios = [_run(defended(guard={"name": "noise", "ratio": r})).details["noise"] for r in (0.3, 1.0)]
    assert ratios == [0.3, 1.0]
    small, large = (
        _run(defended(guard={"name": "private-update", "clip": 0.05, "noise": n})).details["noise"]
        for n in (0.001, 0.1)
    )
    size = defended().public.initial.size
    assert small == pytest.approx(0.001 * size**0.5, rel=0.1)
    assert large > 10 * small


@pytest.mark.parametrize("std", [0.0, 1e-4, 1e-2])
def test_noise_in_units_of_the_parameters_is_known_as_what_it_is(defended, std):
    view = defended(guard={"name": "noise", "std": std})
    clean = np.linalg.norm(_update(view.public, *_first_picture()))
    wanted = std * np.sqrt(view.public.initial.size) / clean
    assert _run(view).details["noise"] == pytest.approx(wanted, rel=0.3, abs=1e-6)


def _first_picture():
    from sklearn.datasets import load_digits

    bunch = load_digits(n_class=4)
    return (bunch.images[:1, None] / 16).astype(np.float32), bunch.target[:1].astype(np.int64)


def test_private_training_is_noise_too(defended):
    private = {"clip": 1.0, "noise": 0.5, "pair": 0.0}
    assert _run(defended(private=private)).details["noise"] > 1


@pytest.mark.parametrize(
    ("codec", "guard"),
    [({"name": "sign"}, None), ({"name": "2-bit", "unbiased": True}, None), (None, {"name": "noise", "ratio": 1.0})],
    ids=["sign", "2-bit, unbiased", "noise"],
)
def test_knowing_the_defence_gains(defended, digits, codec, guard):
    gains = []
    for at in (0, 5):
        view = defended(codec, guard, at)
        aware, naive = (_run(view, name, iterations=80) for name in ("adaptive", "cosine-inversion"))
        gains.append(psnr(aware.pictures, digits[0][at : at + 1])[0] - psnr(naive.pictures, digits[0][at : at + 1])[0])
    assert np.mean(gains) > 1


def test_the_best_variant_is_chosen_by_what_it_explains(defended):
    view = defended({"name": "top-k", "keep": 0.1})
    tried = [_run(view, variant=v, iterations=30) for v in ("masked", "selected", "thresholded", "cosine")]
    best = _run(view, variant="best", iterations=30)
    missed = {t.details["variant"]: abs(t.details["explained"] - t.details["expected"]) for t in tried}
    assert best.details["variant"] == min(missed, key=missed.get)


def test_the_truth_explains_a_message_as_well_as_is_expected_of_it(defended, digits, monkeypatch):
    x, y = digits
    for codec, guard in (({"name": "sign"}, None), ({"name": "4-bit"}, None), (None, {"name": "noise", "ratio": 1.0})):
        view, found = defended(codec, guard), []
        fit = Defence.fit

        def seen(self, case, update, seed, fit=fit, public=view.public, found=found):
            found.append(fit(self, case, _update(public, x[:1], y[:1]), seed))
            return fit(self, case, update, seed)

        monkeypatch.setattr(Defence, "fit", seen)
        _run(view)
        monkeypatch.undo()
        explained, expected = found[0]
        assert explained == pytest.approx(expected, abs=0.05)


def test_sums_and_unknown_messages_are_compared_by_the_cosine(defended, make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=NET, codec={"name": "sign"})  # announced, and not kept to
    mesh.train("b", ["a"], x[:1], y[:1])
    assert _run(mesh.view("a")).details["variant"] == "cosine"


def test_a_variant_that_does_not_fit_is_the_cosine(defended):
    assert _run(defended(), variant="signs").loss == _run(defended(), variant="cosine").loss


def test_the_same_view_and_generator_give_the_same_bits(defended):
    view = defended({"name": "top-k"})
    first, second = (_run(view, variant="best") for _ in range(2))
    assert first.pictures.tobytes() == second.pictures.tobytes()


@pytest.mark.parametrize("codec", ["sign", "low-rank", "nf4", "4-bit", "top-k"])
def test_absurd_messages_from_a_victim_break_nothing(make_mesh, codec):
    mesh = make_mesh(model=NET, codec={"name": codec})
    size = mesh.public.initial.size
    for x in (np.full(size, 1e30, np.float32), np.zeros(size, np.float32)):
        mesh.records.clear()
        mesh.update("b", ["a"], 0, x, CODECS.build(codec, {}))
        for guess in ATTACKS.build("adaptive", {"iterations": 3}).run(mesh.view("a"), np.random.default_rng(0)):
            assert np.isfinite(guess.pictures).all()
            assert np.isfinite(guess.loss)
            assert np.isfinite(guess.details["explained"])
