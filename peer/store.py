"""What a peer leaves on disk: its model, as safetensors, written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from veilmesh.core import BadInput

__all__ = ["Part", "load_parameters", "save_parameters", "tensor_parts", "write_durably", "writing"]

Part: TypeAlias = bytes | memoryview
"""A piece of a file."""

_KINDS: Final = {  # numpy's kind and size of an element, as safetensors calls it
    ("f", 8): "F64", ("f", 4): "F32", ("f", 2): "F16", ("b", 1): "BOOL",
    ("i", 8): "I64", ("i", 4): "I32", ("i", 2): "I16", ("i", 1): "I8",
    ("u", 8): "U64", ("u", 4): "U32", ("u", 2): "U16", ("u", 1): "U8",
}  # fmt: skip


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes to `path`: a full disk, or a place where nothing can be written, is BadInput."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); make room there, or write elsewhere.") from None


def write_durably(path: Path, raw: bytes | Iterable[Part], mode: int = 0o644) -> None:
    """Write `raw`, or its parts, to `path`, whole or not at all, also if the power fails. Raises BadInput if it cannot
    be written."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            for piece in (raw,) if isinstance(raw, bytes) else raw:
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is on disk when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tensor_parts(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> list[Part]:
    """A safetensors file (version 0.x: length, header, arrays) of `arrays` with `about` as its metadata, in parts that
    are the arrays' own memory: a large model needs no second copy of itself to be written."""
    whole = {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    order = sorted(whole, key=lambda name: (-whole[name].dtype.itemsize, name))  # so that all of them are aligned
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name in order:
        begin, end = end, end + whole[name].nbytes
        shape, kind = arrays[name].shape, _KINDS[whole[name].dtype.kind, whole[name].dtype.itemsize]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return [len(raw).to_bytes(8, "little") + raw, *(whole[name].reshape(-1).view(np.uint8).data for name in order)]


def save_parameters(path: Path, parameters: NDArray[np.float32], about: dict[str, str]) -> None:
    """Write a parameter vector (d,) to `path`, with `about` as its metadata; replaces the file atomically.

    Raises BadInput if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            for piece in tensor_parts({"parameters": parameters}, about):
                out.write(piece)
        part.replace(path)


def load_parameters(path: Path) -> NDArray[np.float32]:
    """The parameter vector (d,) in `path`. Raises BadInput if it is missing, cut off or something else."""
    try:
        return np.asarray(load_file(path)["parameters"], dtype=np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(f"{path} is not a checkpoint of a peer ({error}); give another, or run again.") from None
