"""What a peer leaves on disk: its model, as safetensors, written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from veilmesh.core import BadInput

__all__ = ["load_parameters", "save_parameters", "write_durably", "writing"]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes to `path`: a full disk, or a place where nothing can be written, is BadInput."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); make room there, or write elsewhere.") from None


def write_durably(path: Path, raw: bytes, mode: int = 0o644) -> None:
    """Write `raw` to `path`, whole or not at all, also if the power fails. Raises BadInput if it cannot be written."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(raw)
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


def save_parameters(path: Path, parameters: NDArray[np.float32], about: dict[str, str]) -> None:
    """Write a parameter vector (d,) to `path`, with `about` as its metadata; replaces the file atomically.

    Raises BadInput if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    whole = np.ascontiguousarray(parameters)  # of a view with gaps, save() would write what lies between
    raw = save({"parameters": whole}, metadata=about)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(raw)
        part.replace(path)


def load_parameters(path: Path) -> NDArray[np.float32]:
    """The parameter vector (d,) in `path`. Raises BadInput if it is missing, cut off or something else."""
    try:
        return np.asarray(load_file(path)["parameters"], dtype=np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(f"{path} is not a checkpoint of a peer ({error}); give another, or run again.") from None
