"""What inferences told: an AUC for each kind of model it was read from, beside what knowing nothing has."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from veilmesh.sim.report.model import Attacked, Inferred
from veilmesh.sim.report.numbers import NOTHING, percent
from veilmesh.sim.report.rows import Row

__all__ = ["InferredRow", "inferred"]


@dataclass(frozen=True, slots=True)
class InferredRow:
    """One inference from one kind of model, as it is shown; `above`: its whole interval is above chance's."""

    label: str
    attacker: str
    attack: str
    model: str
    auc: str
    interval: str
    chance: str
    accuracy: str
    hits: str
    above: bool


def inferred(table: Iterable[Row]) -> list[InferredRow]:
    """The rows of every inference that came to a figure, in the order of the runs."""
    return [shown for row in table if row.attacked for shown in _shown(row, row.attacked)]


def _shown(row: Row, attacked: Attacked) -> Iterator[InferredRow]:
    for model, figures in _kinds(attacked):
        if figures.auc is not None:
            above = (figures.auc_low or 0.0) > (figures.auc_floor_high or 1.0)
            yield InferredRow(
                row.label, row.attacker, attacked.called, model, f"{figures.auc:.3f}",
                _between(figures.auc_low, figures.auc_high), _between(figures.auc_floor_low, figures.auc_floor_high),
                percent(figures.accuracy_balanced), percent(figures.tpr_1), above,
            )  # fmt: skip


def _kinds(attacked: Attacked) -> list[tuple[str, Inferred]]:
    """Of members by kind of model; of a property there is one kind, the update."""
    if attacked.infers == "property":
        return [(str(attacked.options.get("what", "class")), attacked.told)] if attacked.told else []
    kinds = {"local": attacked.local, "marginalised": attacked.marginalised, "consensus": attacked.consensus}
    return [(name, figures) for name, figures in kinds.items() if figures]


def _between(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"{low:.3f} to {high:.3f}"
