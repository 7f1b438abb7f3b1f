"""Labels from gradients: exact where theory says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.inversion.label_counts import (
    counts_by_expectation,
    counts_by_impact,
    counts_by_presence,
    counts_by_restoration,
)
from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.core import BadInput
from veilmesh.crypto.codecs.sign import Sign
from veilmesh.crypto.codecs.topk import TopK


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=20), seed=st.integers(0, 999))
def test_known_probabilities_give_the_exact_counts(labels, seed):
    p = np.random.default_rng(seed).dirichlet(np.ones(7), len(labels))
    truth = np.bincount(labels, minlength=7)
    gradient = p.mean(0) - truth / len(labels)
    assert (counts_by_expectation(gradient, len(labels), p.mean(0)) == truth).all()


@given(labels=st.sets(st.integers(0, 9), min_size=1, max_size=5), scale=st.floats(1e-6, 1e6))
def test_at_any_scale_labels_that_occur_once_are_found(labels, scale):
    truth = np.bincount(sorted(labels), minlength=10)
    gradient = scale * (np.full(10, 0.1) - truth / len(labels))
    assert (counts_by_impact(gradient, len(labels)) == truth).all()


@given(gradient=st.lists(st.floats(-1, 1), min_size=2, max_size=9), batch=st.integers(1, 12))
def test_counts_always_add_up_to_the_batch(gradient, batch):
    g = np.array(gradient)
    alike = np.full(g.size, 1 / g.size)
    for counts in (
        counts_by_impact(g, batch),
        counts_by_expectation(g, batch, alike),
        counts_by_expectation(g, batch, alike, g > 0.5, others=False),
        counts_by_presence(g, batch),
        counts_by_restoration(g, batch, np.tile(alike, (g.size, 1))),
    ):
        assert counts.sum() == batch
        assert (counts >= 0).all()


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_instances_are_restored_from_what_the_network_says_of_each_class(labels, seed):
    """iLRG's equations are exact where the probabilities of each class are."""
    given_ = np.random.default_rng(seed).dirichlet(np.ones(5), 5)
    truth = np.bincount(labels, minlength=5)
    gradient = (truth @ given_ - truth) / len(labels)
    assert (counts_by_restoration(gradient, len(labels), given_) == truth).all()


@pytest.mark.parametrize("method", ["auto", "idlg", "yin", "wainakh", "expectation", "ilrg"])
def test_every_method_finds_a_batch_of_different_labels(make_mesh, digits, method):
    x, y = digits
    mesh = make_mesh(batch=3, pictures=x[100:150])
    mesh.train("b", ["a"], x[[0, 1, 3]], y[[0, 1, 3]])
    (guess,) = ATTACKS.build("label-recovery", {"method": method}).run(mesh.view("a"), np.random.default_rng(0))
    assert guess.labels.tolist() == [0, 1, 3]


def test_a_class_that_shows_in_the_weights_is_there_though_its_bias_entry_is_positive():
    present = np.array([True, False, True])
    counts = counts_by_expectation(np.array([-0.2, 0.1, 0.1]), 4, np.full(3, 1 / 3), present, others=False)
    assert counts.sum() == 4
    assert counts[1] == 0
    assert counts[2] >= 1


def test_several_local_steps_are_as_many_gradients(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(batch=8, local_steps=4, learning_rate=0.4, pictures=x[100:150])
    mesh.train("b", ["a"], x[:8], y[:8])  # one step of four times a quarter of the rate, as far as the update tells
    (guess,) = ATTACKS.build("label-recovery").run(mesh.view("a"), np.random.default_rng(0))
    assert len(guess.labels) == 8
    assert set(guess.labels.tolist()) == set(y[:8].tolist())


@pytest.mark.parametrize("codec", [TopK(0.1), Sign()])
def test_the_label_of_one_picture_survives_compression(make_mesh, digits, codec):
    x, y = digits
    mesh = make_mesh(codec={"name": "sign" if isinstance(codec, Sign) else "topk"}, pictures=x[100:150])
    for at in range(6):
        plain = type(mesh)(mesh.public)
        plain.train("b", ["a"], x[at : at + 1], y[at : at + 1])
        update = observe_updates(plain.view("a"))[0].update
        said = type(mesh)(mesh.public)
        said.update("b", ["a"], 0, update, codec)
        (guess,) = ATTACKS.build("label-recovery").run(said.view("a"), np.random.default_rng(0))
        assert guess.labels.tolist() == [y[at]]


def test_labels_of_pixels_are_not_read_here(make_mesh, digits):
    mesh = make_mesh(model={"name": "segnet", "width": 2})
    with pytest.raises(BadInput, match="every pixel"):
        list(ATTACKS.build("label-recovery").run(mesh.view("a"), np.random.default_rng(0)))


@pytest.mark.parametrize("model", [{"name": "mlp"}, {"name": "lenet"}, {"name": "convnet", "width": 4}])
@pytest.mark.parametrize(("batch", "guards"), [(1, ()), (5, ()), (1, ({"name": "clip", "norm": 1.0},))])
def test_the_attack_finds_the_labels_of_real_pictures(make_mesh, digits, model, batch, guards):
    x, y = digits
    mesh = make_mesh(model=model, batch=batch, guards=guards, pictures=x[100:150])
    mesh.train("b", ["a"], x[:batch], y[:batch])
    mesh.train("c", ["a"], x[10 : 10 + batch], y[10 : 10 + batch])
    guesses = list(ATTACKS.build("label-recovery").run(mesh.view("a"), np.random.default_rng(0)))
    assert [g.labels.tolist() for g in guesses] == [sorted(y[:batch].tolist()), sorted(y[10 : 10 + batch].tolist())]
    assert all(g.pictures.shape == (0, 1, 8, 8) for g in guesses)
    assert all(g.loss < 0.2 for g in guesses)


def test_a_clipped_batch_still_gives_away_which_labels_occur(make_mesh, digits):
    x, y = digits
    mesh = make_mesh(batch=3, guards=({"name": "clip", "norm": 0.01},), learning_rate=0.001)
    mesh.train("b", ["a"], x[[0, 1, 2]], y[[0, 1, 2]])
    (guess,) = ATTACKS.build("label-recovery").run(mesh.view("a"), np.random.default_rng(0))
    assert guess.labels.tolist() == sorted(y[[0, 1, 2]].tolist())
