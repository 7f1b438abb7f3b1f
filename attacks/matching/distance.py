"""How far a predicted gradient is from the one that was seen, with its derivative in closed form.

A distance is given gradients (P, d) of P candidates and returns values (P,) and derivatives (P, d): what follows
through the network is then one product, and the distance itself is never recorded.

Which distance fits follows from what stands between the gradient and its observer: the negative logarithm of how likely
the observed message is (Balunovic et al., ICLR 2022): Gaussian noise asks for squares, Laplacian noise for absolute
values, an unknown scale for the cosine.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Absolute", "Cosine", "Distance", "Squared"]


class Distance(Protocol):
    """A likelihood of what was observed, as a function of the gradient behind it."""

    def at(self, gradient: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Values (P,) and their derivatives (P, d) at `gradient` (P, d); `share` of the iterations are done, 0 to 1."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Cosine:
    """1 - cos(gradient, target), one cosine over all layers together (Geiping et al., arXiv 2003.14053, eq. 4).

    `target` (d,), of any length; coordinates where `mask` (d,) is 0 do not count. Derivatives are good until the next.
    """

    target: Tensor
    mask: Tensor | None = None
    _pulls: list[Tensor] = field(default_factory=list, init=False, repr=False)  # one, to be written into again

    def __post_init__(self) -> None:
        target = self.target if self.mask is None else self.target * self.mask
        object.__setattr__(self, "target", target / target.norm().clamp_min(1e-30))  # once, not in every iteration

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        gradient = gradient if self.mask is None else gradient * self.mask
        length = gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
        cosine = (gradient @ self.target).unsqueeze(1) / length
        if not self._pulls or self._pulls[0].shape != gradient.shape:
            self._pulls[:] = [torch.empty_like(gradient)]  # to ask for memory takes longer than to fill it
        pull = torch.mul(gradient, cosine / length.square(), out=self._pulls[0])
        pull.addcmul_(self.target.expand_as(gradient), -1 / length)
        return 1.0 - cosine.squeeze(1), pull  # what the mask hides is 0 in both


@dataclass(frozen=True, slots=True, eq=False)
class Squared:
    """`weight` (d,) times squared differences, summed, over the target's own: Euclidean matching, as in DLG (Zhu et
    al., arXiv 1906.08935)."""

    target: Tensor
    weight: Tensor | None = None

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        weight = torch.ones_like(self.target) if self.weight is None else self.weight
        scale = (weight * self.target.square()).sum(-1, keepdim=True).clamp_min(1e-30)
        error = gradient - self.target
        weighted = weight * error / scale
        return (weighted * error).sum(-1), 2 * weighted


@dataclass(frozen=True, slots=True, eq=False)
class Absolute:
    """Sum of absolute differences over the target's own: what Laplacian noise asks for; coordinates with `mask` (d,) 0
    do not count."""

    target: Tensor
    mask: Tensor | None = None

    def at(self, gradient: Tensor, share: float = 0.0) -> tuple[Tensor, Tensor]:
        mask = torch.ones_like(self.target) if self.mask is None else self.mask
        scale = (mask * self.target.abs()).sum(-1, keepdim=True).clamp_min(1e-30)
        error = mask * (gradient - self.target) / scale
        return error.abs().sum(-1), mask * error.sign() / scale
