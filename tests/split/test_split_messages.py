"""Messages of split mode: what was said is what is read, and whatever else is refused without a surprise."""

import msgspec
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.split import messages

PLACES = st.integers(0, 2**31 - 1)
STAGES = st.integers(0, 2**10 - 1)
ROWS = st.integers(1, 20)
BLOBS = st.binary(max_size=40)
MESSAGES = st.one_of(
    st.builds(
        lambda head, stage, step, micro, more, rows, others, blob, labels, which: messages.Activations(
            head, stage, step, micro, micro + more, rows, rows + others, blob, labels * 2 * rows, which * 4 * rows),
        PLACES, STAGES, PLACES, st.integers(0, 2**30), ROWS, ROWS, st.integers(0, 50), BLOBS,
        st.sampled_from([b"", b"a"]), st.sampled_from([b"", b"a"])),
    st.builds(messages.Gradients, PLACES, STAGES, PLACES, PLACES, BLOBS, st.floats(-1e30, 1e30)),
    st.builds(messages.Ask, PLACES, STAGES, PLACES, PLACES, ROWS, BLOBS),
    st.builds(messages.Answer, PLACES, STAGES, PLACES, PLACES, ROWS, BLOBS),
    st.builds(messages.Handover, PLACES, PLACES, BLOBS),
    st.builds(messages.Taken, PLACES, PLACES),
    st.builds(messages.Replica, PLACES, STAGES, PLACES, BLOBS, BLOBS, BLOBS),
    st.builds(messages.Rewire, PLACES, STAGES, PLACES),
    st.builds(messages.Diverged, PLACES, STAGES, PLACES),
    st.builds(messages.Done, PLACES, PLACES),
)  # fmt: skip


def read(body: bytes) -> messages.Message | Refusal:
    try:
        return messages.decode(body)
    except RemoteError as error:
        return error.refusal


@given(MESSAGES)
def test_what_is_said_is_what_is_read(message: messages.Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@settings(max_examples=examples(250))
@given(st.binary(max_size=60))
def test_bytes_are_a_message_or_malformed(body: bytes) -> None:
    found = read(body)
    assert found is Refusal.MALFORMED or not isinstance(found, Refusal)


@given(MESSAGES, st.data())
def test_a_cut_or_longer_message_is_refused(message: messages.Message, data: st.DataObject) -> None:
    body = messages.encode(message)
    assert read(body[: data.draw(st.integers(0, len(body) - 1))]) is Refusal.MALFORMED
    assert read(body + b"\x00") is Refusal.MALFORMED


@given(MESSAGES, st.data())
def test_a_changed_byte_is_refused_or_another_message(message: messages.Message, data: st.DataObject) -> None:
    body = bytearray(messages.encode(message))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    found = read(bytes(body))
    assert found is Refusal.MALFORMED or 0 <= found.head < 2**31  # type: ignore[union-attr]  # the only refusal there is


@pytest.mark.parametrize(
    "parts",
    [
        ["activations", -1, 1, 0, 0, 1, 1, 1, b"", b"", b""],
        ["activations", 0, 1, 2**31, 0, 1, 1, 1, b"", b"", b""],
        ["activations", 0, 2**10, 0, 0, 1, 1, 1, b"", b"", b""],
        ["activations", 0, 1, 0, 1, 1, 1, 1, b"", b"", b""],  # micro-batch 1 of 1
        ["activations", 0, 1, 0, 0, 1, 0, 1, b"", b"", b""],
        ["activations", 0, 1, 0, 0, 1, 2, 1, b"", b"", b""],
        ["activations", 0, 1, 0, 0, 1, 2, 2, b"", b"abc", b""],
        ["activations", 0, 1, 0, 0, 1, 2, 2, b"", b"", b"abc"],
        ["activations", 0, 1, 0, 0, 1, 2, 2, b"", b""],
        ["activations", 0, 1.0, 0, 0, 1, 2, 2, b"", b"", b""],
        ["gradients", 0, 1, 0, 0, b"", float("nan")],
        ["gradients", 0, 1, 0, 0, b"", float("inf")],
        ["gradients", 0, 1, 0, 0, b"", "0"],
        ["ask", 0, 1, 0, 0, 0, b""],
        ["answer", 0, 1, 0, 0, 0, b""],
        ["rewire", 0, 1, -1],
        ["rewire", 0, 1, True],
        ["done", 0],
        ["done", 0, 1, 2],
        ["update", 0, 1, b""],
        [],
        {},
    ],
)
def test_numbers_out_of_range_and_strange_shapes_are_refused(parts: object) -> None:
    assert read(msgspec.msgpack.encode(parts)) is Refusal.MALFORMED


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(RemoteError) as caught:
        messages.decode(msgspec.msgpack.encode(["<script>", 1]))
    assert "script" not in str(caught.value)
