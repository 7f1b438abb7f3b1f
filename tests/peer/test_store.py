"""Checkpoints: what was saved is what is loaded, and nothing else is taken for one."""

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save_file

from veilmesh.core import BadInput
from veilmesh.peer.store import load_parameters, save_parameters, tensor_parts, write_durably

X = np.linspace(-3, 3, 50, dtype=np.float32)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "peer-0.safetensors"
    save_parameters(path, X, {"rounds": "7"})
    np.testing.assert_array_equal(load_parameters(path), X)
    save_parameters(path, X[:3], {"rounds": "8"})
    np.testing.assert_array_equal(load_parameters(path), X[:3])
    assert [p.name for p in path.parent.iterdir()] == ["peer-0.safetensors"]


def test_a_view_with_gaps_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    save_parameters(tmp_path / "x", X[::-2], {})
    np.testing.assert_array_equal(load_parameters(tmp_path / "x"), X[::-2])


def test_a_checkpoint_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole"
    save_parameters(path, X, {"rounds": "7"})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(BadInput):
            load_parameters(path)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60))
def test_other_bytes_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(BadInput):
        load_parameters(tmp_path / "x")


def test_what_is_missing_or_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weights": X}, tmp_path / "other.safetensors")
    for name in ("nothing", "other.safetensors", "."):
        with pytest.raises(BadInput, match=r"run again"):
            load_parameters(tmp_path / name)


KINDS = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
ARRAYS = KINDS.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
NAMES = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), about=st.dictionaries(st.text(max_size=8), st.text(max_size=8))
)
def test_safetensors_itself_reads_what_is_written_in_parts(
    tmp_path: Path, arrays: dict[str, np.ndarray], about: dict[str, str]
) -> None:
    write_durably(tmp_path / "x", tensor_parts(arrays, about))
    with safe_open(tmp_path / "x", "np") as file:
        assert (file.metadata() or {}) == about
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()


def test_a_model_is_written_from_where_it_lies() -> None:
    _, vector = tensor_parts({"x": X}, {})
    assert isinstance(vector, memoryview)
    assert np.shares_memory(np.frombuffer(vector, np.uint8), X)
