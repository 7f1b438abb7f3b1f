"""Who is let in: tickets, lists, and what an announcement may look like."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto import Card, Identity
from veilmesh.peer.door import Announcement, Door

RUN, SECRET = bytes(range(16)), bytes(range(32))


def card(number: int = 1, serial: int = 1, run: bytes = RUN) -> Card:
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return Card.issue(Identity.from_seed(bytes([number]) * 32), key, run, f"memory:{number}", serial)


def why(door: Door, announcement: Announcement) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        door.check(announcement)
    return caught.value.refusal


@given(st.binary(max_size=900))
def test_arbitrary_bytes_are_refused_as_somebody_elses_fault(raw: bytes) -> None:
    for doors in (Door(RUN, SECRET, None), Door(RUN, None, frozenset({card().peer}))):
        for candidate in (raw, b"VA\x01" + raw, b"VA\x01" + bytes(32) + raw):
            with pytest.raises(RemoteError):
                doors.check(Announcement.from_bytes(candidate))


@given(st.integers(0, 900), st.binary(min_size=1, max_size=8))
def test_a_bent_announcement_is_refused(at: int, noise: bytes) -> None:
    door, good = Door(RUN, SECRET, None), BENT.to_bytes()
    at %= len(good)
    bent = good[:at] + noise + good[at + len(noise) :]
    if bent != good:
        with pytest.raises(RemoteError):
            door.check(Announcement.from_bytes(bent))


BENT = Door(RUN, SECRET, None).announce(card())


def test_a_ticket_opens_the_door_of_its_own_mesh_and_no_other() -> None:
    mine = card()
    announcement = Announcement.from_bytes(Door(RUN, SECRET, None).announce(mine).to_bytes())
    assert Door(RUN, SECRET, None).check(announcement) == mine
    assert why(Door(RUN, SECRET[::-1], None), announcement) is Refusal.STRANGER
    assert why(Door(bytes(16), SECRET, None), announcement) is Refusal.STRANGER
    assert why(Door(RUN, SECRET, None), Announcement(bytes(32), mine.to_bytes())) is Refusal.STRANGER


def test_a_list_lets_in_those_on_it_and_needs_no_ticket() -> None:
    known, other = card(1), card(2)
    door = Door(RUN, None, frozenset({known.peer}))
    assert door.announce(known).ticket == bytes(32)
    assert door.check(door.announce(known)) == known
    assert why(door, door.announce(other)) is Refusal.STRANGER


def test_where_both_are_asked_for_both_must_hold() -> None:
    known, other = card(1), card(2)
    door = Door(RUN, SECRET, frozenset({known.peer}))
    assert door.check(door.announce(known)) == known
    assert why(door, door.announce(other)) is Refusal.STRANGER
    assert why(door, Announcement(bytes(32), known.to_bytes())) is Refusal.STRANGER


def test_what_a_member_let_in_must_still_be_its_own_word_and_of_this_run() -> None:
    door, mine, other = Door(RUN, SECRET, None), card(1), card(2)
    forged = Card(mine.peer, other.sealing, RUN, "memory:elsewhere", 9, mine.signature)
    assert why(door, door.announce(forged)) is Refusal.BAD_SIGNATURE
    assert why(door, door.announce(card(run=bytes(16)))) is Refusal.WRONG_RUN


def test_a_door_for_nobody_and_a_secret_that_can_be_guessed_are_our_own_mistakes() -> None:
    with pytest.raises(LocalError):
        Door(RUN, None, None)
    with pytest.raises(LocalError, match="16 bytes"):
        Door(RUN, b"hunter2", None)
