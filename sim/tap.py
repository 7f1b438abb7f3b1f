"""The run's tap: writes what reached a member to its transcript file, up to a budget."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

from veilmesh.peer.machine import Note
from veilmesh.peer.store import writing
from veilmesh.peer.transcript import END, Record, encode_record, end_of_records
from veilmesh.sim.cast import Cast, stem

__all__ = ["Tap"]


class Tap:
    """One member's transcript file. A context manager; use `for_member`."""

    def __init__(self, path: Path | None, budget: int, full: Callable[[], None], again: bool = False) -> None:
        self._path = path
        self._left = budget
        self._say_full = full
        self._out: BinaryIO | None = None
        self._again = again
        self.full = False

    @classmethod
    def for_member(
        cls, folder: Path, cast: Cast, index: int, full: Callable[[Note], None], again: bool = False
    ) -> Self:
        """The tap the scenario asks for at member `index`; one that keeps nothing where it asks for none.

        `full` is told, once, when its budget is spent: a transcript that ends early must not look whole.
        `again`: the run is taken up again, and its transcript goes on. What was heard of rounds that are done once more
        stands there twice; whoever reads a transcript takes the first of each.
        """
        path = folder / "transcript" / f"{stem(cast.names[index])}.records" if cast.keeps(index) else None
        budget = cast.scenario.transcript.max_bytes
        return cls(path, budget, lambda: full(Note("transcript-full", {"max_bytes": budget})), again)

    @property
    def keeps(self) -> bool:
        """Whether anything is to be kept."""
        return self._path is not None

    def keep(self, record: Record) -> None:
        """Write `record`, unless the budget is spent: then this one and all later ones are left out."""
        if self._path is None or self._out is None or self.full:
            return
        raw = encode_record(record)
        self._left -= len(raw)
        if self._left < 0:
            self.full = True
            self._say_full()
            return
        with writing(self._path):
            self._out.write(raw)

    def flush(self) -> None:
        """What was kept until now outlives this process."""
        if self._path and self._out:
            with writing(self._path):
                self._out.flush()

    def __enter__(self) -> Self:
        if self._path:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._out = self._path.open("r+b" if self._again and self._path.exists() else "wb")
                self._left -= self._out.seek(end_of_records(self._path))
                self._out.truncate()
        return self

    def __exit__(self, *error: object) -> None:
        if self._path and self._out:
            with writing(self._path):
                if not any(error):  # what was broken off stays without its end
                    self._out.write(END)
                self._out.close()
