"""Where in a public network a crafted model can be written: the layer that sees the picture, and what follows it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from veilmesh.attacks.network import LinearLayer, Network
from veilmesh.crypto.codecs.base import Vector

__all__ = ["Entrance", "entrance", "last_layer", "leaves", "write"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Entrance:
    """A fully connected layer whose input is offset + factor * picture, each (C*H*W,), the activation behind it, and
    the fully connected layer behind that, if these follow."""

    layer: LinearLayer
    offset: Floats
    factor: Floats
    activation: nn.Module | None
    next: LinearLayer | None


def entrance(network: Network) -> Entrance | None:
    """The first fully connected layer with a bias that is fed the picture itself; None where there is none."""
    layers = network.linear_layers()
    following = [module for _, module in leaves(network)]
    for at, layer in enumerate(layers):
        if layer.bias is None or (scale := network.picture_scale(layer)) is None:
            continue
        place = next(i for i, module in enumerate(following) if module is layer.module)
        activation = following[place + 1] if place + 1 < len(following) else None
        behind = layers[at + 1] if at + 1 < len(layers) and following[place + 2] is layers[at + 1].module else None
        return Entrance(layer, scale[0].astype(np.float64), scale[1].astype(np.float64), activation, behind)
    return None


def last_layer(network: Network) -> LinearLayer | None:
    """The fully connected layer that says the classes; None where it is missing or has no bias."""
    found = [layer for layer in network.linear_layers() if layer.module.out_features == network.classes]
    return found[-1] if found and found[-1].bias is not None else None


def leaves(network: Network) -> list[tuple[str, nn.Module]]:
    """The modules that contain no others, in order."""
    return [(name, module) for name, module in network.module.named_modules() if not list(module.children())]


def write(into: Vector, layer: LinearLayer, weight: Floats, bias: Floats) -> None:
    """Put `weight` (out, in) and `bias` (out,) into the flat vector, in place."""
    assert layer.bias is not None  # only layers with a bias are ever chosen
    into[layer.weight] = weight.reshape(-1)
    into[layer.bias] = bias
