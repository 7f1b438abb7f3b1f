"""Labels that never crossed a cut, inferred from what did."""

import numpy as np
import pytest

from veilmesh.attacks import ATTACKS
from veilmesh.attacks.inference.activation_match import ActivationMatch
from veilmesh.attacks.inference.activation_property import ActivationProperty
from veilmesh.attacks.inference.base import Candidates
from veilmesh.attacks.smashed.completion import ModelCompletion
from veilmesh.attacks.smashed.label_evidence import log_likelihood
from veilmesh.attacks.smashed.labels import SplitLabels
from veilmesh.attacks.smashed.last_stage import Candidates as Expected
from veilmesh.attacks.smashed.repeats import Repeats
from veilmesh.attacks.stored import from_bytes, to_bytes
from veilmesh.core import BadInput
from veilmesh.split.guards.base import About
from veilmesh.split.guards.gradient_noise import GradientNoise


def _right(run, view, attack):
    """The share of labels told rightly, over all rounds."""
    guesses = list(attack.run(view, np.random.default_rng(0)))
    assert guesses
    steps = run.public.local_steps
    hits = []
    for guess in guesses:
        at = np.concatenate(run.batches[guess.round * steps : (guess.round + 1) * steps])
        hits.append((guess.labels == run.labels[at]).mean())
    return float(np.mean(hits))


@pytest.mark.parametrize("method", ["replay", "sign", "cosine"])
def test_the_body_of_a_u_knows_every_label(make_split, method):
    run = make_split("body").train(30)
    assert _right(run, run.view("body"), SplitLabels(method=method)) >= 0.97


def test_a_clone_that_begins_at_random_knows_next_to_nothing(make_split):
    run = make_split("body").train(20)
    assert _right(run, run.view("body"), SplitLabels(method="clone")) < 0.7


@pytest.mark.parametrize("boundary", [1, 2])
def test_whatever_cut_it_is_seen_at(make_split, boundary):
    run = make_split("body").train(20)
    assert _right(run, run.view("body"), SplitLabels(boundary=boundary)) == 1.0


def test_batch_normalisation_does_not_hide_labels(make_split):
    """Everybody's gradient depends on everybody's label, and all of them are solved for at once."""
    model = {"name": "convnet", "width": 8, "norm": "batch"}
    run = make_split("body", model=model, split={"cuts": [3, 6]}).train(6)
    assert _right(run, run.view("body"), SplitLabels()) >= 0.95


def test_several_local_steps_make_a_round_in_their_order(make_split):
    run = make_split("body", local_steps=4).train(12)
    view = run.view("body")
    assert len(list(SplitLabels().run(view, np.random.default_rng(0)))) == 3
    assert _right(run, view, SplitLabels()) == 1.0


def test_a_data_owner_without_labels_reads_those_that_the_tail_holds(make_split):
    run = make_split("held").train(20)
    assert _right(run, run.view("peer:0"), SplitLabels()) == 1.0


def test_it_refuses_whoever_has_the_labels_anyway(make_split):
    for seat in ("tail", "held"):
        with pytest.raises(BadInput, match="labels the adversary does not have"):
            list(SplitLabels().run(make_split(seat).train(2).view("tail"), np.random.default_rng(0)))


def test_norms_are_for_two_classes(make_split):
    with pytest.raises(BadInput, match="two classes"):
        list(SplitLabels(method="norm").run(make_split("body").train(2).view("body"), np.random.default_rng(0)))


def test_noise_that_stops_the_published_attacks_does_not_stop_who_adds_up_epochs(make_split):
    guard = GradientNoise(power=10.0)
    named = {"name": "gradient-noise", "power": 10.0}
    run = make_split("body", learning_rate=0.02, split={"guards": [named]})
    about = About((1, 8, 8), (12,), 4, 10, np.random.default_rng(5))
    run.train(200, guard.start(about))
    view = run.view("body")
    published = max(_right(run, view, SplitLabels(method=method)) for method in ("sign", "cosine"))
    single, summed = (_right(run, view, SplitLabels(repeats=repeats)) for repeats in (False, True))
    assert published < 0.75
    assert summed >= 0.97
    assert summed > single


def test_the_evidence_is_a_density(make_split):
    """Two labels, one coordinate, noise of a known power: the ratio is that of two Gaussians."""
    rng = np.random.default_rng(0)
    means = np.stack([np.full((400, 1), -1.0), np.full((400, 1), 1.0)])
    truth = rng.integers(2, size=400)
    seen = means[truth, np.arange(400)] + rng.normal(size=(400, 1))
    known = Expected(means, np.full((400, 2), np.log(0.5)))
    found = log_likelihood(seen, known, [GradientNoise(power=1.0)], known.log_p)
    ratio = found[:, 1] - found[:, 0]
    wanted = np.clip(2 * seen[:, 0], -np.log(50), np.log(50))
    assert np.corrcoef(ratio, wanted)[0, 1] > 0.99
    assert np.abs(ratio - wanted).mean() < 0.3


def test_examples_are_known_again_in_the_next_epoch():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(40, 16)).astype(np.float32)
    met = Repeats(0.9)
    first = met.find(places, 0, 3)
    order = rng.permutation(40)
    again = met.find(places[order] + rng.normal(size=(40, 16)).astype(np.float32) * 0.1, 1, 3)
    assert (again == first[order]).all()
    assert len(met.evidence) == 40


def test_nobody_is_met_twice_in_an_epoch():
    same = np.ones((4, 8), np.float32)
    met = Repeats(2.0)
    assert len(set(met.find(same, 0, 2))) == 4
    assert len(set(met.find(same, 1, 2))) == 4


def test_a_completed_model_names_its_owners_examples(make_split):
    run = make_split("held").train(60)
    view = run.view("peer:0")
    assert _right(run, view, ModelCompletion(known=4, iterations=200)) > 0.85


def test_completion_needs_a_head_of_ones_own(make_split):
    with pytest.raises(BadInput, match="head"):
        list(ModelCompletion().run(make_split("body").train(2).view("body"), np.random.default_rng(0)))


def test_labels_that_somebody_else_holds_are_in_no_view(make_split):
    run = make_split("held").train(3)
    view = run.view("peer:0")
    assert not view.held
    assert (view.own("peer:0", 0)[1] == -1).all()
    stored = from_bytes(to_bytes(view))
    a, b = (list(ATTACKS.build("split-labels").run(v, np.random.default_rng(0))) for v in (view, stored))
    assert [g.labels.tolist() for g in a] == [g.labels.tolist() for g in b]


def test_members_are_known_by_their_activations(make_split, digits):
    run = make_split("tail").train(10)
    x, y = digits
    candidates = {"peer:0": Candidates(x[50:150], y[50:150])}
    (scores,) = ActivationMatch(rounds=10).run(run.view("tail"), candidates, np.random.default_rng(0))
    inside, outside = scores.values[:50], scores.values[50:]
    assert (inside[:, None] > outside).mean() > 0.8


def test_activations_tell_a_property(make_split, digits):
    run = make_split("tail").train(10)
    x, y = digits
    found = list(
        ActivationProperty(what="class", label=1, shadows=64).run(run.view("tail"), {}, np.random.default_rng(0))
    )
    assert [one.round for one in found] == list(range(10))
    assert all(np.isfinite(one.values).all() for one in found)
