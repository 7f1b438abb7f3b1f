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
        labels: (B, ...) as inferred; None where they are searched.
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
        if self.labels is None:
            y = leaves["labels"].softmax(2)
        else:
            y = self.labels.unsqueeze(0).expand(len(pictures), *self.labels.shape)
        predicted = self.predictor.predict(pictures, y, leaves.get("alpha"))
        distance, pull = self.distance.at(predicted.flat(), share)
        penalty = sum((prior(pictures) for prior in self.priors), torch.zeros_like(distance))
        outputs, pulls = list(predicted.pieces), predicted.split(pull)
        if penalty.requires_grad:
            outputs, pulls = [*outputs, penalty], [*pulls, torch.ones_like(penalty)]
        live = [(output, pull) for output, pull in zip(outputs, pulls, strict=True) if output.requires_grad]
        slopes = torch.autograd.grad(
            [output for output, _ in live],
            list(leaves.values()),
            [pull for _, pull in live],
            materialize_grads=True,
        )
        loss = torch.nan_to_num(distance + penalty.detach(), nan=torch.inf)
        return Evaluation(loss, distance, dict(zip(leaves, slopes, strict=True)))
