"""What every inference keeps to, which models an adversary holds, and what is told from them."""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.attacks.inference.base import INFERENCES, Candidates, registry_of
from veilmesh.attacks.inference.lira import likelihood_ratio
from veilmesh.attacks.inference.models import KINDS, models_seen
from veilmesh.attacks.inference.property import ridge
from veilmesh.attacks.inference.rmia import auc, exceeded
from veilmesh.attacks.inference.signals import batches, halves, margins, train
from veilmesh.attacks.network import Network
from veilmesh.attacks.view import ATTACKS
from veilmesh.core import BadInput
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.swarm import messages

NETWORKS = [{"name": "mlp", "hidden": (8,)}, {"name": "convnet", "width": 4}]
OF_SPLIT_MODE = ("activation-match", "activation-property")
"""Those that read what crosses a cut: tests/sim/test_split_inferences.py, and here what is true of all."""
SWARM = [name for name in INFERENCES.names() if name not in OF_SPLIT_MODE]
MEMBERSHIP = [name for name in SWARM if INFERENCES.get(name).infers == "members"]


@pytest.fixture(params=NETWORKS, ids=lambda n: n["name"])
def view(request, make_mesh, digits):
    x, y = digits
    mesh = make_mesh(model=request.param, batch=2, pictures=x[100:120], picture_labels=y[100:120])
    for peer, at in zip("abc", (0, 2, 4), strict=True):
        mesh.train(peer, mesh.near(peer), x[at : at + 2], y[at : at + 2])
    return mesh.view("a")


@pytest.fixture
def candidates(digits):
    x, y = digits
    return {"b": Candidates(x[200:206], y[200:206]), "c": Candidates(x[210:214], y[210:214])}


def _build(name: str) -> Any:
    """Quick, where an inference can be."""
    fields = {f.name for f in dataclasses.fields(INFERENCES.get(name))}
    quick = {"iterations": 3, "shadows": 8, "targets": 1}
    return INFERENCES.build(name, {k: v for k, v in quick.items() if k in fields})


@pytest.mark.parametrize("name", [n for n in SWARM if INFERENCES.get(n).infers != "peers"])
def test_scores_are_one_for_each_candidate(view, candidates, name):
    inference = _build(name)
    scores = list(inference.run(view, candidates, np.random.default_rng(0)))
    assert inference.infers in ("members", "property")
    assert {s.victim for s in scores} == {"b", "c"}
    assert len({(s.victim, s.model, s.round) for s in scores}) == len(scores)
    for s in scores:
        assert s.model in KINDS
        assert s.round == 0
        assert s.values.dtype == np.float64
        assert s.values.shape == ((1,) if inference.infers == "property" else (len(candidates[s.victim].labels),))
        assert np.isfinite(s.values).all()
        assert np.isfinite(s.threshold)


@pytest.mark.parametrize("name", OF_SPLIT_MODE)
def test_an_inference_from_activations_says_so_where_nothing_is_cut(view, candidates, name):
    with pytest.raises(BadInput, match="reads what crosses a cut"):
        list(_build(name).run(view, candidates, np.random.default_rng(0)))


@pytest.mark.parametrize("name", SWARM)
def test_an_inference_is_a_function_of_its_view_and_generator(view, candidates, name):
    torch.manual_seed(1)
    np.random.seed(1)  # the global generator is what is being watched
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (list(_build(name).run(view, candidates, np.random.default_rng(3))) for _ in range(2))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    for a, b in zip(first, second, strict=True):
        assert a.values.tobytes() == b.values.tobytes()
        assert (a.victim, a.model, a.threshold) == (b.victim, b.model, b.threshold)


@pytest.mark.parametrize("name", INFERENCES.names())
def test_an_inference_says_what_it_is_and_refuses_unknown_options(name):
    line, _ = INFERENCES.describe(name)
    assert line.endswith(".")
    with pytest.raises(BadInput, match="There is no option"):
        INFERENCES.build(name, {"truth": 1})
    assert registry_of(name) is INFERENCES


def test_an_attack_is_looked_for_among_those_that_reconstruct_and_those_that_infer():
    assert registry_of("analytic") is ATTACKS
    with pytest.raises(BadInput, match="analytic.*rmia"):
        registry_of("oracle")


@pytest.mark.parametrize("name", ["lira", "property", "rmia"])
def test_without_labelled_public_pictures_nothing_can_be_trained(view, candidates, name):
    bare = replace(view, public=replace(view.public, picture_labels=None))
    with pytest.raises(BadInput, match="no labelled public pictures"):
        list(_build(name).run(bare, candidates, np.random.default_rng(0)))


def test_a_victim_without_candidates_is_not_scored(view, candidates):
    for name in MEMBERSHIP:
        scores = list(_build(name).run(view, {"b": candidates["b"]}, np.random.default_rng(0)))
        assert {s.victim for s in scores} == {"b"}


def _gossip(make_mesh, weights=None, rounds=2):
    mesh = make_mesh(**({"weights": weights} if weights else {}))
    d, rng = mesh.public.initial.size, np.random.default_rng(2)
    updates = {p: rng.normal(size=(rounds, d)).astype(np.float32) for p in mesh.public.peers}
    return mesh, mesh.gossip(updates), updates


def test_in_a_mesh_a_neighbour_holds_local_models_marginalised_ones_and_their_mean(make_mesh):
    mesh, truth, updates = _gossip(make_mesh)
    models = {(m.model, m.victim): m for m in models_seen(mesh.view("a"))}
    assert set(models) == {(kind, peer) for kind in KINDS for peer in "bc"}
    after = {p: truth["start"][p, 1] + updates[p][1] for p in "abc"}
    np.testing.assert_allclose(models["local", "b"].vector, after["b"], atol=1e-5)
    np.testing.assert_allclose(models["consensus", "b"].vector, sum(after.values()) / 3, atol=1e-5)
    # without a and c, what is left of b's mixed model is a third of its own, and its update
    own = truth["start"]["b", 0] + updates["b"][0]
    marginalised = models["marginalised", "b"]
    np.testing.assert_allclose(marginalised.vector, own + 3 * updates["b"][1], atol=1e-4)
    assert marginalised.share == pytest.approx(1 / 3)
    assert {m.round for m in models.values()} == {1}


def test_who_is_not_heard_stays_in_a_marginalised_model(make_mesh):
    """On a ring of four, a hears b and d, but not c, who is b's other neighbour."""
    near = {"a": "bd", "b": "ac", "c": "bd", "d": "ac"}
    weights = {v: {p: 1 / 3 for p in (*n, v)} for v, n in near.items()}
    mesh = make_mesh(peers=("a", "b", "c", "d"), weights=weights)
    rng, d = np.random.default_rng(2), mesh.public.initial.size
    mesh.gossip({p: rng.normal(size=(2, d)).astype(np.float32) for p in "abcd"})
    models = {m.victim: m for m in models_seen(mesh.view("a"), ["marginalised"])}
    assert set(models) == {"b", "d"}
    assert models["b"].share == pytest.approx(2 / 3)  # b's own, and c's


def test_of_several_rounds_the_latest_are_taken(make_mesh):
    mesh, _, _ = _gossip(make_mesh, rounds=4)
    assert [m.round for m in models_seen(mesh.view("a"), ["local"], rounds=2) if m.victim == "b"] == [2, 3]
    assert [m.round for m in models_seen(mesh.view("a"), ["local"], rounds=9) if m.victim == "b"] == [0, 1, 2, 3]


def _star(make_mesh):
    mesh = make_mesh(peers=("a", "b", "hub"), weights={}, server="hub", strategy="fedavg")
    d, rng = mesh.public.initial.size, np.random.default_rng(2)
    models = [mesh.public.initial, rng.normal(size=d).astype(np.float32)]
    updates = {p: rng.normal(size=(2, d)).astype(np.float32) for p in "ab"}
    for t in (0, 1):
        blob = table.encode(Dense(), models[t], rng)
        for p in "ab":
            mesh.say("hub", p, messages.Model(t, blob))
            mesh.update(p, ["hub"], t, updates[p][t])
    return mesh, models, updates


def test_a_hub_holds_its_clients_models_and_its_own(make_mesh):
    mesh, models, updates = _star(make_mesh)
    seen = {(m.model, m.victim): m for m in models_seen(mesh.view("hub"))}
    assert set(seen) == {("local", "a"), ("local", "b"), ("consensus", "a"), ("consensus", "b")}
    np.testing.assert_allclose(seen["local", "a"].vector, models[1] + updates["a"][1], atol=1e-6)
    assert (seen["consensus", "a"].vector == models[1]).all()
    assert seen["consensus", "a"].round == 0  # what round 1 began with is what round 0 came to


def test_a_client_holds_the_hubs_model_alone(make_mesh):
    mesh, models, _ = _star(make_mesh)
    seen = models_seen(mesh.view("a"))
    assert [(m.model, m.victim) for m in seen] == [("consensus", "b")]
    assert (seen[0].vector == models[1]).all()


def test_who_hears_nobody_holds_no_model(make_mesh):
    assert models_seen(make_mesh().view("a")) == []


def test_margins_are_the_log_odds_of_the_label(view, candidates):
    network, own = Network(view.public), candidates["b"]
    phi = margins(network, [view.public.initial], own)
    network.load(view.public.initial)
    with torch.no_grad():
        p = network.module(torch.from_numpy(own.pictures)).double().softmax(1).numpy()[range(6), own.labels]
    np.testing.assert_allclose(phi[0], np.log(p / (1 - p)), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_batch_of_models_is_trained_as_each_of_them_alone(view, digits, optimizer):
    x, y = digits
    public = replace(view.public, optimizer=optimizer, local_steps=2, learning_rate=0.01)
    network, known = Network(public), Candidates(x[:20], y[:20])
    places = np.random.default_rng(0).integers(20, size=(4, 3, 5))
    start = np.tile(public.initial, (3, 1))
    together = train(network, public, start, known, places)
    alone = np.concatenate([train(network, public, start[:1], known, places[:, [i]]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-5)


def test_training_is_that_of_a_peer(view, digits):
    x, y = digits
    network, known = Network(view.public), Candidates(x[:4], y[:4])
    network.load(view.public.initial)
    step = -view.public.learning_rate * network.gradient(x[:4], y[:4])
    trained = train(network, view.public, view.public.initial[None], known, np.arange(4)[None, None])
    np.testing.assert_allclose(trained[0] - view.public.initial, step, atol=1e-6)


def test_of_a_pair_of_references_exactly_one_knows_an_example():
    inside = halves(9, 4, np.random.default_rng(0))
    assert (inside[0] ^ inside[1]).all()
    assert (inside[2] ^ inside[3]).all()
    assert not (inside[0] == inside[2]).all()


def test_batches_are_epochs_in_fresh_orders():
    mine = np.array([3, 5, 7, 9, 11])
    drawn = batches(mine, 2, 5, np.random.default_rng(0))
    assert [len(b) for b in drawn] == [2] * 5
    assert all(set(b) <= set(mine) for b in drawn)
    assert len(set(np.concatenate(drawn[:2]))) == 4
    assert [len(b) for b in batches(mine, 9, 2, np.random.default_rng(0))] == [5, 5]


def _overfit(make_mesh, digits):
    """A peer that knows its ten pictures by heart, with labels that only who saw them can know."""
    x, y = digits[0], np.random.default_rng(0).integers(4, size=len(digits[1]))
    spare = {"pictures": x[400:500], "picture_labels": y[400:500]}
    mesh = make_mesh(model={"name": "mlp", "hidden": (64,)}, batch=10, local_steps=100, **spare)
    public = mesh.public
    places = np.tile(np.arange(10), (100, 1, 1))
    after = train(Network(public), public, public.initial[None], Candidates(x[:10], y[:10]), places)[0]
    mesh.update("b", ["a", "c"], 0, after - public.initial)
    return mesh.view("a"), {"b": Candidates(x[:20], y[:20])}, np.arange(20) < 10


@pytest.mark.parametrize("name", MEMBERSHIP)
@pytest.mark.parametrize("online", [False, True])
def test_who_was_learned_by_heart_is_told_from_strangers(make_mesh, digits, name, online):
    if online and name != "lira":
        pytest.skip("only lira has an online form")
    view, candidates, members = _overfit(make_mesh, digits)
    options = ({} if name == "update-gain" else {"models": ["local"]}) | ({"online": True} if online else {})
    (scores,) = INFERENCES.build(name, options).run(view, candidates, np.random.default_rng(0))
    assert auc(scores.values[members], scores.values[~members]) > 0.8


def test_a_tuned_rmia_is_a_function_of_its_references_alone(make_mesh, digits):
    view, candidates, members = _overfit(make_mesh, digits)
    attack = INFERENCES.build("rmia", {"models": ["local"], "tune": True})
    (scores,) = attack.run(view, candidates, np.random.default_rng(0))
    assert auc(scores.values[members], scores.values[~members]) > 0.8


def test_the_likelihood_ratio_is_that_of_the_gaussians():
    phi = np.array([[0.0], [2.0], [10.0], [14.0]])
    inside = np.array([[False], [False], [True], [True]])
    target = np.array([1.0])
    assert likelihood_ratio(target, phi[:2], inside[:2]) == pytest.approx(0.0)  # at the mean of those without
    # 1 is the mean without (deviation sqrt 2), and 11 below the mean with (deviation sqrt 8)
    wanted = -(11**2) / 16 + np.log(np.sqrt(2) / np.sqrt(8))
    assert likelihood_ratio(target, phi, inside) == pytest.approx(wanted)


def test_a_share_of_the_population_is_exceeded():
    z = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(exceeded(np.array([0.5, 2.0, 9.0]), z, 1.0), [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(exceeded(np.array([4.0]), z, 2.0), [0.5])
    np.testing.assert_array_equal(exceeded(np.array([4.0]), z[:0], 1.0), [0.5])


def test_a_ridge_classifier_tells_two_sides():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 100))
    targets = np.where(np.arange(40) < 20, 1.0, -1.0)
    rows[:, 0] += 5 * targets
    side = np.zeros(100)
    side[0] = 5
    assert ridge(rows, targets, side, 0.1) > 0.5
    assert ridge(rows, targets, -side, 0.1) < -0.5


@pytest.mark.parametrize(
    ("what", "labels", "has"),
    [
        ("class", [1, 2, 0], True),
        ("class", [1, 2, 2], False),
        ("majority", [1, 1, 0], True),
        ("majority", [1, 0], False),
    ],
)
def test_properties_of_labels(view, what, labels, has):
    pictures = np.zeros((len(labels), 1, 8, 8), np.float32)
    assert INFERENCES.build("property", {"what": what}).holds(pictures, np.array(labels), view.public) is has


def test_bright_is_above_the_public_mean(view):
    attack = INFERENCES.build("property", {"what": "bright"})
    assert attack.holds(np.ones((2, 1, 8, 8), np.float32), np.array([0, 0]), view.public)
    assert not attack.holds(np.zeros((2, 1, 8, 8), np.float32), np.array([0, 0]), view.public)


def test_a_class_in_a_batch_is_told_from_its_update(make_mesh, digits):
    x, y = digits
    public = {"batch": 4, "pictures": x[400:700], "picture_labels": y[400:700]}
    peers = tuple("abcdefgh")
    mesh = make_mesh(model={"name": "mlp", "hidden": (32,)}, peers=peers, **public)
    having, others = np.flatnonzero(y[:300] == 0), np.flatnonzero(y[:300] != 0)
    for i, peer in enumerate(peers[1:]):
        mine = others[4 * i : 4 * i + 4].copy()
        if i % 2:
            mine[0] = having[i]
        mesh.train(peer, mesh.near(peer), x[mine], y[mine])
    scores = INFERENCES.build("property", {"what": "class", "label": 0}).run(
        mesh.view("a"), {}, np.random.default_rng(0)
    )
    assert [bool(s.values[0] > s.threshold) for s in scores] == [bool(i % 2) for i in range(7)]
