"""A peer's checkpoints: what its machine needs to go on, of its last rounds, and a journal that says which there are.

    checkpoints/<name>/round-<n>.safetensors    arrays; in the metadata numbers, words, and whose it is
    journal-<name>.jsonl                        a line for each that is whole on disk: round, file, its digest

Theory of operation: a checkpoint counts once its line is in the journal, and as long as the file under that name has
the digest of that line. A file is written aside, synced and renamed, and only then is its line appended and synced; so
a peer that is killed anywhere leaves at most a file that nobody asks for, or half a line, which is no line. safetensors
has no checksum of its own, so nothing is read from a file before its digest is found right.

Only the last few are kept. The journal is written anew, whole, before it grows beyond a fixed multiple of that.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from veilmesh.peer.machine import Keep
from veilmesh.peer.store import Part, tensor_parts, write_durably, writing

__all__ = ["Checkpoints"]

_FORMAT = "1"  # of the file; another is not read
_AT_A_TIME = 1 << 20
_LINES = 8  # journal lines for each checkpoint that is kept, at most


_Read = tuple[Keep, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class _Line:
    round: int
    file: str
    blake2b: str


class Checkpoints:
    """The checkpoints of one peer in a run's folder. Not for two writers at once.

    Args:
        folder: the run's.
        name: the peer's, as its files are called.
        about: whose they are: one with other words, of another peer or of another scenario, is not read.
        last: how many to keep.
    """

    def __init__(self, folder: Path, name: str, about: Mapping[str, str], last: int) -> None:
        self._folder = folder / "checkpoints" / name
        self._journal = folder / f"journal-{name}.jsonl"
        self._about = dict(about)
        self._last = last
        self._lines = _read_journal(self._journal)
        self._torn = True  # for all we know: what was there is written anew before the first line is appended

    def rounds(self) -> list[int]:
        """After which rounds there are checkpoints, by the journal, in rising order."""
        return sorted(self._current())

    def write(self, kept: Keep, beside: Mapping[str, float]) -> None:
        """Put `kept` on disk, and figures `beside` it; returns when they are there. Raises BadInput if it cannot."""
        path = self._folder / f"round-{kept.round}.safetensors"
        parts = _encoded(kept, beside, self._about)
        write_durably(path, parts)
        self._append(_Line(kept.round, path.name, _digest(parts)))
        self._forget([r for r in self.rounds() if r <= kept.round][: -self._last])

    def read(self, round_: int) -> _Read | None:
        """What was written after `round_` rounds; None if it is not there, not whole, or not this peer's."""
        line = self._current().get(round_)
        return _decoded(self._folder / line.file, line, self._about) if line else None

    def rewind(self, round_: int) -> None:
        """Forget what was kept after later rounds than `round_`: the run goes on from there. Raises BadInput."""
        self._forget([r for r in self.rounds() if r > round_])
        self._rewrite()
        with writing(self._folder):
            for part in self._folder.glob("*.part-*"):  # of a process that was killed while it wrote
                part.unlink(missing_ok=True)

    def _current(self) -> dict[int, _Line]:
        """The last line of each round whose file was not taken away."""
        found = {line.round: line for line in self._lines}
        return {r: line for r, line in found.items() if (self._folder / line.file).exists()}

    def _forget(self, rounds: list[int]) -> None:
        with writing(self._folder):
            for round_ in rounds:
                (self._folder / f"round-{round_}.safetensors").unlink(missing_ok=True)

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        if self._torn or len(self._lines) > _LINES * self._last:
            self._rewrite()
            return
        with writing(self._journal), self._journal.open("ab") as out:
            out.write(_written(line))
            out.flush()
            os.fsync(out.fileno())

    def _rewrite(self) -> None:
        self._lines = sorted(self._current().values(), key=lambda line: line.round)
        write_durably(self._journal, b"".join(map(_written, self._lines)))
        self._torn = False


def _written(line: _Line) -> bytes:
    return json.dumps({"round": line.round, "file": line.file, "blake2b": line.blake2b}).encode() + b"\n"


def _read_journal(path: Path) -> list[_Line]:
    """Every whole line. One that is torn or broken was never there."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    return [line for line in map(_read_line, raw.split(b"\n")[:-1]) if line]


def _read_line(raw: bytes) -> _Line | None:
    try:
        said = json.loads(raw)
        line = _Line(said["round"], said["file"], said["blake2b"])
    except (ValueError, KeyError, TypeError):
        return None
    return line if type(line.round) is int and line.file == f"round-{line.round}.safetensors" else None


def _encoded(kept: Keep, beside: Mapping[str, float], about: Mapping[str, str]) -> list[Part]:
    arrays = {name: v for name, v in kept.state.items() if isinstance(v, np.ndarray)}
    plain = {name: v for name, v in kept.state.items() if name not in arrays}
    return tensor_parts(arrays, {**about, **_place(kept.round), "plain": json.dumps([plain, dict(beside)])})


def _decoded(path: Path, line: _Line, about: Mapping[str, str]) -> _Read | None:
    """What `_encoded` wrote; None if it is something else. Nothing is read from a file with another digest."""
    try:
        with path.open("rb") as whole:  # piece by piece: a model's file is as large as the model
            if _digest(iter(lambda: whole.read(_AT_A_TIME), b"")) != line.blake2b:
                return None
        with safe_open(path, "np") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        return None
    if {k: v for k, v in metadata.items() if k != "plain"} != {**about, **_place(line.round)}:
        return None
    plain, beside = json.loads(metadata["plain"])
    return Keep(line.round, {**plain, **arrays}), beside


def _place(round_: int) -> dict[str, str]:
    return {"format": _FORMAT, "round": str(round_)}


def _digest(parts: Iterable[Part]) -> str:
    found = hashlib.blake2b(digest_size=32)
    for part in parts:
        found.update(part)
    return found.hexdigest()
