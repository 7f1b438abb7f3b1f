"""What members of a ring see of each other's models, where something of what they were told is missing or nonsense."""

import numpy as np
import pytest

from veilmesh.attacks import observe_updates
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.codecs.quantised import EightBit
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.butterfly import Butterfly

D = 41
PEERS = tuple("abcde")
CUT = Butterfly(PEERS, D, 0, 1)


@pytest.fixture
def mesh(make_mesh):
    initial = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    weights = {v: dict.fromkeys(PEERS, 1 / 5) for v in PEERS}
    return make_mesh(initial=initial, peers=PEERS, weights=weights, strategy="ring-all-reduce")


def _blob(x, codec=None):
    return table.encode(codec or Dense(), np.asarray(x, np.float32), np.random.default_rng(0))


def _updates(seed):
    rng = np.random.default_rng(seed)
    return {v: (0.1 * rng.standard_normal(D)).astype(np.float32) for v in PEERS}


def _round(mesh, round_, x, updates, lost=()):
    """One round of the protocol's formulas, without the averages of `lost` parts; what everybody goes on from."""
    after = np.empty(D, np.float32)
    for part in CUT.parts:
        span = CUT.span(part)
        walk = [*PEERS[part:], *PEERS[:part]]
        models = [(x + updates[v])[span].astype(np.float64) for v in walk]
        means = [np.mean(models[: k + 1], axis=0) for k in range(len(walk))]
        for k, (v, to) in enumerate(zip(walk, walk[1:], strict=False)):
            mesh.say(v, to, messages.Passed(round_, part, k + 1, _blob(means[k])))
        after[span] = means[-1]
        for v, to in zip((walk[-1], *walk), walk[:-1], strict=False):
            if part not in lost:
                mesh.say(v, to, messages.Averaged(round_, part, len(walk), _blob(means[-1]), b""))
    return after


def test_by_the_formulas_a_member_reads_one_part_of_either_neighbour(mesh):
    x = mesh.public.initial
    for t in range(2):
        updates, before = _updates(t), x
        x = _round(mesh, t, x, updates)
        seen = {o.victim: o for o in observe_updates(mesh.view("c")) if o.round == t}
        assert sorted(seen) == ["b", "d"]
        for victim, part in {"b": 1, "d": 4}.items():
            o = seen[victim]
            assert o.exact
            assert o.coverage == 1
            np.testing.assert_array_equal(o.start, before)
            assert np.flatnonzero(o.said).tolist() == list(range(D))[CUT.span(part)]
            np.testing.assert_allclose(o.update[o.said], updates[victim][o.said], atol=1e-6)


@pytest.mark.parametrize(("place", "whole"), [("ac", ["b"]), ("bde", ["a", "c"]), ("ab", []), ("acd", ["b", "e"])])
def test_whoever_stands_between_two_that_collude_is_read_whole(mesh, place, whole):
    updates = _updates(0)
    _round(mesh, 0, mesh.public.initial, updates)
    found = {o.victim: o for o in observe_updates(mesh.view(*place)) if o.said.all()}
    assert sorted(found) == whole
    for victim, o in found.items():
        np.testing.assert_allclose(o.update, updates[victim], atol=1e-6)


def test_a_start_is_not_known_after_a_round_that_was_not_whole(mesh):
    x = _round(mesh, 0, mesh.public.initial, _updates(0), lost=(3,))
    x = _round(mesh, 1, x, _updates(1))
    _round(mesh, 2, x, _updates(2))
    seen = observe_updates(mesh.view("a", "c"))
    assert {o.round: o.exact for o in seen} == {0: True, 1: False, 2: True}
    assert {o.round: o.coverage for o in seen} == {0: 1, 1: 0, 2: 1}


def test_where_a_part_was_passed_to_two_it_is_not_known_whose_the_rest_is(mesh):
    _round(mesh, 0, mesh.public.initial, _updates(0))
    before = {o.victim: o.said.sum() for o in observe_updates(mesh.view("c"))}
    hop = next(m for r in mesh.records if isinstance(m := messages.decode(r.body), messages.Passed)
               and (m.part, m.count, r.sender) == (4, 4, "c"))  # fmt: skip
    mesh.say("c", "e", hop)  # after it was said to d, which was the last, and may have been lost
    after = {o.victim: o.said.sum() for o in observe_updates(mesh.view("c"))}
    assert sorted(before) == ["b", "d"]
    assert sorted(after) == ["b"]


def test_what_does_not_decode_is_passed_over(mesh):
    mesh.say("b", "c", messages.Passed(0, 1, 1, b"\xff\x00"))
    mesh.say("b", "c", messages.Passed(0, 99, 1, _blob(np.ones(8))))
    mesh.say("b", "c", messages.Passed(0, 1, 1, _blob(np.ones(3))))
    mesh.say("b", "c", messages.Passed(0, 1, 1, _blob(np.ones(CUT.length(1)), EightBit())))
    mesh.say("b", "c", messages.Averaged(0, 1, 5, b"", b""))
    mesh.say("b", "c", messages.Update(0, 1, _blob(np.ones(D))))
    assert observe_updates(mesh.view("c")) == []
