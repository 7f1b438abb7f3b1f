"""Make a network, and go between it and the one flat vector that peers exchange.

A network is built on torch's meta device, where nothing is drawn, and its parameters then come from a named numpy
stream: the global generators are never touched, and the same seed gives the same bits with any release of torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from veilmesh.core import BadInput, LocalError, generator
from veilmesh.tasks.models.base import MODELS, Model, SelfDrawn, Shape
from veilmesh.tasks.models.layers import beginning
from veilmesh.tasks.work import Vector

__all__ = [
    "build_model", "check_fit", "initial_vector", "layout", "parameters_to_vector", "vector_to_parameters",
]  # fmt: skip

_MOST_PARAMETERS = 1 << 28


def build_model(name: str, options: Mapping[str, Any] | None, shape: Shape, classes: int, seed: int) -> nn.Module:
    """The network `name` for pictures of `shape` (C, H, W), float32 on the CPU, in train mode, drawn from `seed`.

    Raises BadInput on an unknown name or option, or a network that does not fit the pictures or one machine.
    """
    config = MODELS.build(name, options)
    if isinstance(config, SelfDrawn):
        model = config.draw(shape, classes, seed).train()
        _check_size(name, model)
        return model
    model = _outlined(name, config, shape, classes)
    _check_size(name, model)
    model = _unfilled(model).train()
    vector_to_parameters(model, _draw(config, model, seed))
    return model


def _unfilled(model: nn.Module) -> nn.Module:
    """`model` from the meta device on the CPU, its parameters and buffers not set: torch's `to_empty`, without the
    import of sympy on its way, which takes 30 MB in every process of every peer."""
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # type: ignore[no-untyped-call]  # torch's
    return model


def initial_vector(name: str, options: Mapping[str, Any] | None, shape: Shape, classes: int, seed: int) -> Vector:
    """The parameters (d,) that `build_model` begins with."""
    return parameters_to_vector(build_model(name, options, shape, classes, seed))


def parameters_to_vector(model: nn.Module) -> Vector:
    """A copy of all parameters, (d,), in the order of `layout`."""
    return np.concatenate([p.detach().cpu().numpy().reshape(-1) for p in model.parameters()]).astype(np.float32)


def vector_to_parameters(model: nn.Module, vector: Vector) -> None:
    """Write `vector` (d,) into the parameters of `model`, in place. Raises LocalError where d is not theirs."""
    size = sum(p.numel() for p in model.parameters())
    if vector.shape != (size,):
        raise LocalError(f"a vector of shape {vector.shape} does not fit a model of {size} parameters")
    source = torch.from_numpy(np.array(vector, dtype=np.float32))
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(source[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...], int]]:
    """Where each parameter lies in the flat vector: (name, shape, offset), in order."""
    rows: list[tuple[str, tuple[int, ...], int]] = []
    start = 0
    for name, parameter in model.named_parameters():
        rows.append((name, tuple(parameter.shape), start))
        start += parameter.numel()
    return rows


def check_fit(name: str, per_pixel: bool) -> None:
    """Whether the network answers what the task asks (`Dataset.per_pixel`). Raises BadInput if not."""
    if MODELS.get(name).per_pixel == per_pixel:
        return
    fitting = [other for other in MODELS.names() if MODELS.get(other).per_pixel == per_pixel]
    raise BadInput(
        f"model {name!r} does not name a class for every {'pixel' if per_pixel else 'picture'}, as this task asks; "
        f"use {' or '.join(fitting)}."
    )


def _outlined(name: str, config: Model, shape: Shape, classes: int) -> nn.Module:
    """The module without its numbers."""
    try:
        with torch.device("meta"):
            return config.build(shape, classes)
    except RuntimeError as error:  # torch's word for shapes that do not go together
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise BadInput(
            f"model {name!r} does not fit pictures of {'x'.join(map(str, shape))} ({why}); take fewer layers, less "
            "padding or larger pictures."
        ) from None


def _check_size(name: str, model: nn.Module) -> None:
    size = sum(p.numel() for p in model.parameters())
    if size > _MOST_PARAMETERS:
        raise BadInput(f"model {name!r} would have {size:,} parameters on these pictures; make it or them smaller.")


def _draw(config: Model, model: nn.Module, seed: int) -> Vector:
    """Each parameter as its layer begins (`layers.beginning`), or else uniform in [-bound(fan_in), bound(fan_in)],
    where a bias has the fan-in of its layer's weight."""
    rng = generator(seed, "init")
    fans = {name: int(np.prod(shape[1:])) for name, shape, _ in layout(model) if len(shape) > 1}
    pieces = []
    for name, shape, _ in layout(model):
        layer, _, own = name.rpartition(".")
        limits = beginning(model.get_submodule(layer), own)
        if limits is None:
            weight = name if name in fans else f"{layer}.weight"
            if weight not in fans:
                raise LocalError(f"no rule says how parameter {name!r} of {type(config).__name__} begins")
            bound = config.bound(fans[weight])
            limits = -bound, bound
        low, high = limits
        size = int(np.prod(shape))  # what is the same everywhere draws nothing: other layers begin alike without it
        pieces.append((np.full(size, low) if low == high else rng.uniform(low, high, size)).astype(np.float32))
    return np.concatenate(pieces)
