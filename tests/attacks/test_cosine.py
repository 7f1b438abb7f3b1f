"""Inverting Gradients on pictures so small that it takes a second."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from veilmesh.attacks import ATTACKS, observe_updates
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.sim.score import floors, psnr
from veilmesh.swarm import messages

NET = {"name": "convnet", "width": 16, "depth": 2, "activation": "tanh"}


def _run(view, seed=0, **options):
    options = {"iterations": 60, **options}
    return list(ATTACKS.build("cosine-inversion", options).run(view, np.random.default_rng(seed)))


@pytest.fixture
def mesh(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=NET, pictures=x[200:])
    mesh.train("c", ["a", "b"], x[:1], y[:1])
    return mesh


def test_it_sees_far_more_than_knowing_nothing_would(mesh, digits):
    x, y = digits
    (guess,) = _run(mesh.view("a"), iterations=200)
    floor, _ = floors(x[:1], mesh.public.pictures)[0].best
    assert psnr(guess.pictures, x[:1])[0] > floor + 10
    assert guess.labels.tolist() == y[:1].tolist()
    assert guess.details["distance"] <= guess.loss < 0.01


def test_the_same_view_and_seed_give_the_same_bits(mesh):
    first, second, other = (_run(mesh.view("a"), seed=s)[0] for s in (0, 0, 1))
    assert first.pictures.tobytes() == second.pictures.tobytes()
    assert first.loss == second.loss
    assert first.pictures.tobytes() != other.pictures.tobytes()


def test_the_same_update_gives_the_same_picture_from_every_vantage(mesh, make_mesh, digits):
    x, y = digits
    star = make_mesh(model=NET, pictures=mesh.public.pictures, strategy="fedsgd", server="b", weights={})
    star.train("a", ["b"], x[5:6], y[5:6])  # another client, first in line
    star.train("c", ["b"], x[:1], y[:1])
    views = [mesh.view("a"), mesh.view("b"), star.view("b")]
    pictures = {next(g for g in _run(v) if g.victim == "c").pictures.tobytes() for v in views}
    assert len(pictures) == 1


def test_restarts_are_chosen_by_the_attackers_own_loss(mesh):
    one, three = _run(mesh.view("a"), iterations=15), _run(mesh.view("a"), iterations=15, restarts=3)
    assert three[0].loss <= one[0].loss


def test_where_little_was_said_only_that_can_be_matched(make_mesh, digits):
    x, y = digits
    whole = make_mesh(model=NET)
    whole.train("b", ["a"], x[:1], y[:1])
    update = observe_updates(whole.view("a"))[0].update
    sparse = make_mesh(model=NET)
    sparse.update("b", ["a"], 0, update, TopK(0.1))
    said, all_ = (_run(sparse.view("a"), match=m)[0] for m in ("said", "all"))
    assert said.loss < all_.loss  # zeros that were never said cannot be matched
    assert psnr(said.pictures, x[:1])[0] > psnr(all_.pictures, x[:1])[0]


def test_a_batch_is_recovered_together(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=NET, batch=2)
    mesh.train("b", ["a"], x[:2], y[:2])
    (guess,) = _run(mesh.view("a"))
    assert guess.pictures.shape == (2, 1, 8, 8)
    assert guess.labels.tolist() == sorted(y[:2].tolist())


def test_absurd_parameters_from_a_victim_break_nothing(mesh):
    size = mesh.public.initial.size
    blob = table.encode(TopK(0.01), np.full(size, 3e38, np.float32), np.random.default_rng(0))
    mesh.say("b", "a", messages.Update(0, 1, blob))
    for guess in _run(mesh.view("a"), iterations=3):
        assert np.isfinite(guess.pictures).all()
        assert np.isfinite(guess.loss)


def test_the_number_of_pictures_is_never_the_victims_to_choose(mesh):
    blob = messages.decode(next(r.body for r in mesh.records if r.sender == "c")).blob
    mesh.records = []
    mesh.say("c", "a", messages.Update(0, 2**31 - 1, blob))
    (guess,) = _run(replace(mesh.view("a")), iterations=2)
    assert guess.pictures.shape == (1, 1, 8, 8)


def test_the_global_generators_are_left_alone(mesh):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _run(mesh.view("a"), iterations=2)
    assert torch.equal(before, torch.get_rng_state())
