"""Gradients with differential privacy: DP-SGD (Abadi et al. 2016, algorithm 1), example by example.

Every example's gradient is clipped to an L2 norm of at most `clip`, what is left is summed, noise of standard deviation
`noise` times `clip` is added, and the sum is divided by the batch size that was to be expected. Batches are Poisson
samples (`work.poisson_indices`), as the accountants of subsampling demand; their sizes are as private as the examples,
so nothing that leaves a trainer says how large one was.

The noise is numpy's, of a generator that reproduces and is no cipher, in floating point: what follows from the gaps
between floats (Mironov 2012) is not defended against.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.core.zerosum import Pair, zero_sum
from veilmesh.tasks.models.layers import BatchNorm
from veilmesh.tasks.work import Private

__all__ = ["Loss", "clipped_sum", "loss_of", "noise", "require_apart"]

Loss: TypeAlias = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""The loss of one example (C, H, W) and its label under named parameters: a scalar."""

_CHUNK = 64  # examples whose gradients are held at once


def require_apart(name: str, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raises BadInput if what `model` says of one picture (C, H, W) depends on others in the batch, as it does with
    batch normalisation: then no example has a gradient of its own that could be clipped."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mixing = any(isinstance(layer, BatchNorm | nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    if not mixing:
        (gradient,) = torch.autograd.grad(model(x)[0].square().sum(), x)
        mixing = bool(gradient[1].any())  # exactly nothing where examples are apart
    if mixing:
        raise BadInput(
            f"model {name!r} normalises over the batch, so no example has a gradient of its own that training.private "
            'could clip; take one that does not (norm = "group", "frozen" or "none"), or leave training.private out.'
        )


def loss_of(model: nn.Module) -> Loss:
    """Cross-entropy of one example under `model`, as a pure function. The model must treat examples one by one: no
    batch normalisation."""

    def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, dict(parameters), (x.unsqueeze(0),))
        return functional.cross_entropy(logits, y.unsqueeze(0))

    return loss


def clipped_sum(
    loss: Loss, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, drawn: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The sum (d,) of the examples' gradients, each clipped to `clip`, and their losses (B,).

    x: (B, C, H, W), y: (B, ...); `drawn` (B,) is 1 for those that count and 0 for padding, so that peers whose Poisson
    samples differ in size can go through one `torch.func.vmap` together. B >= 1.
    """
    per_example = vmap(grad_and_value(loss), in_dims=(None, 0, 0))
    total: Tensor | None = None
    losses = []
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        gradients, values = per_example(dict(parameters), x[part], y[part])
        flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
        scale = (clip / flat.norm(dim=1).clamp_min(1e-30)).clamp(max=1.0) * drawn[part]
        total = scale @ flat if total is None else total + scale @ flat
        losses.append(values)
    assert total is not None
    return total, torch.cat(losses)


def noise(private: Private, dimension: int, secret: int, pairs: Sequence[Pair], *name: str | int) -> Tensor:
    """What is added to the clipped sum (d,) of the step called `name`: the peer's own noise, drawn from `secret`, and
    what it shares with each of `pairs`, whose sum over all peers is nothing."""
    own = generator(secret, "private-noise", *name).standard_normal(dimension) * (private.noise * private.clip)
    if private.pair:
        own += zero_sum(pairs, dimension, "training", *name[1:]) * (private.pair * private.clip)
    return torch.from_numpy(own).to(torch.float32)
