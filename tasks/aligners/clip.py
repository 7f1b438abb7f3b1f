"""CLIP's zero-shot labels, as GradientHide has them, where a user has the weights on disk. Nothing is downloaded.

label(x) = argmax over classes c of cos(image encoder(x), text encoder("a photo of a c")) (Radford et al., 2021); the
confidence is the softmax of the cosines over CLIP's own temperature.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilmesh.core import BadInput
from veilmesh.tasks.aligners.base import ALIGNERS, Aligned
from veilmesh.tasks.data.base import Labels, Pictures

__all__ = ["Clip"]

_AT_ONCE: Final = 64  # pictures, in memory


@ALIGNERS.register("clip")
@dataclass(frozen=True, slots=True)
class Clip:
    """Zero-shot labels by CLIP (package transformers, weights from a folder of this machine).

    Args:
        path: a folder with a CLIP model as transformers saves one, its weights as safetensors.
        names: what the task's classes are called, in order: "airplane", "automobile", ...
        prompt: what a picture of a class is called; {} is the name.
    """

    path: Path
    names: tuple[str, ...]
    prompt: str = "a photo of a {}"

    def align(self, x: Pictures, y: Labels, classes: int) -> Aligned:
        """As `Aligner.align`; uses none of `y`. Raises BadInput where the package, the weights or a name is missing."""
        if y.ndim > 1:
            raise BadInput("aligner 'clip' labels pictures, and in this task pixels have labels; take 'given'.")
        if len(self.names) != classes:
            raise BadInput(f"aligner 'clip' has {len(self.names)} names for {classes} classes; give one for each.")
        model, processor = self._load()
        found = np.concatenate([self._posterior(model, processor, x[at : at + _AT_ONCE]) for at in _starts(len(x))])
        return Aligned(found.argmax(axis=1).astype(np.int64), found.max(axis=1))

    def _load(self) -> tuple[Any, Any]:
        if not self.path.is_dir():
            raise BadInput(f"There is no folder {self.path} with CLIP's weights; check path, or take 'class-means'.")
        try:
            transformers = importlib.import_module("transformers")  # seconds of imports that only this aligner pays
        except ImportError:
            raise BadInput(
                "aligner 'clip' needs the package transformers; pip install transformers, or take 'class-means'."
            ) from None
        try:  # of the disk alone, and no pickles
            model = transformers.CLIPModel.from_pretrained(self.path, local_files_only=True, use_safetensors=True)
            return model.eval(), transformers.CLIPProcessor.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise BadInput(f"{self.path} holds no CLIP model that can be read: {why.rstrip('.')}.") from None

    def _posterior(self, model: Any, processor: Any, x: Pictures) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(n, K) of some pictures (n, C, H, W)."""
        import torch  # as in class_means

        colour = np.moveaxis(np.repeat(x, 3 // x.shape[1], axis=1), 1, -1)
        pictures = list(np.round(colour * 255).astype(np.uint8))
        asked = processor(
            text=[self.prompt.format(name) for name in self.names], images=pictures, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            return np.asarray(model(**asked).logits_per_image.double().softmax(1).numpy())


def _starts(n: int) -> range:
    return range(0, n, _AT_ONCE)
