"""Layer-wise cosine matching: every tensor's direction counts alike, however short its gradient is.

One cosine over all layers together (Inverting Gradients) is that of the layers with the longest gradients. In a network
that names every pixel those are the last ones, which hardly depend on the picture: a segmentation network that begins
small is matched to 1e-4 by a picture that has nothing of the true one. With a cosine for each tensor the first layers,
which see the pixels, have their say. Masks are searched with the pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.matching.descent import Adam
from veilmesh.attacks.matching.device import Device
from veilmesh.attacks.matching.invert import invert
from veilmesh.attacks.matching.prior import Prior, Smooth
from veilmesh.attacks.matching.recipe import Case, Labels, Recipe
from veilmesh.attacks.matching.space import Start
from veilmesh.attacks.view import ATTACKS, Guess, View

__all__ = ["LayerCosine", "LayerCosineInversion"]


@ATTACKS.register("layer-cosine")
@dataclass(frozen=True, slots=True)
class LayerCosineInversion:
    """Gradient inversion by one cosine a tensor, with total variation; what segmentation networks are inverted best by.

    Args:
        iterations: steps of one run.
        tv: weight of the total variation.
        rate: first step size, in units of the picture's range.
        restarts: runs from other starting pictures; the one with the lowest loss of its own is kept.
        trial: let the restarts compete for a tenth of the iterations only, and go on with the best.
        labels: "searched" with the pictures, "inferred" where pictures have labels, or "told", an easier setting.
        start: "noise", "grey", or random tiles that are repeated, "pattern-4" or "pattern-16".
        targets: at most so many rounds of each victim, the earliest exactly known ones first.
        device: what to compute on; auto is the fastest there is.
    """

    reconstructs: ClassVar[str] = "pictures"
    per_pixel: ClassVar[bool] = True

    iterations: Annotated[int, Field(ge=1)] = 400
    tv: Annotated[float, Field(ge=0)] = 0.05
    rate: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    trial: bool = False
    labels: Labels = "searched"
    start: Start = "noise"
    targets: Annotated[int, Field(ge=1)] = 1
    device: Device = "auto"

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        """As `Attack.run`; one number is drawn from `rng`."""
        return invert(view, Recipe.of(self, self._distance, self._priors, Adam(self.iterations, self.rate)), rng)

    def _distance(self, case: Case) -> "LayerCosine":
        return LayerCosine(case.gradient, [p.numel() for p in case.network.parameters], case.mask())

    def _priors(self, case: Case) -> list[Prior]:
        return [Smooth(self.tv)] if self.tv else []


class LayerCosine:
    """The mean over tensors of 1 - cos(gradient, target); a tensor of which nothing was seen, or all is masked, does
    not count."""

    def __init__(self, target: Tensor, sizes: list[int], mask: Tensor | None = None) -> None:
        """`target` (d,); `sizes`: how many coordinates each tensor has, in order; `mask` (d,): 0 does not count."""
        self._mask = mask
        tensor = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self._tensor = tensor.to(target.device)
        self._count = len(sizes)
        target = target if mask is None else target * mask
        lengths = self._sums((target * target).unsqueeze(0))[0].sqrt()
        self._known = (lengths > 0).to(target)
        self._target = target / lengths.clamp_min(1e-30)[self._tensor]

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        """As `Distance.at`."""
        gradient = gradient if self._mask is None else gradient * self._mask
        lengths = self._sums(gradient * gradient).sqrt().clamp_min(1e-20)
        cosines = self._sums(gradient * self._target) / lengths
        scale = self._known / self._known.sum().clamp_min(1)
        values = ((1 - cosines) * scale).sum(1)
        along = (cosines * scale / lengths.square())[:, self._tensor] * gradient
        pull = along - (scale / lengths)[:, self._tensor] * self._target
        return values, pull if self._mask is None else pull * self._mask

    def _sums(self, x: Tensor) -> Tensor:
        """(P, d) summed tensor by tensor, (P, T)."""
        return x.new_zeros(len(x), self._count).index_add_(1, self._tensor, x)
