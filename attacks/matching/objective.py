"""What a search minimises: the distance of the predicted to the observed update, plus what pictures are like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veilmesh.attacks.matching.descent import Evaluation
from veilmesh.attacks.matching.distance import Distance
from veilmesh.attacks.matching.predict import Predictor
from veilmesh.attacks.matching.prior import Prior
from veilmesh.attacks.matching.space import Space

__all__ = ["Matching"]


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """An objective over `x`, and where they are searched too, over `labels` (logits) and `alpha`.

    Args:
        predictor, distance, priors, space: what they say.
        labels: (P, B, ...) as inferred; None where they are searched.
    """

    predictor: Predictor
    distance: Distance
    priors: Sequence[Prior]
    space: Space
    labels: Tensor | None

    def __call__(self, values: Mapping[str, Tensor], share: float) -> Evaluation:
        """Losses, distances and derivatives at `values`."""
        leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
        pictures = self.space.pictures(leaves["x"])
        y = leaves["labels"].softmax(2) if self.labels is None else self.labels
        predicted = self.predictor.predict(pictures, y, leaves.get("alpha"))
        distance, pull = self.distance.at(predicted.gradient, share)
        penalty, slopes = self._penalty(pictures, leaves)
        moved = predicted.back(pull, list(leaves.values()))
        slopes = [slope + more for slope, more in zip(slopes, moved, strict=True)]
        loss = torch.nan_to_num(distance + penalty, nan=torch.inf)
        return Evaluation(loss, distance, dict(zip(leaves, slopes, strict=True)))

    def _penalty(self, pictures: Tensor, leaves: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What the priors come to, (P,), and their derivatives; before the prediction's, whose way back ends the
        pictures' history."""
        total = sum((prior(pictures) for prior in self.priors), pictures.new_zeros(len(pictures)))
        if not total.requires_grad:
            return total, [torch.zeros_like(leaf) for leaf in leaves.values()]
        ones = torch.ones_like(total)
        slopes = torch.autograd.grad(total, list(leaves.values()), ones, materialize_grads=True, retain_graph=True)
        return total.detach(), list(slopes)
