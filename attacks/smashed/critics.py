"""Discriminators of activations and pictures, conditional on classes where these are known."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Critic", "belief", "disbelief"]


class Critic(nn.Module):
    """Whether activations or pictures of `shape`, (C, H, W) or (d,), are real: a logit (B,).

    Convolutions down to few places, their mean, and a projection on the class's own vector (Miyato and Koyama, ICLR
    2018); without classes the latter is left out.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 3:
            channels, side = int(shape[0]), min(int(shape[1]), int(shape[2]))
            while True:
                stride = 2 if side > 4 else 1
                layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.LeakyReLU(0.2)]
                channels, side = width, -(-side // stride)
                if stride == 1:
                    break
        else:
            layers = [nn.Flatten(), nn.Linear(int(np.prod(shape)), width), nn.LeakyReLU(0.2)]
            layers += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(width, 1)
        self.classes = nn.Parameter(torch.zeros(classes, width))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, ...) and, if known, classes (B,), to (B,)."""
        hidden = self.body(x)
        hidden = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden
        logits: Tensor = self.last(hidden)[:, 0]
        return logits if labels is None else logits + (self.classes[labels] * hidden).sum(dim=1)


def belief(logits: Tensor) -> Tensor:
    """How little `logits` (B,) take for real: the loss of whoever wants to be taken for it."""
    return functional.softplus(-logits).mean()


def disbelief(logits: Tensor) -> Tensor:
    """How much `logits` (B,) take for real."""
    return functional.softplus(logits).mean()
