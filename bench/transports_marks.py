"""What the rows of `bench_transports` came to, and what is aimed at: its tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from transports_running import Measured  # beside this file

__all__ = ["Found", "Mark", "judged", "share", "table"]


@dataclass(slots=True)
class Found:
    """What the passes of a row came to: by megabytes; 0: the small messages."""

    passes: dict[float, list[Measured]] = field(default_factory=dict)
    why: str = ""  # it was left out, or stopped

    def median(self, size: float, of: str) -> float | None:
        """The median of a figure over the passes."""
        values = [value for one in self.passes.get(size, ()) if (value := getattr(one, of)) is not None]
        return statistics.median(values) if values else None

    def best(self, size: float) -> float | None:
        """The most MB/s of any pass."""
        return max((one.speed for one in self.passes.get(size, ()) if one.speed), default=None)


@dataclass(frozen=True, slots=True)
class Mark:
    """What is aimed at, and what came out; `wanted` None: nothing is, it is only said. `got` None: not measured."""

    what: str
    got: float | None
    wanted: float | None = None
    at_most: bool = False

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As a row of a table."""
        if self.wanted is None:
            return self.what, "", shown(self.got, 2), ""
        sign = "<=" if self.at_most else ">="
        return self.what, f"{sign} {self.wanted:g}", shown(self.got, 2), self._holds(self.wanted)

    def _holds(self, wanted: float) -> str:
        if self.got is None:
            return "not measured"
        return "yes" if (self.got <= wanted if self.at_most else self.got >= wanted) else "NO"


def share(found: Mapping[str, Found], one: str, other: str, size: float, of: str = "speed") -> float | None:
    """A figure of `one` as a part of the same of `other` in the same pass: the median over passes."""
    if one not in found or other not in found:
        return None
    pairs = zip(found[one].passes.get(size, ()), found[other].passes.get(size, ()), strict=False)
    parts = [getattr(mine, of) / getattr(its, of) for mine, its in pairs if getattr(its, of)]
    return statistics.median(parts) if parts else None


def table(found: Mapping[str, Found], sizes: Sequence[float]) -> Table:
    """What the rows came to."""
    made = Table(box=box.SIMPLE_HEAD, title="payloads, process to process on this machine", title_justify="left")
    made.add_column("")
    for size in sizes:
        made.add_column(f"{size:g} MB\nMB/s", justify="right")
        made.add_column("best\nMB/s", justify="right")
        made.add_column("CPU\ns/GB", justify="right")
    made.add_column("RTT\nms", justify="right")
    reasons = any(row.why for row in found.values())
    if reasons:
        made.add_column("", max_width=44)
    for name, row in found.items():
        cells = [name]
        for size in sizes:
            cells += [shown(row.median(size, "speed"), 0), shown(row.best(size), 0), shown(row.median(size, "cpu"), 1)]
        made.add_row(*cells, shown(row.median(0.0, "trip"), 2), *([row.why] if reasons else ()))
    return made


def judged(made: Sequence[Mark]) -> Table:
    """The marks, as a table."""
    shows = Table(box=box.SIMPLE_HEAD, title="marks", title_justify="left")
    for head in ("", "wanted", "got", "holds"):
        shows.add_column(head, justify="right" if head else "left")
    for mark in made:
        shows.add_row(*mark.cells)
    return shows


def shown(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
