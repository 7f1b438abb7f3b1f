"""A stereo photograph with its measured depth: segmentation that everybody has, with labels nobody drew."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veilmesh.tasks.data.assemble import Pool, assemble
from veilmesh.tasks.data.base import SOURCES, Dataset
from veilmesh.tasks.data.crops import by_area, cut, lively

__all__ = ["Depth"]

_SIZE = 32  # pixels, of a crop's side
_LEAST = 1 / 16  # share of a crop's pixels that each class has to have


@SOURCES.register("depth")
@dataclass(frozen=True, slots=True)
class Depth:
    """32x32 colour crops of scikit-image's motorcycle, each pixel near (1) or far (0) by its measured disparity.

    The Middlebury stereo data of 2014 (Scharstein et al.). Near is above the photograph's median disparity; a pixel
    without a measurement has that of the nearest one with. Only crops with both classes, a sixteenth of the pixels at
    least, are kept. Private and public crops do not overlap, but are of one photograph, as in `photos`.

    `label`: the "mask", or one class for a "picture": whether most of it is near. The pictures are the same, so the two
    can be compared. `limit`: use only so many training pictures.
    """

    label: Literal["mask", "picture"] = "mask"
    limit: Annotated[int, Field(ge=1)] | None = None

    def load(self) -> Dataset:
        """As `Source.load`; labels are (N, 32, 32), or (N,) where a picture has one."""
        from skimage.data import stereo_motorcycle  # a second of imports that only this task pays

        left, _, disparity = stereo_motorcycle()  # type: ignore[no-untyped-call]  # scikit-image is not typed
        near = _near(disparity)
        x = np.ascontiguousarray(cut(by_area(left, len(left)), _SIZE).transpose(0, 3, 1, 2), dtype=np.float32)
        masks = cut(near[..., None], _SIZE)[..., 0].astype(np.int64)
        share = masks.mean(axis=(1, 2))
        most = (share > 0.5).astype(np.int64)
        kept = np.flatnonzero(lively(x) & (share >= _LEAST) & (share <= 1 - _LEAST))
        y = masks if self.label == "mask" else most

        # By the same classes for both kinds of label, so that each part has the same pictures.
        pool = Pool(most[kept], lambda indices: (x[kept[indices]], y[kept[indices]]))
        return assemble("depth", pool, None, 2, self.limit, "scikit-image's photograph")


def _near(disparity: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(H, W) which pixels are nearer than the median one."""
    from scipy.ndimage import distance_transform_edt

    missing = ~np.isfinite(disparity)
    rows, columns = distance_transform_edt(missing, return_distances=False, return_indices=True)
    filled = disparity[rows, columns]
    return np.asarray(filled > np.median(filled))
