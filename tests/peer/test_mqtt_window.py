"""The window over a channel that drops, repeats, delays and reorders: all frames arrive, and once."""

from hypothesis import given
from hypothesis import strategies as st

from veilmesh.peer.transports.mqtt_chunks import Chunk, Reassembly
from veilmesh.peer.transports.mqtt_window import Window

ME, YOU = b"\x01" * 16, b"\x02" * 16
CHUNK = 1024


def window(flight: int = 8 * CHUNK, room: int = 64 * CHUNK) -> Window:
    return Window(ME, YOU, CHUNK, flight, room)


def said(sending: Window, now: float) -> list[Chunk]:
    found: list[Chunk] = []
    while chunk := sending.say(now):
        found.append(chunk)
    return found


def pieces(chunks: list[Chunk]) -> tuple[tuple[int, int, int], ...]:
    return tuple((chunk.frame, chunk.index, chunk.order) for chunk in chunks)


@given(
    st.lists(st.binary(max_size=5 * CHUNK), min_size=1, max_size=8),
    st.lists(st.sampled_from(["carry", "drop", "twice", "later", "deaf", "break"]), max_size=60),
)
def test_whatever_the_channel_does_every_frame_arrives_once(frames: list[bytes], fates: list[str]) -> None:
    sending, receiving = window(), Reassembly()
    for frame in frames:
        sending.add(frame)
    found: list[bytes] = []
    delayed: list[Chunk] = []
    now, fate = 0.0, iter(fates)
    for _ in range(1000):
        if not len(sending):
            break
        for chunk in said(sending, now):
            fate_of = next(fate, "carry")
            match fate_of:
                case "drop":
                    arriving: list[Chunk] = []
                case "twice":
                    arriving = [chunk, chunk]
                case "later":
                    arriving = []
                    delayed.append(chunk)
                case _:
                    arriving = [chunk]
            found += [frame for c in arriving if (frame := receiving.take(c)) is not None]
            if arriving and fate_of != "deaf":
                sending.acknowledged(pieces(arriving), now)
        if next(fate, "") == "break":
            sending.resume()
        found += [frame for c in delayed if (frame := receiving.take(c)) is not None]
        sending.acknowledged(pieces(delayed), now)
        delayed.clear()
        now += 1.0
    assert sorted(found) == sorted(frames)
    assert len(sending) == sending.held == 0


def test_only_so_much_is_under_way_and_an_acknowledgement_makes_room() -> None:
    sending = window(flight=4 * CHUNK)
    sending.add(bytes(10 * CHUNK))
    first = said(sending, 0.0)
    assert len(first) == 4
    assert sending.due is not None
    sending.acknowledged(pieces(first[:2]), 0.5)
    assert [chunk.index for chunk in said(sending, 0.5)] == [4, 5]


def test_room_is_for_so_many_bytes_or_for_one_frame_of_any_size() -> None:
    sending = window(room=4 * CHUNK)
    assert sending.has_room(1 << 30)
    sending.add(bytes(3 * CHUNK))
    assert sending.has_room(CHUNK)
    assert not sending.has_room(CHUNK + 1)


def test_a_chunk_that_was_overtaken_is_said_again_at_once() -> None:
    sending = window()
    sending.add(bytes(6 * CHUNK))
    chunks = said(sending, 0.0)
    sending.acknowledged(pieces(chunks[1:3]), 0.1)
    assert said(sending, 0.1) == []  # might only be late
    sending.acknowledged(pieces(chunks[3:4]), 0.1)
    assert [chunk.index for chunk in said(sending, 0.1)] == [0]
    assert sending.repeated == 1


def test_silence_makes_it_say_the_oldest_again_ever_more_patiently() -> None:
    sending = window()
    sending.add(bytes(3 * CHUNK))
    said(sending, 0.0)
    waits, now = [], 0.0
    for _ in range(4):
        assert sending.due is not None
        waits.append(sending.due - now)
        now = sending.due
        assert len(said(sending, now)) == 1
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * waits[0]


def test_a_slow_line_is_not_filled_with_repetitions() -> None:
    """One chunk in 8 s, in order, as at a megabit: hardly anything is said twice."""
    sending = window()
    sending.add(bytes(60 * CHUNK))
    line: list[Chunk] = []
    for second in range(60 * 8 + 200):
        line += said(sending, float(second))
        if line and second % 8 == 7:
            sending.acknowledged(pieces([line.pop(0)]), float(second))
    assert len(sending) == 0
    assert sending.repeated <= 6


def test_a_line_that_turns_out_slow_is_not_told_its_first_chunk_twice() -> None:
    sending = Window(ME, YOU, 1 << 18, 1 << 20, 1 << 20)  # two seconds for a chunk at a megabit
    sending.add(bytes(1 << 20))
    chunks = said(sending, 0.0)
    for number, chunk in enumerate(chunks):
        late = 2.1 * (number + 1)
        assert said(sending, late) == []
        sending.acknowledged(pieces([chunk]), late)
    assert sending.repeated == len(sending) == 0


def test_once_one_chunk_arrives_all_that_went_before_it_and_did_not_is_said_again() -> None:
    """As when a broker came back empty: it took over what nobody was subscribed to yet."""
    sending = window()
    sending.add(bytes(8 * CHUNK))
    said(sending, 0.0)
    assert sending.due is not None
    later = sending.due
    [probe] = said(sending, later)
    sending.acknowledged(pieces([probe]), later)
    assert [chunk.index for chunk in said(sending, later)] == [1, 2, 3, 4, 5]  # the two before it may only be late
    assert sending.repeated == 6


def test_a_new_connection_says_again_what_was_under_way() -> None:
    sending = window()
    sending.add(bytes(3 * CHUNK))
    first = said(sending, 0.0)
    sending.acknowledged(pieces(first[:1]), 0.0)
    sending.resume()
    assert [(c.frame, c.index) for c in said(sending, 0.0)] == [(c.frame, c.index) for c in first[1:]]


def test_giving_up_forgets_all_and_the_numbers_go_on() -> None:
    sending = window()
    sending.add(b"one")
    said(sending, 0.0)
    assert sending.drop() == 1
    assert sending.due is None
    sending.add(b"two")
    [chunk] = said(sending, 0.0)
    assert (chunk.frame, chunk.low, bytes(chunk.data)) == (1, 1, b"two")
    sending.acknowledged(((0, 0, 0),), 0.0)  # late, of the one given up
    assert len(sending) == 1
