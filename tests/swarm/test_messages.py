"""Messages: what was said is what is read, and whatever else is refused without a surprise."""

import msgspec
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.swarm import messages

ROUNDS = st.integers(0, 2**31 - 1)
BLOBS = st.binary(max_size=60)
NONCES = st.binary(min_size=16, max_size=16)
MESSAGES = st.one_of(
    st.builds(messages.Update, ROUNDS, st.integers(1, 2**31 - 1), BLOBS),
    st.builds(messages.Model, ROUNDS, BLOBS),
    st.builds(messages.Ask, ROUNDS),
    st.builds(messages.Copy, ROUNDS, BLOBS),
    st.builds(messages.Share, ROUNDS, st.integers(1, 2**31 - 1), BLOBS, BLOBS),
    st.builds(lambda since, more, n, blob: messages.Delta(since + more, since, n, blob, since, n % 2 == 0),
              st.integers(0, 2**30), st.integers(1, 2**30 - 1), st.integers(1, 2**31 - 1), BLOBS),
    st.builds(messages.Part, ROUNDS, ROUNDS, BLOBS, BLOBS),
    st.builds(messages.Averaged, ROUNDS, ROUNDS, st.integers(1, 2**31 - 1), BLOBS, BLOBS),
    st.builds(messages.Passed, ROUNDS, ROUNDS, st.integers(1, 2**31 - 1), BLOBS),
    st.builds(lambda round_, settled, more, digest: messages.Commit(round_, settled + more, settled, digest),
              ROUNDS, st.integers(0, 2**30), st.integers(1, 2**30), st.binary(min_size=32, max_size=32)),
    st.builds(messages.Step, ROUNDS, ROUNDS, BLOBS),
    st.builds(messages.Reveal, ROUNDS, st.integers(1, 2**31 - 1), NONCES),
    st.builds(messages.Vote, ROUNDS, st.integers(1, 2**31 - 1), ROUNDS,
              st.lists(NONCES | st.just(b""), max_size=5).map(tuple)),
    st.builds(messages.Merged, ROUNDS, st.integers(1, 2**31 - 1), ROUNDS, BLOBS),
    st.builds(messages.Key, ROUNDS, BLOBS),
    st.builds(messages.Encrypted, ROUNDS, ROUNDS, st.binary(min_size=32, max_size=32), BLOBS),
    st.builds(messages.Summed, ROUNDS, st.sets(ROUNDS, max_size=5).map(sorted).map(tuple), BLOBS),
)  # fmt: skip


def read(body: bytes) -> messages.Message | Refusal:
    try:
        return messages.decode(body)
    except RemoteError as error:
        return error.refusal


def refused(body: bytes) -> bool:
    return read(body) is Refusal.MALFORMED


@given(MESSAGES)
def test_what_is_said_is_what_is_read(message: messages.Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@settings(max_examples=examples(250))
@given(st.binary(max_size=60))
def test_bytes_are_a_message_or_malformed(body: bytes) -> None:
    assert read(body) is Refusal.MALFORMED or messages.decode(body).round >= 0


@given(MESSAGES, st.data())
def test_a_cut_or_longer_message_is_refused(message: messages.Message, data: st.DataObject) -> None:
    body = messages.encode(message)
    assert refused(body[: data.draw(st.integers(0, len(body) - 1))])
    assert refused(body + b"\x00")


@given(MESSAGES, st.data())
def test_a_changed_byte_is_refused_or_another_message(message: messages.Message, data: st.DataObject) -> None:
    body = bytearray(messages.encode(message))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert refused(bytes(body)) or 0 <= messages.decode(bytes(body)).round < 2**31


@pytest.mark.parametrize(
    "parts",
    [
        ["update", -1, 1, b""],
        ["update", 2**31, 1, b""],
        ["update", 0, 0, b""],
        ["update", 0, -3, b""],
        ["update", 0, 2**31, b""],
        ["update", 0, 1, b"", "more"],
        ["update", 0, 1],
        ["update", 0.5, 1, b""],
        ["update", "0", 1, b""],
        ["update", True, 1, b""],
        ["update", 0, 1, None],
        ["ask", -1],
        ["ask", 2**64 - 1],
        ["share", 0, 0, b"", b""],
        ["share", 0, 1, b""],
        ["share", 0, 1, b"", 1.0],
        ["delta", 1, 1, 1, b""],
        ["delta", 1, -1, 1, b""],
        ["delta", 1, 0, 0, b""],
        ["part", 0, -1, b"", b""],
        ["part", 0, 0, b""],
        ["averaged", 0, 0, 0, b"", b""],
        ["commit", 0, 1, 1, b"d" * 32],
        ["commit", 0, 1, 0, b"d" * 31],
        ["reveal", 0, 0, b"n" * 16],
        ["vote", 0, 1, -1, []],
        ["vote", 0, 1, 0, [b"n"]],
        ["step", 0, -1, b""],
        ["step", 0, 1],
        ["merged", 0, 0, 1, b""],
        ["merged", 0, 1, -1, b""],
        ["key", 0],
        ["encrypted", 0, -1, b"k" * 32, b""],
        ["encrypted", 0, 1, b"k" * 31, b""],
        ["summed", 0, [2, 1], b""],
        ["summed", 0, [1, 1], b""],
        ["summed", 0, [-1], b""],
        ["summed", 0, [2**31], b""],
        ["gossip", 0],
        [],
        {"round": 0},
        "ask",
        None,
        ["ask", 0, [[[[]]]]],
    ],
)
def test_what_is_out_of_shape_or_range_is_refused(parts: object) -> None:
    assert refused(msgspec.msgpack.encode(parts))


def test_deep_nesting_is_refused_without_recursing() -> None:
    assert refused(b"\x93\xa3ask\x00" + b"\x91" * 100_000 + b"\xc0")


def test_a_tag_that_is_not_text_is_refused() -> None:
    assert refused(b"\x92\xa3\xff\xfe\xfd\x00")
