"""The roster: how it grows, what it refuses, and what it remembers of those that had to go."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.peer.door import Door
from veilmesh.peer.lobby import Lobby, pages, unpack

RUN = bytes(16)
DOOR = Door(RUN, bytes(range(32)), None)


def card(number: int, serial: int = 1) -> Card:
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return Card.issue(Identity.from_seed(number.to_bytes(32, "big")), key, RUN, f"memory:{number}", serial)


def said(one: Card) -> bytes:
    return DOOR.announce(one).to_bytes()


def lobby(cap: int = 8, founders: tuple[Card, ...] = ()) -> tuple[Lobby, Mailroom]:
    identity, key = Identity.generate(), X25519PrivateKey.generate()
    own = Card.issue(identity, key.public_key().public_bytes_raw(), RUN, "memory:me", 1)
    mailroom = Mailroom(identity, key, RUN)
    return Lobby(mailroom, DOOR, own, founders, cap), mailroom


def refused(hall: Lobby, raw: bytes) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        hall.take(raw)
    return caught.value.refusal


def test_a_newcomer_is_let_in_once_and_the_mailroom_knows_it() -> None:
    hall, mailroom = lobby()
    new = card(1)
    assert hall.take(said(new)) == new
    assert hall.take(said(new)) is None
    assert mailroom.card(new.peer) == new
    assert hall.members == {new.peer}
    assert hall.known([new.peer]) == sorted([said(new), hall.hello()])


def test_its_own_announcement_is_no_news_to_anybody() -> None:
    hall, mailroom = lobby()
    assert hall.take(hall.hello()) is None
    assert hall.members == frozenset()


def test_a_newer_card_replaces_the_older_and_a_replayed_one_changes_nothing() -> None:
    hall, mailroom = lobby()
    old, new = card(1, 1), card(1, 2)
    assert hall.take(said(old)) == old
    assert hall.take(said(new)) == new
    assert hall.take(said(old)) is None
    assert mailroom.card(old.peer) == new
    assert hall.known([old.peer]) == sorted([said(new), hall.hello()])
    assert refused(hall, said(card(1, 2))) is Refusal.REPLAY  # two cards of one serial


def test_a_full_roster_turns_newcomers_away_and_renews_its_members() -> None:
    hall, _ = lobby(cap=2)
    hall.take(said(card(1)))
    hall.take(said(card(2)))
    assert refused(hall, said(card(3))) is Refusal.STRANGER
    assert hall.turned_away == 1
    assert hall.take(said(card(1, 2))) is not None
    assert len(hall.members) == 2


def test_the_forgotten_make_room_and_only_a_newer_card_brings_those_back_that_had_to_go() -> None:
    hall, mailroom = lobby(cap=2)
    first, second, third = card(1), card(2), card(3)
    for one in (first, second):
        hall.take(said(one))
        hall.forget(one.peer)
    assert hall.members == frozenset()
    assert hall.take(said(second)) == second  # forgotten, not gone: the same card will do
    assert hall.take(said(third)) == third
    assert hall.members == {second.peer, third.peer}
    assert mailroom.card(first.peer) is None
    assert hall.remembers(first.peer)
    assert hall.recall(first.peer) is None
    assert refused(hall, said(first)) is Refusal.REPLAY
    hall.forget(third.peer)
    assert hall.take(said(card(1, 2))) is not None


def test_what_is_remembered_is_bounded_however_many_come_and_go() -> None:
    hall, mailroom = lobby(cap=1)
    let_in = 0
    for number in range(40):
        new = card(number)
        try:
            hall.take(said(new))
            let_in += 1
        except RemoteError:
            pass
        hall.forget(new.peer)
    assert 10 < let_in < 20
    assert hall.turned_away == 40 - let_in
    assert sum(mailroom.card(card(n).peer) is not None for n in range(40)) == 1


def test_founders_are_members_and_can_be_handed_on() -> None:
    founder = card(1)
    hall, _ = lobby(founders=(founder,))
    other, _ = lobby()
    assert hall.members == {founder.peer}
    taken = [other.take(raw) for page in pages(hall.known(hall.members)) for raw in unpack(page)]
    assert founder in taken
    assert len(other.members) == 2


def test_the_digest_is_that_of_what_is_handed_on() -> None:
    a, _ = lobby()
    b, _ = lobby()
    newcomer = card(1)
    for raw in (a.hello(), said(newcomer)):
        b.take(raw)
    a.take(b.hello())
    assert a.digest(a.members) != b.digest(b.members)
    a.take(said(newcomer))
    assert a.digest(a.members) == b.digest(b.members)


@given(st.lists(st.binary(max_size=300), max_size=200))
def test_pages_hold_what_was_put_in(announcements: list[bytes]) -> None:
    assert [raw for page in pages(announcements) for raw in unpack(page)] == announcements


@given(st.binary(max_size=600))
def test_a_page_of_arbitrary_bytes_harms_nobody(page: bytes) -> None:
    hall, _ = HALL
    try:
        for raw in unpack(page):
            hall.take(raw)
    except RemoteError:
        pass
    assert hall.members == frozenset()


HALL = lobby()
