"""Tables of pictures as Hugging Face stores them: parquet with a column of encoded pictures and one of labels.

pyarrow is imported where a table is read: every process of every peer would pay its memory for tasks that have none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veilmesh.core import BadInput
from veilmesh.tasks.data.assemble import Pool, assemble
from veilmesh.tasks.data.base import Dataset, Labels, Pictures
from veilmesh.tasks.data.pictures import Look, Size, decode_picture, look_at
from veilmesh.tasks.work import Indices

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Columns", "choose_column", "is_picture", "labelled", "picture_bytes", "read_tables"]

_MOST_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Columns:
    """How to read a labelled table; None means: find out."""

    image: str | None = None
    label: str | None = None
    size: Size | None = None
    gray: bool | None = None


def read_tables(path: Path, prefer: str = "") -> "tuple[pa.Table, pa.Table | None]":
    """The training and the test table of `path`, a parquet file or a folder of them; no test table: divide the first.

    In a folder, the files named after `prefer` are meant if there are some; a name with "train" makes a training
    file, one with "test" or "val" a test file. Raises BadInput.
    """
    path = path.expanduser()
    if path.is_file():
        return _read([path]), None
    if not path.is_dir():
        raise BadInput(f"There is no file or folder {path}; give the path of a parquet file or of a folder of them.")
    files = sorted(path.rglob("*.parquet"))
    files = [file for file in files if prefer and file.name.startswith(prefer)] or files
    if not files:
        raise BadInput(f"The folder {path} holds no parquet file.")
    test = [file for file in files if _marked(file, "test")] or [file for file in files if _marked(file, "val")]
    train = [file for file in files if _marked(file, "train")]
    if train and test:
        return _read(train), _read(test)
    return _read(train or test or files), None


def choose_column(
    table: "pa.Table", wanted: str | None, fits: "Callable[[pa.DataType], bool]", kind: str, usual: str, where: str
) -> str:
    """The column that was `wanted`, or else the only one that fits, or else the fitting one with the usual name."""
    names = [field.name for field in table.schema if fits(field.type)]
    if wanted is not None:
        if wanted not in table.column_names:
            raise BadInput(f"{where} has no column {wanted!r}; it has {', '.join(table.column_names)}.")
        if wanted not in names:
            raise BadInput(
                f"The column {wanted!r} of {where} does not hold {kind}s but {table.schema.field(wanted).type}."
            )
        return wanted
    if len(names) != 1 and usual not in names:
        found = f"columns that may be: {', '.join(names)}" if names else f"columns: {', '.join(table.column_names)}"
        raise BadInput(f"It is not clear which column of {where} holds the {kind}s ({found}); name the {kind} column.")
    return names[0] if len(names) == 1 else usual


def is_picture(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold encoded pictures: bytes, or Hugging Face's struct of bytes and path."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def picture_bytes(column: "pa.ChunkedArray", index: int, where: str) -> bytes:
    """The encoded picture in row `index`. Raises BadInput where the row names a file instead of holding it."""
    cell = column[index].as_py()
    raw = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(raw, bytes):
        raise BadInput(f"Row {index} of {where} holds no picture; give a file that has its pictures inside.")
    return raw


def labelled(
    name: str, train: "pa.Table", test: "pa.Table | None", columns: Columns, limit: int | None, where: str,
    classes: int | None = None,
) -> Dataset:  # fmt: skip
    """The dataset of a table with one label a picture; classes are counted over every row if not given."""
    image = choose_column(train, columns.image, is_picture, "picture", "image", where)
    label = choose_column(train, columns.label, _is_label, "label", "label", where)
    names = _names(train, label)
    strata = _labels(train, label, names, classes, where)
    if not len(strata):
        raise BadInput(f"{where} holds no picture.")
    look = look_at(picture_bytes(train[image], 0, where), columns.size, columns.gray, f"row 0 of {where}")
    pool = _pool(train, image, strata, look, where)
    test_pool = None
    if test is not None:
        _require_columns(test, (image, label), where)
        test_strata = _labels(test, label, names, classes, where)
        test_pool = _pool(test, image, test_strata, look, f"the test part of {where}")
        strata = np.concatenate([strata, test_strata])
    return assemble(name, pool, test_pool, classes or int(strata.max()) + 1, limit, where)


def _pool(table: "pa.Table", image: str, strata: Labels, look: Look, where: str) -> Pool:
    column = table[image]

    def take(indices: Indices) -> tuple[Pictures, Labels]:
        x = np.empty((len(indices), 1 if look.gray else 3, look.height, look.width), dtype=np.float32)
        for place, index in enumerate(indices.tolist()):
            x[place] = decode_picture(picture_bytes(column, index, where), look, f"row {index} of {where}")
        return x, strata[indices]

    return Pool(strata, take)


def _read(files: Sequence[Path]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file in files:
        try:
            tables.append(pq.ParquetFile(file, page_checksum_verification=True).read())
        # Arrow's own errors are ArrowExceptions; damaged metadata may also come out as a plain ValueError or OSError.
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise BadInput(f"{file} is not a whole parquet file ({type(error).__name__}).") from None
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException:
        raise BadInput(f"{files[0]} and the files beside it do not have the same columns.") from None


def _marked(file: Path, word: str) -> bool:
    return word in file.name.lower() or word == file.parent.name.lower()


def _is_label(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names(table: "pa.Table", label: str) -> list[str] | None:
    """The class names of a column of text, sorted; None for a column of numbers."""
    if not _is_text(table.schema.field(label).type):
        return None
    return sorted({value for value in table[label].to_pylist() if value is not None})


def _labels(table: "pa.Table", label: str, names: list[str] | None, classes: int | None, where: str) -> Labels:
    values = table[label].to_pylist()
    known = None if names is None else {name: number for number, name in enumerate(names)}
    most = classes or _MOST_CLASSES
    numbers = [value if known is None else known.get(value, -1) for value in values]
    for row, number in enumerate(numbers):
        if not isinstance(number, int) or not 0 <= number < most:
            raise BadInput(
                f"Row {row} of {where} has the label {values[row]!r} in column {label!r}, which is not one of "
                f"{most} classes at most; leave such rows out or name another label column."
            )
    return np.array(numbers, dtype=np.int64)


def _require_columns(table: "pa.Table", columns: tuple[str, ...], where: str) -> None:
    for column in columns:
        if column not in table.column_names:
            raise BadInput(f"The test part of {where} has no column {column!r}, which the training part has.")
