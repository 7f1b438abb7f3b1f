"""A run as a log: one JSON object a line, for collectors. It takes the place of the display."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

__all__ = ["JsonLog"]


class JsonLog:
    """Writes what it is told by `tell` to standard error, with the time of day. A context manager, as `Display`."""

    accuracy: float | None = None  # a log draws no conclusions

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.flush()

    def tell(self, title: str, event: Mapping[str, Any]) -> None:
        """What the run `title` reports. `waiting` is for those who watch a screen."""
        if event.get("note") == "waiting":
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run": title, **event}
        sys.stderr.write(json.dumps(line, default=str) + "\n")
