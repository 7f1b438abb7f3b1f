"""Cover traffic: slots look alike and are due when they are due, and what they hold comes out whole, in any order."""

from collections import deque

import anyio
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, RemoteError
from veilmesh.peer.allowance import Allowance
from veilmesh.peer.cover import LEAST_SLOT, Cover, Packer, Slots, Unpacker
from veilmesh.peer.machine import PeerId
from veilmesh.peer.outbox import Outbox

SLOT = 512
BODIES = st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=3000)), max_size=6)


def slots_of(bodies: list[tuple[int, bytes]], signs: dict[int, bytes] | None = None, octets: int = SLOT) -> list[bytes]:
    packer, waiting, found = Packer(octets), deque(bodies), []
    while waiting or signs or not found:
        slot = packer.slot(signs or {}, waiting)
        found.append(slot.body)
    return found


@given(bodies=BODIES, octets=st.integers(LEAST_SLOT, 2000))
def test_what_is_cut_into_slots_of_one_length_comes_out_whole_and_in_order(
    bodies: list[tuple[int, bytes]], octets: int
) -> None:
    packed = slots_of(bodies, octets=octets)
    assert {len(slot) for slot in packed} == {octets}
    unpacker = Unpacker(10_000)
    assert [item for slot in packed for item in unpacker.take(slot)] == bodies
    assert unpacker.held == 0


@given(bodies=BODIES, order=st.randoms(use_true_random=False), lost=st.sets(st.integers(0, 40)))
def test_slots_may_overtake_each_other_and_be_lost_and_nothing_comes_out_wrong(
    bodies: list[tuple[int, bytes]], order, lost: set[int]
) -> None:
    packed = slots_of(bodies)
    arrived = [slot for number, slot in enumerate(packed) if number not in lost]
    order.shuffle(arrived)
    unpacker = Unpacker(100_000)
    whole = [item for slot in arrived for item in unpacker.take(slot)]
    assert all(item in bodies for item in whole)
    assert len(whole) <= len(bodies)
    if not lost:
        assert sorted(whole) == sorted(bodies)


def test_a_sign_of_life_passes_a_large_body_that_is_on_its_way() -> None:
    packer, waiting, signs = Packer(SLOT), deque([(1, bytes(1500))]), {}
    unpacker = Unpacker(10_000)
    assert unpacker.take(packer.slot(signs, waiting).body) == []
    signs[2] = b"\x01"
    slot = packer.slot(signs, waiting)
    assert (slot.signs, slot.left, signs) == (1, (), {})
    assert unpacker.take(slot.body) == [(2, b"\x01")]


def test_a_slot_with_nothing_to_say_is_as_long_as_any_and_holds_nothing() -> None:
    slot = Packer(SLOT).slot({}, deque())
    assert slot.idle
    assert len(slot.body) == SLOT
    assert Unpacker(1000).take(slot.body) == []
    assert not Packer(SLOT).slot({}, deque([(1, b"")])).idle


@given(raw=st.binary(max_size=600))
@settings(max_examples=examples(100))
def test_whatever_a_member_says_ends_in_bodies_or_a_refusal_and_little_is_kept(raw: bytes) -> None:
    unpacker = Unpacker(2000)
    for turned in (raw, raw[1:], raw[::-1]):
        try:
            unpacker.take(turned)
        except RemoteError:
            continue
    assert unpacker.held <= 2000 + len(raw)


def test_bodies_that_are_never_finished_do_not_pile_up() -> None:
    unpacker = Unpacker(4000)
    for number in range(200):
        first = Packer(SLOT)
        first._number = number
        unpacker.take(first.slot({}, deque([(1, bytes(3000))])).body)
        assert unpacker.held <= 4000


@pytest.mark.parametrize(("length", "begin", "size"), [(100, 90, 20), (200, 0, 10), (5000, 0, 64), (10, 0, 0)], ids=str)
def test_a_piece_that_does_not_fit_is_refused(length: int, begin: int, size: int) -> None:
    import struct

    slot = struct.pack("!BIIII", 1, 0, length, begin, size) + bytes(size)
    with pytest.raises(RemoteError):
        Unpacker(4000).take(slot)


def test_slots_are_due_at_a_fixed_pace_and_missed_ones_are_not_made_up_for() -> None:
    slots = Slots(10.0, 0.5)
    assert slots.due == 10.0
    slots.taken(10.01)
    assert (slots.due, slots.missed) == (10.5, 0)
    slots.taken(12.2)  # it was busy: 11, 11.5 and 12 are gone
    assert (slots.due, slots.missed) == (12.5, 3)
    slots.taken(12.5)
    assert (slots.due, slots.missed) == (13.0, 3)


@pytest.mark.parametrize(("pace", "octets"), [(0.0, 1000), (float("nan"), 1000), (1.0, LEAST_SLOT - 1)])
def test_cover_without_pace_or_room_is_refused(pace: float, octets: int) -> None:
    with pytest.raises(LocalError):
        Cover(pace, octets)


def test_slots_are_left_out_while_what_left_before_has_not_arrived_and_nothing_is_lost() -> None:
    """Else they would pile up in a transport that hands frames on before they leave, and delay all that is said."""
    left: list[bytes] = []
    a, full = PeerId("a"), True

    async def carry(to: PeerId, kind: int, body: bytes) -> None:
        left.append(body)

    async def scene() -> None:
        nonlocal full
        now = anyio.current_time
        outbox = Outbox(Allowance(9, 9000), carry, lambda: None, Cover(0.01, SLOT), now, lambda to: full)
        async with anyio.create_task_group() as tasks:
            outbox.start([a], tasks)
            outbox.post(a, 1, b"said")
            while outbox.missed < 3:  # noqa: ASYNC110  # counters have no event
                await anyio.sleep(0.01)
            assert (left, outbox.slots, outbox.empty) == ([], 0, False)
            full = False
            while not outbox.empty:  # noqa: ASYNC110  # counters have no event
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert Unpacker(1000).take(left[0]) == [(1, b"said")]
        assert outbox.slots == len(left)

    anyio.run(scene, backend="trio")
