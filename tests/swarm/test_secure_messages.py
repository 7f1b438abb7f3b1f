"""What members of a sum say: what was said is what is read, and what is out of shape or size is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.swarm import messages
from veilmesh.swarm.secure_messages import (
    CARD,
    LARGEST_GROUP,
    Agreed,
    Counted,
    Enrol,
    Masked,
    Roll,
    SumMessage,
    Total,
    Unmasked,
    Withdrawn,
)

ROUNDS, NUMBERS, PARTS = st.integers(0, 2**31 - 1), st.integers(0, 2**16 - 1), st.integers(0, LARGEST_GROUP - 1)
SECRETS = st.binary(min_size=32, max_size=32)
CARDS = st.binary(min_size=CARD, max_size=CARD)
MEMBERS = st.sets(PARTS).map(sorted).map(tuple)


def several(pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, ...]]:
    return st.lists(pieces | st.just(b""), max_size=6).map(tuple)


SUMS = st.one_of(
    st.builds(Enrol, ROUNDS, NUMBERS, CARDS, SECRETS, SECRETS),
    st.builds(Roll, ROUNDS, NUMBERS, several(CARDS)),
    st.builds(Masked, ROUNDS, NUMBERS, SECRETS, PARTS, st.binary(max_size=40)),
    st.builds(Counted, ROUNDS, NUMBERS, SECRETS, MEMBERS),
    st.builds(Agreed, ROUNDS, NUMBERS, SECRETS, MEMBERS),
    st.builds(Unmasked, ROUNDS, NUMBERS, SECRETS, SECRETS | st.just(b""), several(SECRETS)),
    st.builds(Total, ROUNDS, NUMBERS, SECRETS, PARTS, st.binary(max_size=40)),
    st.builds(Withdrawn, ROUNDS, NUMBERS),
)


def read(body: bytes) -> messages.Message | Refusal:
    try:
        return messages.decode(body)
    except RemoteError as error:
        return error.refusal


@given(SUMS)
def test_what_is_said_is_what_is_read(message: SumMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(SUMS, st.data())
def test_a_changed_byte_is_refused_or_another_message(message: SumMessage, data: st.DataObject) -> None:
    body = bytearray(messages.encode(message))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert read(bytes(body)) is Refusal.MALFORMED or messages.decode(bytes(body)).round >= 0


L = b"l" * 32


@pytest.mark.parametrize(
    "parts",
    [
        ["withdrawn", 0, -1],
        ["withdrawn", 0, 1 << 16],
        ["enrol", 0, 0, b"c" * 63, b"s" * 32, b"s" * 32],
        ["enrol", 0, 0, b"c" * 64, b"", b"s" * 32],
        ["roll", 0, 0, [b"c"]],
        ["roll", 0, 0, [b""] * 65],
        ["masked", 0, 0, b"short", 0, b""],
        ["masked", 0, 0, L, 64, b""],
        ["masked", 0, 0, L, -1, b""],
        ["total", 0, 0, L, 64, b""],
        ["counted", 0, 0, L, [1, 0]],
        ["counted", 0, 0, L, [1, 1]],
        ["agreed", 0, 0, L, [64]],
        ["agreed", 0, 0, L, [-1]],
        ["unmasked", 0, 0, L, b"s", []],
        ["unmasked", 0, 0, L, b"", [b"s"]],
        ["unmasked", 0, 0, L, b"", [b""] * 65],
    ],
)
def test_what_is_out_of_shape_or_range_is_refused(parts: object) -> None:
    with pytest.raises(RemoteError) as caught:
        messages.decode(msgspec.msgpack.encode(parts))
    assert caught.value.refusal is Refusal.MALFORMED
