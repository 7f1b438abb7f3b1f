"""CamVid: street scenes with a class for every pixel."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from veilmesh.core import BadInput
from veilmesh.tasks.data.assemble import Pool, assemble
from veilmesh.tasks.data.base import SOURCES, Dataset, Labels, Pictures
from veilmesh.tasks.data.pictures import Look, Size, decode_mask, decode_picture, look_at
from veilmesh.tasks.data.tables import choose_column, is_picture, picture_bytes, read_tables
from veilmesh.tasks.work import Indices

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Camvid"]


@SOURCES.register("camvid")
@dataclass(frozen=True, slots=True)
class Camvid:
    """Street scenes with a class for every pixel (segmentation), from parquet files with pictures and masks.

    `path`: a parquet file, which is divided, or a folder with a train and a test (or val) file. `size`: resize to a
    square of this side or to [height, width]. `classes`: how many; as many as the masks show if not given. `limit`: use
    only so many training pictures. `label`: the "mask", or one class for a "picture": that which most of it has.
    """

    path: Path
    size: Size | None = None
    image_column: str = "image"
    mask_column: str = "mask"
    classes: Annotated[int, Field(ge=2, le=256)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    label: Literal["mask", "picture"] = "mask"

    def load(self) -> Dataset:
        """As `Source.load`; labels are (N, H, W), or (N,) where a picture has one."""
        train, test = read_tables(self.path, prefer="camvid")
        where = str(self.path)
        for table in (train, test) if test is not None else (train,):
            choose_column(table, self.image_column, is_picture, "picture", "image", where)
            choose_column(table, self.mask_column, is_picture, "mask", "mask", where)
        if not train.num_rows:
            raise BadInput(f"{where} holds no picture.")
        first = picture_bytes(train[self.image_column], 0, where)
        look = look_at(first, self.size, False, f"row 0 of {where}")
        pool = self._pool(train, look, where)
        test_pool = self._pool(test, look, f"the test part of {where}") if test is not None else None
        return assemble("camvid", pool, test_pool, self.classes, self.limit, where)

    def _pool(self, table: "pa.Table", look: Look, where: str) -> Pool:
        images, masks = table[self.image_column], table[self.mask_column]

        def take(indices: Indices) -> tuple[Pictures, Labels]:
            x = np.empty((len(indices), 3, look.height, look.width), dtype=np.float32)
            y = np.empty((len(indices), look.height, look.width), dtype=np.int64)
            for place, index in enumerate(indices.tolist()):
                row = f"row {index} of {where}"
                x[place] = decode_picture(picture_bytes(images, index, where), look, row)
                y[place] = decode_mask(picture_bytes(masks, index, where), look, row)
                self._require_known(y[place], row)
            return x, y if self.label == "mask" else np.array([np.bincount(m.ravel()).argmax() for m in y], np.int64)

        return Pool(np.zeros(table.num_rows, dtype=np.int64), take)

    def _require_known(self, mask: Labels, row: str) -> None:
        if self.classes is not None and mask.max() >= self.classes:
            raise BadInput(f"The mask in {row} names class {mask.max()}, which is not one of {self.classes}.")
