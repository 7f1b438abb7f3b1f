"""How much of others' models was put together from what was told of them, beside what taking part alone gives."""

from collections.abc import Iterable

from veilmesh.sim.report.model import Attacked
from veilmesh.sim.report.numbers import NOTHING, percent
from veilmesh.sim.report.rows import Row
from veilmesh.sim.report.sections import Grid

__all__ = ["extracted"]

_HEAD = (
    "Attacker", "Run", "Put together", "Last proxy alone", "Owner's own", "Colluders' own", "Common beginning",
    "Error where shown (floor)", "Error where hidden (floor)",
)  # fmt: skip


def extracted(table: Iterable[Row]) -> Grid | None:
    """A row for every attack that put models together; None if there is none."""
    lines = [_line(row, row.attacked) for row in table if row.attacked and row.attacked.infers == "model"]
    return Grid(_HEAD, tuple(lines)) if lines else None


def _line(row: Row, attacked: Attacked) -> tuple[str, ...]:
    who = f"{attacked.called} from {row.attacker}" if row.attacker else attacked.called
    accuracies = (
        attacked.accuracy_rebuilt,
        attacked.accuracy_proxy,
        attacked.accuracy_owner,
        attacked.accuracy_colluders,
        attacked.accuracy_floor,
    )
    return (
        who,
        row.label,
        *(percent(value) for value in accuracies),
        _error(attacked.error_shown, attacked.error_shown_floor),
        _error(attacked.error_hidden, attacked.error_hidden_floor),
    )


def _error(value: float | None, floor: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if floor is None else f"{value:.3f} ({floor:.3f})"
