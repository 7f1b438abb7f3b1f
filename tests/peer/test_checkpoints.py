"""Checkpoints on disk: what was written is what is read, what is not whole is not read, and there are never many."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.peer.checkpoints import Checkpoints
from veilmesh.peer.machine import Keep

ABOUT = {"peer": "12D3Koo", "scenario": "0123"}
BESIDE = {"seconds": 1.5, "bytes_sent": 7}


def checkpoints(folder: Path, **others: str) -> Checkpoints:
    return Checkpoints(folder, "peer-0", {**ABOUT, **others}, last=3)


def kept(round_: int) -> Keep:
    x = np.linspace(0, round_, 40, dtype=np.float32)
    return Keep(round_, {"x": x[::2], "w": np.full(1, 1 / 3), "accuracy": 0.1, "next/p": 4, "word": "é"})


def file(folder: Path, round_: int) -> Path:
    return folder / "checkpoints" / "peer-0" / f"round-{round_}.safetensors"


def written(folder: Path, *rounds: int) -> Checkpoints:
    made = checkpoints(folder)
    for round_ in rounds:
        made.write(kept(round_), BESIDE)
    return made


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    found = checkpoints(tmp_path)
    assert found.rounds() == [1, 2]
    read = found.read(2)
    assert read is not None
    assert read[0].round == 2
    assert read[1] == BESIDE
    assert set(read[0].state) == set(kept(2).state)
    for name, value in kept(2).state.items():
        np.testing.assert_array_equal(read[0].state[name], value)
        assert np.asarray(read[0].state[name]).dtype == np.asarray(value).dtype
    assert found.read(3) is None


def test_only_the_last_few_are_there_and_the_journal_is_short(tmp_path: Path) -> None:
    made = written(tmp_path, *range(10, 1000, 10))
    assert made.rounds() == [970, 980, 990]
    assert sorted(os.listdir(file(tmp_path, 1).parent)) == [f"round-{n}.safetensors" for n in (970, 980, 990)]
    lines = (tmp_path / "journal-peer-0.jsonl").read_text().splitlines()
    assert 3 <= len(lines) <= 24
    assert json.loads(lines[-1])["round"] == 990


def test_a_round_that_is_done_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    again = checkpoints(tmp_path)
    again.rewind(1)
    assert again.rounds() == [1]
    again.write(kept(2), {"seconds": 9.0})
    read = checkpoints(tmp_path).read(2)
    assert read is not None
    assert read[1] == {"seconds": 9.0}


@pytest.mark.parametrize("other", [{"peer": "somebody"}, {"scenario": "4567"}])
def test_what_is_anothers_is_not_read(tmp_path: Path, other: dict[str, str]) -> None:
    written(tmp_path, 1)
    assert checkpoints(tmp_path, **other).read(1) is None


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_or_has_a_flipped_bit_is_not_read(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    written(tmp_path, 1, 2)
    raw = bytearray(file(tmp_path, 2).read_bytes())
    if data.draw(st.booleans(), "cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1), "length")]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    file(tmp_path, 2).write_bytes(raw)
    found = checkpoints(tmp_path)
    assert found.read(2) is None
    assert found.read(1) is not None


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_became_of_a_journal_nothing_false_is_read_and_one_can_go_on(
    tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    written(tmp_path, 1, 2)
    journal = tmp_path / "journal-peer-0.jsonl"
    raw = journal.read_bytes()
    harmed = data.draw(
        st.one_of(
            st.integers(0, len(raw)).map(lambda n: raw[:n]),
            st.binary(max_size=60).map(lambda more: raw + more),
            st.sampled_from([b"1\n", b"[]\n", b'{"round": "2", "file": "round-2.safetensors", "blake2b": ""}\n',
                             b'{"round": 7, "file": "../../x", "blake2b": ""}\n', b"\xff\n", b"null\n"]),
        ),
        "journal",
    )  # fmt: skip
    journal.write_bytes(harmed)
    found = checkpoints(tmp_path)
    for round_ in found.rounds():
        if (read := found.read(round_)) is not None:
            np.testing.assert_array_equal(read[0].state["x"], kept(round_).state["x"])
    found.write(kept(3), BESIDE)
    assert checkpoints(tmp_path).read(3) is not None


def test_a_killed_writers_leavings_are_taken_away(tmp_path: Path) -> None:
    written(tmp_path, 1)
    left = file(tmp_path, 2).with_name("round-2.safetensors.part-77")
    left.write_bytes(b"half")
    found = checkpoints(tmp_path)
    assert found.rounds() == [1]
    found.rewind(1)
    assert not left.exists()


def test_a_place_where_nothing_can_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(BadInput, match="cannot be written"):
        written(tmp_path, 1)
