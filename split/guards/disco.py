"""Channels that a proxy of the attacker needs most do not leave (DISCO)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.split.guards.base import SPLIT_GUARDS, About, Outgoing
from veilmesh.split.guards.learning import Awaited, Perceptron, descend

__all__ = ["Disco"]

_TEMPERATURE = 1 / 30
"""Of the soft mask, as in the authors' benchmark."""


@SPLIT_GUARDS.register("disco")
@dataclass(frozen=True)
class Disco:
    """Set the share `ratio` of channels to zero, for each picture those that a learned filter picks.

    Singh et al., CVPR 2021, "DISCO: dynamic and invariant sensitive channel obfuscation for deep neural networks"
    (arXiv 2012.11025), section 3. The filter is trained for (1 - alpha) of the task and against alpha of a proxy
    adversary, a decoder of what leaves that is trained beside it; the head for the task alone. Of activations without
    places, (d,), every coordinate is a channel.

    Simpler than theirs: filter and decoder have one hidden layer each (`hidden`), where they have a ResNet-18 and
    upsampling blocks; the filter sees each channel's mean and spread over places, not the places; learning is by the
    straight-through estimate of the mask; and the decoder's loss is the squared error over the pixels' variance, so
    that 1 is an even grey on every task. A stronger attacker than the proxy is to be expected: the bound is what
    the dropped channels said, and what is learned is only which ones to drop. Nothing is learned where no gradient is
    asked for.
    """

    at: ClassVar[Literal["head", "labels"]] = "head"

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    hidden: Annotated[int, Field(ge=1)] = 64

    def start(self, about: About) -> Outgoing:
        return _AtWork(self, about)


class _AtWork:
    def __init__(self, options: Disco, about: About) -> None:
        self._options = options
        channels = about.activation[0]
        seen = channels * (2 if len(about.activation) > 1 else 1)
        sizes = int(np.prod(about.activation)), int(np.prod(about.picture))
        self._dropped = min(channels - 1, int(options.ratio * channels))
        self._filter = Perceptron((seen, options.hidden, channels), about.rng)
        self._decoder = Perceptron((sizes[0], options.hidden, sizes[1]), about.rng)
        self._steps = [torch.optim.Adam(p.parameters, options.rate) for p in (self._filter, self._decoder)]
        self._said: Awaited[tuple[Tensor, Tensor]] = Awaited()

    def outgoing(self, z: Tensor, x: Tensor) -> Tensor:
        for said, gradient in self._said.known():
            self._learn(*said, gradient)
        with torch.no_grad():
            mask = self._mask(z.detach())
        out = z * mask
        if self._dropped:
            self._said.follow(out, (z.detach(), x.detach()))
        return out

    def _mask(self, z: Tensor) -> Tensor:
        """(B, C, 1, ...): 0 for the channels with the lowest scores, else 1; learned from as if it were soft."""
        scores = self._filter(_channels(z))
        if not self._dropped:
            return torch.ones_like(scores).reshape(*scores.shape, *[1] * (z.ndim - 2))
        order = scores.sort(dim=1).values
        middle = (order[:, self._dropped - 1] + order[:, self._dropped])[:, None] / 2
        soft = ((scores - middle) / _TEMPERATURE).sigmoid()
        kept = torch.zeros_like(soft).scatter_(1, scores.topk(scores.shape[1] - self._dropped, dim=1).indices, 1.0)
        straight = kept + (soft - soft.detach())  # exactly `kept`: what is dropped must not leave, however faint
        return straight.reshape(*scores.shape, *[1] * (z.ndim - 2))

    @torch.enable_grad()
    def _learn(self, z: Tensor, x: Tensor, gradient: Tensor) -> None:
        alpha = self._options.alpha
        shown = z * self._mask(z)
        task = (gradient * shown).sum()  # to first order, what the mask does to the task's loss
        descend((1 - alpha) * task - alpha * self._leak(shown, x), self._filter.parameters, self._steps[0])
        descend(self._leak(shown.detach(), x), self._decoder.parameters, self._steps[1])

    def _leak(self, shown: Tensor, x: Tensor) -> Tensor:
        guess = self._decoder(shown.flatten(1)).sigmoid()
        truth = x.flatten(1)
        return (guess - truth).square().mean() / truth.var(correction=0).clamp_min(1e-6)


def _channels(z: Tensor) -> Tensor:
    """What the filter sees of each channel: (B, C) itself, or (B, 2C) mean and spread over places."""
    if z.ndim == 2:
        return z
    places = z.flatten(2)
    return torch.cat([places.mean(dim=2), places.std(dim=2, correction=0)], dim=1)
