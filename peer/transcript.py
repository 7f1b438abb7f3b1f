"""What crossed the wire, as the run's tap wrote it down: the raw material of every View.

A record is written where a frame arrives, by the peer that got it. It holds the sealed frame as a wire-tapper would
see it and, because its writer could open it, the body. Which of the two an adversary sees is decided by its vantage.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from veilmesh.core import BadInput
from veilmesh.peer.machine import PeerId

__all__ = ["END", "Record", "encode_record", "end_of_records", "read_transcript", "write_records"]

END = bytes(4)
"""How a transcript file ends: a record of no bytes. A file without it was cut off, wherever that was."""


@dataclass(frozen=True, slots=True)
class Record:
    """One frame at its receiver: when (seconds since the run began), from whom, to whom, and what."""

    now: float
    at: PeerId
    sender: PeerId
    to: PeerId
    size: int  # bytes of the sealed frame
    frame: bytes | None
    body: bytes | None

    def as_seen(self, *, body: bool, frame: bool) -> Self:
        """The same record without what its observer cannot see."""
        return replace(self, body=self.body if body else None, frame=self.frame if frame else None)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records to `path`: each is a 4-byte big-endian length and a msgpack array; then END."""
    with path.open("wb") as out:
        for record in records:
            out.write(encode_record(record))
        out.write(END)


def encode_record(record: Record) -> bytes:
    """One record as bytes of a transcript file."""
    raw = msgspec.msgpack.encode(record)
    return len(raw).to_bytes(4, "big") + raw


def end_of_records(path: Path) -> int:
    """Where the last whole record of a transcript file ends: what follows is the END, or was cut off."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while (length := int.from_bytes(file.read(4), "big")) and at + 4 + length <= size:
            at = file.seek(length, os.SEEK_CUR)
    return at


def read_transcript(
    folder: Path, members: Collection[str] | None = None, unfinished: Collection[str] = ()
) -> Iterator[Record]:
    """Every record of `members` (all of them: None), file by file.

    A file ends where its writer says so; that of an `unfinished` member, which was killed, ends where it ends. Raises
    BadInput if nothing was kept, or a file is cut off.
    """
    if not any(folder.glob("*.records")):
        raise BadInput(f"{folder} holds no transcript; run with transcript.keep set to 'controlled' or 'all'.")
    for file in sorted(folder.glob("*.records")):
        if members is None or file.stem in members:
            yield from _read_file(file, whole=file.stem not in unfinished)


def _read_file(file: Path, whole: bool) -> Iterator[Record]:
    raw = file.read_bytes()
    at = 0
    while raw[at : at + len(END) + 1] != END:
        size = int.from_bytes(raw[at : at + 4], "big")
        chunk = raw[at + 4 : at + 4 + size]
        if not chunk or len(chunk) != size:
            if not whole:
                return
            raise BadInput(f"The transcript {file} is cut off; delete the run and run it again.")
        yield _decode(chunk, file)
        at += 4 + size


def _decode(raw: bytes, file: Path) -> Record:
    try:
        return msgspec.msgpack.decode(raw, type=Record)
    except msgspec.DecodeError as error:
        raise BadInput(f"The transcript {file} holds no records ({error}); delete the run and run it again.") from None
