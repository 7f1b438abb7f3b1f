"""An observer who knows that there is cover: what it suspects follows from times, and what a broker is told is kept."""

import numpy as np
import pytest

from veilmesh.attacks import Public, Vantage, View, observe
from veilmesh.attacks.stored import from_bytes, to_bytes
from veilmesh.attacks.traffic import learn
from veilmesh.attacks.traffic_cover import lateness, suspect
from veilmesh.attacks.traffic_presence import oversee
from veilmesh.attacks.view import IN_PASSING, Sighting
from veilmesh.peer.transcript import Record

PEERS = "abcd"
EVERYBODY = frozenset(frozenset((a, b)) for a in PEERS for b in PEERS if a != b)


@pytest.fixture
def public(make_mesh) -> Public:
    return make_mesh().public


def slots(public: Public, slips: dict[str, dict[int, float]] | None = None, count: int = 40) -> View:
    """Everybody says a frame to everybody, ten a second; some peers' frames are late, by the number of the slot."""
    records = [
        Record(0.1 * k + (slips or {}).get(v, {}).get(k, 0.0), IN_PASSING, v, w, 500, None, None)
        for k in range(count)
        for v in PEERS
        for w in PEERS
        if v != w
    ]
    return observe(Vantage(frozenset(), carries=EVERYBODY), records, public)


def test_exact_slots_give_no_reason_to_suspect_anything(public):
    found = suspect(slots(public))
    assert all(not late.any() for by in found.full.values() for late in by.values())
    assert all(len({by[p] for p in PEERS}) == 1 for by in found.slow.values())
    pairs = [(v, w) for v in PEERS for w in PEERS if v != w]
    assert all(len({by[pair] for pair in pairs}) == 1 for by in found.near.values())
    assert found.round is None


def test_a_peer_whose_slots_slip_is_suspected_and_so_is_the_pace_at_which_they_do(public):
    busy = {k: 0.02 for k in range(2, 40, 5)}
    found = suspect(slots(public, {"c": busy}))
    assert max(found.slow["late"], key=lambda peer: found.slow["late"][peer]) == "c"
    assert found.round == pytest.approx(0.5)
    late = found.full["late"]["c", "a"]
    assert set(np.flatnonzero(late > 0.01)) == set(busy)


def test_those_that_slip_together_look_like_neighbours(public):
    busy = {k: 0.02 for k in (3, 9, 21, 30)}
    near = suspect(slots(public, {"a": busy, "b": busy})).near["together"]
    assert near["a", "b"] == max(near.values()) > near["a", "c"]


def test_lateness_is_measured_from_the_grid_also_where_slots_are_left_out():
    times = np.array([0.0, 1.0, 2.0, 4.0, 5.25, 6.0, 7.0])
    assert lateness(times) == pytest.approx([0, 0, 0, 0, 0.25, 0, 0])
    assert lateness(np.array([0.0, 5.0])).tolist() == [0, 0]


def test_frames_in_passing_are_seen_by_who_carries_them_and_count_once(public):
    records = [
        Record(0.0, IN_PASSING, "a", "b", 500, b"frame", None),
        Record(0.1, "b", "a", "b", 500, b"frame", b"body"),
        Record(0.2, IN_PASSING, "c", "d", 500, b"frame", None),
    ]
    view = observe(Vantage(frozenset("b"), carries=frozenset({frozenset("ab")})), records, public)
    assert [(r.at, r.body) for r in view.records] == [(IN_PASSING, None), ("b", b"body")]
    assert learn(view).frames == 1
    wire = observe(Vantage(frozenset(), taps_wire=True), records, public)
    assert all(r.body is None for r in wire.records)


SEEN = [
    Sighting(0.0, "here", "a", size=92, number=1),
    Sighting(0.5, "here", "b", size=92, number=1),
    Sighting(1.0, "chunk", "a", "b", 1092, 0),
    Sighting(1.1, "ack", "b", "a", 56),
    Sighting(2.0, "lost", "b", size=92, number=1),
    Sighting(3.0, "here", "b", size=92, number=2),
    Sighting(9.0, "closed", "a", size=92, number=1),
]


def test_a_broker_knows_who_came_failed_and_left(public):
    view = observe(Vantage(frozenset(), carries=EVERYBODY, broker=True), [], public, sightings=SEEN)
    told = oversee(view)
    assert [(one.peer, one.joined, one.failed, one.left) for one in told.attendance] == [
        ("a", 0.0, (), 9.0),
        ("b", 0.5, (2.0,), None),
    ]
    assert told.counts == {"here": 3, "chunk": 1, "ack": 1, "lost": 1, "closed": 1}
    assert told.sizes["chunk"] == 1092


def test_only_a_broker_is_told_who_is_there(public):
    for vantage in (Vantage(frozenset("a")), Vantage(frozenset(), carries=EVERYBODY), Vantage(frozenset(), True)):
        assert observe(vantage, [], public, sightings=SEEN).sightings == ()


def test_a_brokers_view_comes_back_from_a_file(public):
    record = Record(0.0, IN_PASSING, "a", "b", 500, b"frame", None)
    view = observe(Vantage(frozenset(), carries=EVERYBODY, broker=True), [record], public, sightings=SEEN)
    back = from_bytes(to_bytes(view))
    assert (back.vantage, back.records, back.sightings) == (view.vantage, view.records, view.sightings)
