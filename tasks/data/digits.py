"""Handwritten digits that come with scikit-learn."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from veilmesh.tasks.data.assemble import Pool, assemble
from veilmesh.tasks.data.base import SOURCES, Dataset

__all__ = ["Digits"]


@SOURCES.register("digits")
@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 handwritten digits, 8x8 gray, 10 classes; comes with scikit-learn, so nothing is downloaded.

    `limit`: use only so many training pictures.
    """

    limit: Annotated[int, Field(ge=1)] | None = None

    def load(self) -> Dataset:
        """As `Source.load`: 60 % training, 20 % test, 20 % public."""
        pixels, labels = _read()
        x = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
        return assemble("digits", Pool.of(x, labels.astype(np.int64)), None, 10, self.limit, "scikit-learn's set")


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 64), 0 to 16, and labels (1797,), from the file in the package that scikit-learn is.

    Importing it instead takes a second, and 60 MB in every process of every peer.
    """
    spec = find_spec("sklearn")
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="ascii") as lines:
                table = np.loadtxt(lines, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits  # a release that keeps it elsewhere

    bunch = load_digits()
    return bunch.data, bunch.target
