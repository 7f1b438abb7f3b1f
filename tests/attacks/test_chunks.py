"""What members of an all-reduce see of each other's models, against the protocol's formulas."""

import numpy as np
import pytest

from veilmesh.attacks import observe_updates
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.topk import TopK
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.butterfly import Butterfly

D = 41
PEERS = tuple("abcde")


@pytest.fixture
def mesh(make_mesh):
    initial = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    weights = {v: dict.fromkeys(PEERS, 1 / 5) for v in PEERS}
    return make_mesh(initial=initial, peers=PEERS, weights=weights, strategy="group-all-reduce")


def _blob(x, codec=None):
    return table.encode(codec or Dense(), x, np.random.default_rng(0))


def _reduce(mesh, round_, group, x, updates, codec=None):
    """One round of one group; what its members go on from."""
    butterfly = Butterfly(tuple(group), D, 0, 1)
    after = {v: x[v].copy() for v in group}
    for part, reducer in enumerate(group):
        span = butterfly.span(part)
        said = {v: (updates[v] if codec else x[v] + updates[v])[span] for v in group}
        for v in group:
            if v != reducer:
                mesh.say(v, reducer, messages.Part(round_, part, _blob(said[v], codec), b""))
        mean = np.mean([said[v] for v in group], axis=0, dtype=np.float64).astype(np.float32)
        for v in group:
            after[v][span] = mean
            if v != reducer:
                mesh.say(reducer, v, messages.Averaged(round_, part, len(group), _blob(mean), b""))
    return after


def _updates(seed):
    rng = np.random.default_rng(seed)
    return {v: (0.1 * rng.standard_normal(D)).astype(np.float32) for v in PEERS}


def test_a_member_sees_its_part_of_everybodys_update_and_says_which(mesh):
    x = dict.fromkeys(PEERS, mesh.public.initial)
    for t in range(2):
        updates = _updates(t)
        before, x = x, _reduce(mesh, t, PEERS, x, updates)
        seen = [o for o in observe_updates(mesh.view("c")) if o.round == t]
        assert [o.victim for o in seen] == ["a", "b", "d", "e"]
        span = Butterfly(PEERS, D, 0, 1).span(2)
        for o in seen:
            assert o.exact
            assert o.coverage == 1
            assert o.said is not None
            assert np.flatnonzero(o.said).tolist() == list(range(span.start, span.stop))
            np.testing.assert_array_equal(o.start, before[o.victim])
            np.testing.assert_allclose(o.update[span], updates[o.victim][span], atol=1e-6)
            assert not o.update[~o.said].any()


def test_two_who_collude_put_their_parts_together(mesh):
    _reduce(mesh, 0, PEERS, dict.fromkeys(PEERS, mesh.public.initial), _updates(0))
    alone, pooled = (observe_updates(mesh.view(*who)) for who in (("b",), ("b", "d")))
    assert {o.victim for o in pooled} == {"a", "c", "e"}
    assert all(o.said.sum() > alone[0].said.sum() for o in pooled)


def test_a_start_is_known_only_of_those_whose_last_group_was_seen(mesh):
    x, updates = dict.fromkeys(PEERS, mesh.public.initial), _updates(0)
    x |= _reduce(mesh, 0, "ab", x, updates)
    x |= _reduce(mesh, 0, "cde", x, updates)
    _reduce(mesh, 1, "abc", x, _updates(1))
    later = {o.victim: o for o in observe_updates(mesh.view("a")) if o.round == 1}
    assert later["b"].exact
    np.testing.assert_array_equal(later["b"].start, x["b"])
    assert not later["c"].exact
    assert later["c"].coverage == 0


def test_of_a_sparse_part_only_what_was_said_counts(mesh):
    updates = _updates(0)
    _reduce(mesh, 0, PEERS, dict.fromkeys(PEERS, mesh.public.initial), updates, TopK(0.25))
    for o in observe_updates(mesh.view("a")):
        assert o.said is not None
        assert 0 < o.said.sum() < D / 5
        np.testing.assert_allclose(o.update[o.said], updates[o.victim][o.said], atol=1e-6)


def test_parts_that_do_not_decode_are_passed_over(mesh):
    _reduce(mesh, 0, PEERS, dict.fromkeys(PEERS, mesh.public.initial), _updates(0))
    kept = [r for r in mesh.records if not isinstance(messages.decode(r.body), messages.Part)]
    mesh.records = kept
    mesh.say("b", "a", messages.Part(0, 0, b"\xff\x00", b""))
    mesh.say("c", "a", messages.Part(0, 99, _blob(np.ones(3, np.float32)), b""))
    assert observe_updates(mesh.view("a")) == []
