"""The victim's network as everybody can build it: parameters in, gradients and the inputs of its layers out.

Torch lives here and in `inversion/`; importing `veilmesh.attacks` alone does not load it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.tasks.models import MODELS
from veilmesh.tasks.models.build import build_model, layout, vector_to_parameters
from veilmesh.tasks.models.layers import BatchNorm

__all__ = ["LinearLayer", "Network"]

Pictures = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """Where a fully connected layer lies in the flat vector; `bias` is None if it has none."""

    name: str
    module: nn.Linear
    weight: slice
    bias: slice | None

    def weight_of(self, x: NDArray[np.generic]) -> NDArray[np.float64]:
        """The layer's (out, in) part of a flat vector (d,)."""
        return x[self.weight].reshape(self.module.out_features, self.module.in_features).astype(np.float64)

    def bias_of(self, x: NDArray[np.generic]) -> NDArray[np.float64] | None:
        """The layer's (out,) part of a flat vector (d,), or None."""
        return None if self.bias is None else x[self.bias].astype(np.float64)


class Network:
    """One module that is loaded with other parameters again and again. Not for two threads at once.

    Raises BadInput where the network names a class for every pixel: its labels are pictures, which no attack here
    infers.
    """

    def __init__(self, public: Public, device: torch.device | None = None, per_pixel: bool = False) -> None:
        """`device`: where it computes; None is the CPU. `per_pixel`: whether networks that name pixels are welcome."""
        options = dict(public.model)
        name = str(options.pop("name"))
        self.per_pixel = MODELS.get(name).per_pixel
        if self.per_pixel and not per_pixel:
            raise BadInput(
                f"The inversion attacks need one label for a picture, and model {name!r} has one for every pixel."
            )
        self.shape = public.shape
        self.classes = public.classes
        self.device = device or torch.device("cpu")
        self.module = build_model(name, options, public.shape, public.classes, seed=0).to(self.device)
        self.parameters = list(self.module.parameters())
        self._places = {name: slice(at, at + int(np.prod(size))) for name, size, at in layout(self.module)}
        self._sizes = [p.numel() for p in self.parameters]

    def load(self, parameters: Vector) -> None:
        """Take on `parameters` (d,)."""
        vector_to_parameters(self.module, parameters)

    def linear_layers(self) -> list[LinearLayer]:
        """The fully connected layers, first to last."""
        return [
            LinearLayer(name, module, self._places[f"{name}.weight"], self._places.get(f"{name}.bias"))
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def gradient(self, pictures: Pictures, labels: NDArray[np.int64]) -> Vector:
        """The gradient (d,) of the mean cross-entropy on `pictures` (B, C, H, W) and `labels` (B,)."""
        x, y = torch.from_numpy(pictures).to(self.device), torch.from_numpy(labels).to(self.device)
        loss = functional.cross_entropy(self.module(x), y)
        return np.concatenate([g.cpu().numpy().reshape(-1) for g in torch.autograd.grad(loss, self.parameters)])

    def picture_scale(self, layer: LinearLayer) -> tuple[Vector, Vector] | None:
        """(offset, factor), each (C*H*W,), where the layer's input is offset + factor * picture; None if it is not.

        Found by asking: the layer's input is read at black, white and noise, so no normalisation needs to be known.
        """
        levels = (torch.full((1, *self.shape), level, device=self.device) for level in (0.0, 1.0))
        black, white = (self._input_of(layer, level).cpu() for level in levels)
        noise = torch.from_numpy(generator(0, "probe").random((1, *self.shape), dtype=np.float32))
        factor = white - black
        if black.numel() != noise.numel() or not bool((factor != 0).all()):
            return None
        seen = self._input_of(layer, noise.to(self.device)).cpu()
        straight = torch.allclose(seen, black + factor * noise.reshape(-1), atol=1e-4)
        return (black.numpy(), factor.numpy()) if straight else None

    def _input_of(self, layer: LinearLayer, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return self._inputs_of([layer.module], pictures)[0].reshape(-1)

    def answers(self, count: int) -> tuple[int, ...]:
        """The shape of what the network says of `count` pictures: (B, K), or (B, K, H, W) where it names pixels."""
        with torch.no_grad():
            return (count, *self.module(torch.zeros(1, *self.shape, device=self.device)).shape[1:])

    def features(self, x: Tensor) -> Tensor:
        """What enters the last fully connected layer, (B, F), for pictures `x` (B, C, H, W); differentiable."""
        return self._inputs_of([self.linear_layers()[-1].module], x)[0].flatten(1)

    def statistics(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The (mean, variance), each (C,), that every batch normalisation meets on the batch `x` (B, C, H, W), first to
        last; differentiable."""
        layers = [module for module in self.module.modules() if isinstance(module, BatchNorm)]
        met = [torch.var_mean(seen, dim=(0, 2, 3), unbiased=False) for seen in self._inputs_of(layers, x)]
        return [(mean, variance) for variance, mean in met]

    def exchanged_statistics(self, said: Tensor | None) -> Tensor | None:
        """`said` (d,), without the running statistics of batch normalisations: they are exchanged like parameters, but
        are no gradient of the loss. None where everything counts."""
        places = [p for name, p in self._places.items() if name.rpartition(".")[2] in ("running_mean", "running_var")]
        if not places:
            return said
        mask = torch.ones(sum(self._sizes), device=self.device) if said is None else said.clone()
        for place in places:
            mask[place] = 0
        return mask

    def _inputs_of(self, modules: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """What enters each of `modules` when the network is asked about `x`; differentiable."""
        seen: dict[int, Tensor] = {}
        handles = [
            module.register_forward_pre_hook(lambda _, inputs, at=at: seen.__setitem__(at, inputs[0]))
            for at, module in enumerate(modules)
        ]
        try:
            self.module(x)
        finally:
            for handle in handles:
                handle.remove()
        return [seen[at] for at in range(len(modules))]

    def split(self, flat: Tensor) -> Iterator[Tensor]:
        """A flat vector (d,) as tensors of the parameters' shapes, in order."""
        for piece, like in zip(torch.split(flat, self._sizes), self.parameters, strict=True):
            yield piece.view_as(like)
