"""Any data set of labelled pictures on the Hugging Face hub, by name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.data.pictures import Size
from veilmesh.tasks.data.tables import Columns, labelled

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Hub"]


@SOURCES.register("hub")
@dataclass(frozen=True, slots=True)
class Hub:
    """Labelled pictures from the Hugging Face hub, by name, as in "ylecun/mnist"; needs the extra `veilmesh[hub]`.

    `subset`: the configuration, where there are several. The other options are those of the task "parquet".
    """

    dataset: str
    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    size: Size | None = None
    gray: bool | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    def load(self) -> Dataset:
        """As `Source.load`; BadInput also where the hub cannot be reached or does not have the data set."""
        splits = _fetch(self.dataset, self.subset)
        where = f"the hub's data set {self.dataset}"
        if not splits:
            raise BadInput(f"{where} holds no pictures.")
        train = splits.get("train") or next(iter(splits.values()))
        test = splits.get("test") or splits.get("validation")
        columns = Columns(self.image_column, self.label_column, self.size, self.gray)
        apart = test is not None and test is not train
        return labelled(self.dataset, _table(train), _table(test) if apart else None, columns, self.limit, where)


def _fetch(name: str, subset: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        raise BadInput("The task 'hub' needs one more package; install it by: pip install 'veilmesh[hub]'") from None
    try:
        return dict(datasets.load_dataset(name, subset))
    except (OSError, ValueError, RuntimeError, LookupError, datasets.exceptions.DatasetsError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"The hub's data set {name!r} cannot be fetched ({why}); check its name and your network."
        ) from None


def _table(split: Any) -> "pa.Table":
    """A split as an arrow table: its pictures stay encoded, so that they are decoded like any other's."""
    return split.with_format("arrow")[:]
