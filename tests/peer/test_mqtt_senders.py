"""When what arrived is acknowledged at once, and when it may wait for more."""

import pytest

from veilmesh.core import RemoteError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.mqtt_chunks import SESSION_BYTES, Chunk
from veilmesh.peer.transports.mqtt_senders import PRESSING_BYTES, Senders

WHO = Identity.from_seed(bytes([1]) * 32).peer
HERE, THERE = bytes(SESSION_BYTES), bytes([1]) * SESSION_BYTES
PIECE = PRESSING_BYTES // 2


def chunk(index: int, count: int, frame: int = 0, size: int = PIECE) -> Chunk:
    return Chunk(THERE, HERE, 0, index, frame, size * count, index, count, bytes(size))


@pytest.fixture
def senders() -> Senders:
    made = Senders(16 * PIECE, 64 * PIECE)
    made.known = frozenset([WHO])
    return made


def test_short_frames_wait_for_each_other(senders: Senders) -> None:
    for frame in range(10):
        assert senders.take(WHO, chunk(0, 1, frame, 100)) == bytes(100)
        assert not senders.pressing
    [(who, session, pieces)] = senders.arrived()
    assert (who, session, [piece[0] for piece in pieces]) == (WHO, THERE, list(range(10)))


def test_much_of_one_sender_presses_and_once_acknowledged_no_more(senders: Senders) -> None:
    senders.take(WHO, chunk(0, 5))
    assert not senders.pressing
    senders.take(WHO, chunk(1, 5))
    assert senders.pressing
    assert len(senders.arrived()[0][2]) == 2
    assert not senders.pressing
    assert senders.arrived() == []
    senders.take(WHO, chunk(2, 5))
    assert not senders.pressing


def test_the_last_piece_of_a_frame_presses(senders: Senders) -> None:
    senders.take(WHO, chunk(0, 2, size=1024))
    assert not senders.pressing
    assert senders.take(WHO, chunk(1, 2, size=1024)) == bytes(2048)
    assert senders.pressing


def test_a_piece_that_was_refused_is_not_acknowledged(senders: Senders) -> None:
    with pytest.raises(RemoteError):
        senders.take(WHO, chunk(0, 17))
    assert senders.arrived() == []
    assert not senders.pressing


def test_a_piece_that_comes_again_is_acknowledged_again(senders: Senders) -> None:
    for _ in range(2):
        senders.take(WHO, chunk(0, 2, size=1024))
        assert [piece[:2] for piece in senders.arrived()[0][2]] == [(0, 0)]


def test_once_one_comes_again_all_recent_ones_are_acknowledged_again(senders: Senders) -> None:
    """The message that acknowledged them together may have been lost."""
    for index in range(5):
        senders.take(WHO, chunk(index, 6, size=1024))
    assert len(senders.arrived()[0][2]) == 5
    senders.take(WHO, chunk(0, 6, size=1024))
    assert {piece[1] for piece in senders.arrived()[0][2]} == {0, 1, 2, 3, 4}
    senders.take(WHO, chunk(5, 6, size=1024))
    assert [piece[1] for piece in senders.arrived()[0][2]] == [5]
