"""What neighbours and servers learn of single updates, against the protocol's formulas."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from veilmesh.attacks import observe_updates
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.peer.transcript import Record
from veilmesh.swarm import messages

D = 40
RING = {v: {v: 0.4, left: 0.3, right: 0.3} for v, left, right in zip("abcde", "eabcd", "bcdea", strict=True)}


@pytest.fixture
def initial():
    return np.random.default_rng(0).standard_normal(D).astype(np.float32)


def _updates(peers, rounds, seed=1):
    rng = np.random.default_rng(seed)
    return {p: (0.1 * rng.standard_normal((rounds, D))).astype(np.float32) for p in peers}


def test_on_a_complete_graph_every_round_of_everybody_is_exact(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    truth = mesh.gossip(_updates("abc", 4))
    seen = observe_updates(mesh.view("a"))
    assert [(o.victim, o.round) for o in seen] == [(v, t) for v in "bc" for t in range(4)]
    for o in seen:
        assert o.exact
        assert o.coverage == pytest.approx(1)
        np.testing.assert_allclose(o.start, truth["start"][o.victim, o.round], atol=1e-6)
        np.testing.assert_allclose(o.update, truth["update"][o.victim, o.round], atol=1e-6)


def test_round_zero_is_the_message_to_the_bit(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    truth = mesh.gossip(_updates("abc", 1))
    for o in observe_updates(mesh.view("a")):
        assert o.start is mesh.public.initial
        assert (o.update == truth["said"][o.victim, 0].values).all()


def test_on_a_ring_a_neighbour_hears_a_part(make_mesh, initial):
    mesh = make_mesh(initial=initial, peers=tuple("abcde"), weights=RING)
    truth = mesh.gossip(_updates("abcde", 3))
    seen = {(o.victim, o.round): o for o in observe_updates(mesh.view("a"))}
    assert {v for v, _ in seen} == {"b", "e"}
    assert seen["b", 0].exact
    later = seen["b", 1]
    assert not later.exact
    assert later.coverage == pytest.approx(0.7)
    x = {p: truth["start"][p, 0] + truth["update"][p, 0] for p in "abe"}
    centre = (x["a"] + x["b"] + x["e"]) / 3
    np.testing.assert_allclose(later.start, 0.4 * x["b"] + 0.3 * x["a"] + 0.3 * centre, atol=1e-5)
    closer = np.linalg.norm(later.update - truth["update"]["b", 1])
    assert closer < np.linalg.norm(truth["update"]["b", 1])


def test_two_who_collude_hear_more_than_one(make_mesh, initial):
    mesh = make_mesh(initial=initial, peers=tuple("abcde"), weights=RING)
    truth = mesh.gossip(_updates("abcde", 3))
    seen = {(o.victim, o.round): o for o in observe_updates(mesh.view("a", "c"))}
    assert seen["b", 2].exact
    np.testing.assert_allclose(seen["b", 2].update, truth["update"]["b", 2], atol=1e-6)


def test_without_its_own_sends_the_adversary_lacks_its_own_copy(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    mesh.gossip(_updates("abc", 2))
    mesh.records = [r for r in mesh.records if r.at != r.sender]
    later = [o for o in observe_updates(mesh.view("a")) if o.round == 1]
    assert [o.coverage for o in later] == pytest.approx([2 / 3, 2 / 3])
    assert not any(o.exact for o in later)


def test_sparse_messages_say_which_coordinates_they_tell(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    truth = mesh.gossip(_updates("abc", 3), TopK(0.25))
    seen = {(o.victim, o.round): o for o in observe_updates(mesh.view("a"))}
    assert seen["b", 0].exact
    assert not seen["b", 1].exact
    for (victim, t), o in seen.items():
        assert o.said is not None
        assert o.said.sum() == 10
        assert (o.said == truth["said"][victim, t].said).all()
    copies = {p: mesh.public.initial + truth["said"][p, 0].values for p in "abc"}
    mixed = sum(copies.values()) / 3
    np.testing.assert_allclose(seen["b", 1].update, copies["b"] + truth["said"]["b", 1].values - mixed, atol=1e-5)


def test_after_a_lost_update_a_peer_is_lost_until_its_copy_comes(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    truth = mesh.gossip(_updates("abc", 5))
    mesh.records = [r for r in mesh.records if not (r.sender == "b" and messages.decode(r.body).round == 1)]
    assert [o.round for o in observe_updates(mesh.view("a")) if o.victim == "b"] == [0]
    copy = truth["start"]["b", 2] + truth["update"]["b", 2]
    mesh.say("b", "a", messages.Copy(2, table.encode(Dense(), copy, np.random.default_rng(0))))
    mended = {o.round: o for o in observe_updates(mesh.view("a")) if o.victim == "b"}
    assert list(mended) == [0, 3, 4]
    assert mended[3].exact
    np.testing.assert_allclose(mended[4].update, truth["update"]["b", 4], atol=1e-5)


def _star(make_mesh, initial, codec=None, models=True):
    mesh = make_mesh(initial=initial, strategy="fedsgd", weights={}, server="c")
    updates = _updates("ab", 3)
    theta = initial
    for t in range(3):
        blob = table.encode(Dense(), theta, np.random.default_rng(0))
        for client in "ab":
            if models:
                mesh.say("c", client, messages.Model(t, blob))
            mesh.update(client, ["c"], t, updates[client][t], codec)
        theta = theta + (updates["a"][t] + updates["b"][t]) / 2
    return mesh, updates


def test_the_hub_sees_every_update(make_mesh, initial):
    mesh, updates = _star(make_mesh, initial)
    seen = observe_updates(mesh.view("c"))
    assert [(o.victim, o.round) for o in seen] == [(v, t) for v in "ab" for t in range(3)]
    theta = initial
    for t in range(3):
        for o in (o for o in seen if o.round == t):
            assert o.exact
            assert o.coverage == 1
            assert (o.update == updates[o.victim][t]).all()
            assert (o.start == theta).all()
        theta = theta + (updates["a"][t] + updates["b"][t]) / 2


def test_error_feedback_blurs_all_rounds_but_the_first(make_mesh, initial):
    mesh, _ = _star(make_mesh, initial, TopK(0.25))
    assert [o.exact for o in observe_updates(mesh.view("c")) if o.victim == "a"] == [True, False, False]


def test_a_hub_that_kept_no_models_knows_only_the_first_start(make_mesh, initial):
    mesh, _ = _star(make_mesh, initial, models=False)
    seen = [o for o in observe_updates(mesh.view("c")) if o.victim == "a"]
    assert [(o.exact, o.coverage) for o in seen] == [(True, 1.0), (False, 0.0), (False, 0.0)]


def test_a_client_of_the_star_sees_nobody(make_mesh, initial):
    mesh, _ = _star(make_mesh, initial)
    assert observe_updates(mesh.view("a")) == []


def test_who_attacks_a_trained_network_waits_for_it(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    truth = mesh.gossip(_updates("abc", 6))
    seen = observe_updates(mesh.view("a"), targets=2, first=3)
    assert [(o.victim, o.round) for o in seen] == [(v, t) for v in "bc" for t in (3, 4)]
    for o in seen:  # what went before is followed all the same
        assert o.exact
        np.testing.assert_allclose(o.update, truth["update"][o.victim, o.round], atol=1e-6)
    assert observe_updates(mesh.view("a"), first=6) == []


def test_targets_are_the_earliest_exact_rounds(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    mesh.gossip(_updates("abc", 4))
    assert [o.round for o in observe_updates(mesh.view("a"), 2)] == [0, 1, 0, 1]
    ring = make_mesh(initial=initial, peers=tuple("abcde"), weights=RING)
    ring.gossip(_updates("abcde", 4))
    assert [o.round for o in observe_updates(ring.view("a"), 3)] == [0, 1, 2, 0, 1, 2]


def test_an_update_of_nothing_is_no_target(make_mesh, initial):
    mesh = make_mesh(initial=initial)
    mesh.update("b", ["a"], 0, np.zeros(D, np.float32))
    assert observe_updates(mesh.view("a")) == []


@example(bodies=[b"\x91\xa1\x80"])  # a tag that is not UTF-8
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bodies=st.lists(st.binary(max_size=60) | st.builds(
    lambda r, b: messages.encode(messages.Update(r, 1, b)), st.integers(0, 2**31 - 1), st.binary(max_size=60))
))  # fmt: skip
def test_bodies_that_are_no_messages_are_skipped(make_mesh, bodies):
    mesh = make_mesh(initial=np.zeros(D, np.float32))
    mesh.records = [Record(0.0, "a", "b", "a", 1, None, body) for body in bodies]
    found = observe_updates(mesh.view("a"))
    assert all(o.victim == "b" and o.update.shape == (D,) for o in found)


def test_choco_is_read_as_gossip_is(make_mesh, initial):
    mesh = make_mesh(initial=initial, strategy="choco")
    truth = mesh.gossip(_updates("abc", 3), TopK(0.25))
    seen = {(o.victim, o.round): o for o in observe_updates(mesh.view("a"))}
    assert set(seen) == {(v, t) for v in "bc" for t in range(3)}
    assert (seen["b", 0].update == truth["said"]["b", 0].values).all()


@pytest.mark.parametrize("strategy", ["async-gossip", "one that is not known"])
def test_of_a_mesh_without_a_reading_nothing_is_read_rather_than_something_wrong(make_mesh, initial, strategy):
    mesh = make_mesh(initial=initial, strategy=strategy)
    mesh.gossip(_updates("abc", 3))
    assert observe_updates(mesh.view("a")) == []
