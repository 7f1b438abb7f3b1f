"""Who tells a victim's activations from those that a hijacker wants."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Critic", "critic_loss", "wanted_loss"]


class Critic(nn.Module):
    """Activations of `shape`, (C, h, w) or (d,), and their classes where they are told, to a figure: high for wanted.

    Places of activations are first made fewer by two convolutions of stride 2, where there are 8 or more a side.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 32) -> None:
        super().__init__()
        self._classes = classes
        self.places, size = nn.Sequential(), prod(shape)
        if len(shape) == 3 and min(shape[1:]) >= 8:
            self.places = nn.Sequential(
                nn.Conv2d(shape[0], width, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, 2, 1),
                nn.LeakyReLU(0.2),
            )  # fmt: skip
            size = width * prod(-(-side // 4) for side in shape[1:])
        self.whole = nn.Sequential(
            nn.Linear(size + classes, 4 * width), nn.LeakyReLU(0.2), nn.Linear(4 * width, 4 * width), nn.LeakyReLU(0.2),
            nn.Linear(4 * width, 1),
        )  # fmt: skip

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, ...) and, where they are told, (B,), to (B,)."""
        told = torch.zeros(len(z), self._classes) if labels is None else functional.one_hot(labels, self._classes)
        figure: Tensor = self.whole(torch.cat([self.places(z).flatten(1), told.to(z)], dim=1)).squeeze(1)
        return figure


def critic_loss(
    critic: nn.Module, wanted: Tensor, seen: Tensor, labels: Tensor | None, penalty: float | None,
    draws: torch.Generator,
) -> Tensor:  # fmt: skip
    """What the critic minimises, on as many `wanted` as `seen` activations (B, ...).

    With `penalty` the Wasserstein loss and the gradient's distance from 1 between the two, over all of an example's
    activations (Gulrajani et al. 2017, equation 3); without, the cross-entropy.
    """
    high, low = critic(wanted, labels), critic(seen, labels)
    if penalty is None:
        return functional.softplus(-high).mean() + functional.softplus(low).mean()
    share = torch.rand(len(seen), *[1] * (seen.ndim - 1), generator=draws)
    between = (share * wanted + (1 - share) * seen).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between, labels).sum(), between, create_graph=True)
    loss: Tensor = low.mean() - high.mean() + penalty * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    return loss


def wanted_loss(figures: Tensor, wasserstein: bool) -> Tensor:
    """What falls as activations look more wanted, by the critic's `figures` (B,) of them."""
    return -figures.mean() if wasserstein else functional.softplus(-figures).mean()
