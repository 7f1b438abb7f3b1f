"""Transcripts: what was written is read, and a file that was cut off is never taken for a shorter one."""

from pathlib import Path

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transcript import END, Record, encode_record, read_transcript, write_records

NAMES = st.sampled_from([PeerId("a"), PeerId("b")])
RECORDS = st.builds(
    Record,
    st.floats(0, 1e6),
    NAMES,
    NAMES,
    NAMES,
    st.integers(0, 2**40),
    st.none() | st.binary(max_size=30),
    st.none() | st.binary(max_size=30),
)
FOLDER = settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some(count: int) -> list[Record]:
    return [Record(n / 7, PeerId("b"), PeerId("a"), PeerId("b"), n, b"f" * n, b"b" * n) for n in range(count)]


@FOLDER
@given(records=st.lists(RECORDS, max_size=8))
def test_what_is_written_is_read(tmp_path: Path, records: list[Record]) -> None:
    write_records(tmp_path / "peer-0.records", records)
    assert list(read_transcript(tmp_path)) == records


def test_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    write_records(tmp_path / "b.records", some(2))
    write_records(tmp_path / "a.records", some(3))
    assert list(read_transcript(tmp_path)) == [*some(3), *some(2)]


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peer-0.records"
    write_records(path, some(4))
    raw = path.read_bytes()
    for length in range(len(raw)):  # between two records too
        path.write_bytes(raw[:length])
        with pytest.raises(BadInput, match="cut off"):
            list(read_transcript(tmp_path))


def test_a_file_that_goes_on_after_its_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.records").write_bytes(encode_record(some(1)[0]) + END + b"\x00")
    with pytest.raises(BadInput):
        list(read_transcript(tmp_path))


@FOLDER
@given(raw=st.binary(max_size=60).filter(lambda raw: raw != END))
def test_other_bytes_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.records").write_bytes(raw)
    with pytest.raises(BadInput):
        list(read_transcript(tmp_path))


def test_a_run_without_a_transcript_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"transcript\.keep"):
        list(read_transcript(tmp_path))


@pytest.mark.parametrize("body", [True, False])
@pytest.mark.parametrize("frame", [True, False])
def test_a_record_is_seen_without_what_its_observer_cannot_see(body: bool, frame: bool) -> None:
    [_, record] = some(2)
    seen = record.as_seen(body=body, frame=frame)
    assert seen.body == (record.body if body else None)
    assert seen.frame == (record.frame if frame else None)
    assert (seen.now, seen.at, seen.sender, seen.to, seen.size) == (record.now, "b", "a", "b", record.size)
