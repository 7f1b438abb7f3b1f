"""Chunks and acknowledgements: whatever comes is read or refused, and every frame comes out whole, once."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.identity import Identity
from veilmesh.peer.transports.mqtt_chunks import ACK_ENTRIES, AHEAD, Acks, Chunk, Reassembly, read
from veilmesh.peer.transports.mqtt_senders import STRANGERS, Senders
from veilmesh.peer.transports.mqtt_window import Window

ME, YOU = b"\x01" * 16, b"\x02" * 16
LONG = st.integers(0, (1 << 64) - 1)


def chunks(*frames: bytes, size: int = 1024) -> list[Chunk]:
    window = Window(ME, YOU, size, 1 << 30, 1 << 30)
    for frame in frames:
        window.add(frame)
    found: list[Chunk] = []
    while chunk := window.say(0.0):
        found.append(chunk)
    return found


def one(**changes: object) -> Chunk:
    fields = {"low": 0, "order": 0, "frame": 0, "size": 2000, "index": 0, "count": 2, "data": bytes(1000)} | changes
    return Chunk(ME, YOU, **fields)  # type: ignore[arg-type]  # the fields of one, by name


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(raw: bytes) -> None:
    for data in (raw, b"VQ\x01\x01" + raw, b"VQ\x01\x02" + raw):
        try:
            read(data)
        except RemoteError:
            continue


@given(st.binary(max_size=5000), st.integers(0, 1 << 40))
def test_a_chunk_survives_its_journey_and_damage_is_seen(frame: bytes, at: int) -> None:
    for chunk in chunks(frame):
        raw = chunk.to_bytes()
        found = read(raw)
        assert isinstance(found, Chunk)
        assert (found.source, found.target, bytes(found.data)) == (ME, YOU, bytes(chunk.data))
        damaged = bytearray(raw)
        damaged[at % len(raw)] ^= 1 + at % 255
        with pytest.raises(RemoteError):
            read(bytes(damaged))
        with pytest.raises(RemoteError):
            read(raw[: at % len(raw)])


@given(st.lists(st.tuples(LONG, st.integers(0, (1 << 32) - 1), LONG), max_size=50))
def test_acknowledgements_survive_their_journey(pieces: list[tuple[int, int, int]]) -> None:
    acks = Acks(ME, YOU, tuple(pieces))
    assert read(acks.to_bytes()) == acks


def test_an_acknowledgement_is_bounded() -> None:
    with pytest.raises(LocalError):
        Acks(ME, YOU, ((0, 0, 0),) * (ACK_ENTRIES + 1)).to_bytes()
    most = Acks(ME, YOU, ((0, 0, 0),) * ACK_ENTRIES).to_bytes()
    with pytest.raises(RemoteError) as refused:
        read(most + bytes(20))
    assert refused.value.refusal is Refusal.OVERSIZED


@given(st.lists(st.binary(max_size=6000), max_size=4), st.randoms(use_true_random=False))
def test_in_any_order_and_repeated_every_frame_comes_out_once(frames: list[bytes], random: Random) -> None:
    said = chunks(*frames) * 2
    random.shuffle(said)
    reassembly = Reassembly()
    found = [frame for chunk in said if (frame := reassembly.take(chunk)) is not None]
    assert sorted(found) == sorted(frames)
    assert reassembly.held == 0


@pytest.mark.parametrize(
    ("second", "refusal"),
    [
        ({"index": 1, "size": 2001}, Refusal.MALFORMED),  # disagrees with the first
        ({"index": 1, "count": 3}, Refusal.MALFORMED),
        ({"index": 1, "data": bytes(900)}, Refusal.MALFORMED),  # does not add up
        ({"index": 1, "data": bytes(1100)}, Refusal.MALFORMED),
        ({"frame": AHEAD}, Refusal.OVERSIZED),
        ({"frame": 1, "size": 5000, "count": 3}, Refusal.OVERSIZED),  # over the longest
        ({"frame": 1, "size": 4000}, Refusal.OVERSIZED),  # over what is kept unfinished
    ],
)
def test_what_does_not_fit_is_refused(second: dict[str, object], refusal: Refusal) -> None:
    reassembly = Reassembly(max_frame=4096, max_held=4096)
    assert reassembly.take(one()) is None
    with pytest.raises(RemoteError) as refused:
        reassembly.take(one(**second))
    assert refused.value.refusal is refusal


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": 2}, {"count": 3}, {"count": 0}, {"data": bytes(2001)}, {"low": 1}, {"data": b""},
        {"count": 1, "data": bytes(1999)},
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused_before_anything_is_kept(wrong: dict[str, object]) -> None:
    with pytest.raises(RemoteError) as refused:
        read(one(**wrong).to_bytes())
    assert refused.value.refusal is Refusal.MALFORMED


def test_what_its_sender_gave_up_is_forgotten() -> None:
    reassembly = Reassembly()
    reassembly.take(one())
    assert reassembly.held == 2000
    assert reassembly.take(one(low=1, frame=1, size=3, count=1, data=b"abc")) == b"abc"
    assert reassembly.held == 0
    assert reassembly.take(one(index=1)) is None  # of the frame given up: known, and not begun again
    assert reassembly.held == 0


def test_a_size_that_is_only_named_takes_room() -> None:
    """Room is made for a whole frame when its first chunk comes, so a few short chunks must not name many long ones."""
    reassembly = Reassembly(max_frame=4096, max_held=4096)
    for frame in (0, 1):
        assert reassembly.take(one(frame=frame)) is None
    with pytest.raises(RemoteError) as refused:
        reassembly.take(one(frame=2))
    assert refused.value.refusal is Refusal.OVERSIZED
    assert reassembly.take(one(index=1)) == bytes(2000)
    assert reassembly.take(one(frame=2)) is None


def test_strangers_may_say_little_and_many_of_them_take_no_more_room() -> None:
    senders = Senders(1 << 20, 1 << 20)
    for n in range(3 * STRANGERS):
        who = Identity.from_seed(n.to_bytes(32, "big")).peer
        assert senders.take(who, one(size=2, count=1, data=b"hi")) == b"hi"
    assert len(senders) == STRANGERS
    with pytest.raises(RemoteError) as refused:
        senders.take(who, one(frame=1))
    assert refused.value.refusal is Refusal.OVERSIZED
    assert sum(len(pieces) for _, _, pieces in senders.arrived()) == STRANGERS
    assert senders.arrived() == []


def test_unfinished_frames_of_all_are_bounded_and_one_of_them_can_be_finished() -> None:
    first, second = (Identity.from_seed(bytes([n]) * 32).peer for n in (1, 2))
    senders = Senders(1 << 20, 1500)
    senders.known = frozenset({first, second})
    assert senders.take(first, one()) is None
    with pytest.raises(RemoteError):
        senders.take(second, one())
    assert senders.take(first, one(index=1)) == bytes(2000)
    assert senders.take(second, one()) is None  # now there is room


def test_a_session_that_has_ended_is_refused_and_a_newer_one_begins_anew() -> None:
    who = Identity.from_seed(bytes(32)).peer
    senders = Senders(1 << 20, 1 << 20)
    small = {"size": 1, "count": 1, "data": b"x"}
    newer = Chunk(b"\x09" * 16, YOU, 0, 0, 0, 1, 0, 1, b"x")
    assert senders.take(who, one(**small)) == b"x"
    assert senders.take(who, one(**small)) is None
    assert senders.take(who, newer) == b"x"
    with pytest.raises(RemoteError) as refused:
        senders.take(who, one(**small))
    assert refused.value.refusal is Refusal.REPLAY
