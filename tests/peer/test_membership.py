"""Who is believed to be alive, held against the plain rule: heard lately, and not gone for good."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.peer.machine import PeerId
from veilmesh.peer.membership import Membership

PATIENCE, GRACE = 10.0, 1.0
NAMES = [PeerId(n) for n in "abc"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["heard", "broken", "left", "tick"]),
        st.sampled_from([*NAMES, PeerId("stranger")]),
        st.floats(0, 8, allow_nan=False),
    ),
    max_size=40,
)


class Rule:
    """The same in the words of the docstring, without a thought for speed."""

    def __init__(self) -> None:
        self.until = dict.fromkeys(NAMES, -math.inf)
        self.gone: set[PeerId] = set()

    def present(self, now: float) -> frozenset[PeerId]:
        return frozenset(p for p in NAMES if p not in self.gone and self.until[p] > now)


@settings(deadline=None)
@given(STEPS)
def test_any_sequence_follows_the_rule(steps: list[tuple[str, PeerId, float]]) -> None:
    members, rule, now = Membership(NAMES, PATIENCE, GRACE), Rule(), 0.0
    for what, peer, passed in steps:
        now += passed
        lost = members.tick(now)  # the node ticks often; here, before everything
        assert set(lost).isdisjoint(rule.present(now))
        assert members.present == rule.present(now)
        if what == "heard":
            back = members.heard(peer, now)
            assert back == (peer in NAMES and peer not in rule.gone and peer not in rule.present(now))
            if peer in NAMES and peer not in rule.gone:
                rule.until[peer] = now + PATIENCE
        elif what == "broken":
            members.broken(peer, now)
            if peer in rule.present(now):
                rule.until[peer] = min(rule.until[peer], now + GRACE)
        elif what == "left":
            assert members.left(peer) == (peer in rule.present(now))
            rule.gone.add(peer)
        assert members.present == rule.present(now)
        assert members.present <= members.listening | frozenset()
        assert set(members.unheard).isdisjoint(members.present)


@settings(deadline=None)
@given(STEPS, st.sampled_from(NAMES))
def test_goodbye_is_final(steps: list[tuple[str, PeerId, float]], gone: PeerId) -> None:
    members, now = Membership(NAMES, PATIENCE, GRACE), 0.0
    members.heard(gone, now)
    assert members.left(gone)
    for what, peer, passed in steps:
        now += passed
        if what == "heard":
            assert not (members.heard(peer, now) and peer == gone)
        elif what == "tick":
            assert gone not in members.tick(now)
        assert gone not in members.present
        assert gone not in members.unheard


def test_nobody_is_present_before_it_was_heard() -> None:
    members = Membership(NAMES, PATIENCE, GRACE)
    assert members.present == frozenset()
    assert sorted(members.unheard) == NAMES
    assert members.tick(1e9) == []


def test_silence_is_noticed_once() -> None:
    members = Membership(NAMES, PATIENCE, GRACE)
    members.heard(NAMES[0], 0.0)
    assert members.tick(PATIENCE - 0.1) == []
    assert members.tick(PATIENCE) == [NAMES[0]]
    assert members.tick(PATIENCE + 1) == []
    assert NAMES[0] in members.unheard


def test_a_broken_connection_shortens_the_patience_and_a_word_forgives_it() -> None:
    members = Membership(NAMES, PATIENCE, GRACE)
    members.heard(NAMES[0], 0.0)
    members.broken(NAMES[0], 0.0)
    assert members.tick(GRACE / 2) == []
    assert not members.heard(NAMES[0], GRACE / 2)  # a mere reconnect changes nothing
    assert members.tick(GRACE * 2) == []
    members.broken(NAMES[0], GRACE * 2)
    assert members.tick(GRACE * 3) == [NAMES[0]]


def test_a_broken_connection_never_gives_more_time() -> None:
    members = Membership(NAMES, patience=1.0, grace=5.0)
    members.heard(NAMES[0], 0.0)
    members.broken(NAMES[0], 0.5)
    assert members.tick(1.0) == [NAMES[0]]


def test_one_that_said_goodbye_still_listens_until_it_is_silent() -> None:
    members = Membership(NAMES, PATIENCE, GRACE)
    members.heard(NAMES[0], 0.0)
    members.left(NAMES[0])
    assert members.listening == {NAMES[0]}
    members.tick(PATIENCE)
    assert members.listening == frozenset()


def test_one_that_begins_anew_is_gone_until_it_is_heard() -> None:
    members = Membership(NAMES[:1], PATIENCE, GRACE)
    members.heard(NAMES[0], 0.0)
    assert members.renew(NAMES[0], 1.0)  # its death was not noticed
    assert members.present == frozenset()
    assert not members.renew(NAMES[0], 1.0)
    assert members.heard(NAMES[0], 2.0)
    members.left(NAMES[0])
    assert not members.renew(NAMES[0], 3.0)
    assert members.heard(NAMES[0], 3.0)  # its goodbye is undone
    assert members.present == {NAMES[0]}


def test_long_silence_counts_from_the_last_word_or_from_the_coming() -> None:
    members = Membership([], PATIENCE, GRACE)
    quiet, lost, here = NAMES
    for peer in NAMES:
        members.add(peer, 0.0)
    members.heard(lost, 5.0)
    members.heard(here, 50.0)
    members.tick(50.0)
    assert members.silent_since(4.0) == [quiet]
    assert members.silent_since(100.0) == [quiet, lost]
    members.drop(quiet)
    assert quiet not in members
    assert not members.heard(quiet, 51.0)
    assert members.everybody == {lost, here}


def test_one_that_comes_back_after_it_was_dropped_has_no_past() -> None:
    members = Membership(NAMES[:1], PATIENCE, GRACE)
    members.heard(NAMES[0], 0.0)
    members.left(NAMES[0])
    members.drop(NAMES[0])
    assert not members.left(NAMES[0])
    members.add(NAMES[0], 1.0)
    assert members.heard(NAMES[0], 1.0)
