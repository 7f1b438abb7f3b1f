"""Gradient suppression: parameters from which nobody's training says anything, but for the last layer's biases.

Pasquini, Francati and Ateniese, arXiv 2111.07380 (Eluding secure aggregation), section 4: whoever hands out models
gives the victim an honest one and everybody else one whose ReLUs never fire. What they add to a sum over the group is
then zero in every coordinate but the last layer's biases, and the sum is the victim's update: masks do not help.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from veilmesh.attacks.network import Network
from veilmesh.attacks.payloads.base import PAYLOADS
from veilmesh.attacks.payloads.places import last_layer, leaves
from veilmesh.attacks.view import Public
from veilmesh.core import BadInput, generator
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.tasks.models.build import layout

__all__ = ["Suppression", "spoken"]

Floats = NDArray[np.float64]


@PAYLOADS.register("suppression")
@dataclass(frozen=True, slots=True)
class Suppression:
    """Kill the ReLUs before the last layer, so that an update has nothing but the last biases in it (suppression).

    For everybody in a group but the victim. The biases are far enough below zero for any picture in [0, 1].

    Args:
        margin: how far below zero the units stay at least; further survives more steps of somebody else's training.
    """

    margin: Annotated[float, Field(gt=0)] = 1.0

    def craft(self, public: Public, start: Vector, rng: np.random.Generator) -> Vector:
        """As `Payload.craft`."""
        network = Network(public)
        network.load(start)
        name = _before_the_last_relu(network)
        crafted = start.copy()
        for parameter, shape, at in layout(network.module):
            if name is not None and parameter == f"{name}.bias":
                crafted[at : at + shape[0]] = -(self._reach(network, name) + self.margin)
        if name is None or not _silent(network, crafted):
            raise BadInput(
                "Suppression needs a ReLU whose death cuts every layer before the last one off, and this network has "
                "none; take mlp or convnet with activation relu."
            )
        return crafted

    def _reach(self, network: Network, name: str) -> Floats:
        """How far above zero each unit (out,) of layer `name` can come without its bias, for pictures in [0, 1]."""
        bound = 1.0
        for at, module in leaves(network):
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            weight = module.weight.detach().double().numpy()
            reach = np.abs(weight.reshape(len(weight), -1)).sum(axis=1) * bound
            if at == name:
                return np.asarray(reach, np.float64)
            bias = 0.0 if module.bias is None else np.abs(module.bias.detach().double().numpy())
            bound = float((reach + bias).max())
        raise BadInput(f"This network has no layer {name!r}; take mlp or convnet.")


def spoken(public: Public) -> Mask:
    """Which coordinates (d,) of a sum still tell of the victim alone, where the others were suppressed: all but the
    last layer's biases."""
    last = last_layer(Network(public))
    mask = np.ones(public.initial.size, np.bool_)
    if last is not None and last.bias is not None:
        mask[last.bias] = False
    return mask


def _before_the_last_relu(network: Network) -> str | None:
    """The layer with biases whose answers the ReLU before the last layer is fed; None if this is not its shape."""
    last = last_layer(network)
    order = leaves(network)
    if last is None:
        return None
    end = next(i for i, (_, module) in enumerate(order) if module is last.module)
    relus = [i for i in range(1, end) if isinstance(order[i][1], nn.ReLU)]
    if not relus:
        return None
    name, module = order[relus[-1] - 1]
    return name if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None else None


def _silent(network: Network, crafted: Vector) -> bool:
    """Whether training on noise from `crafted` says nothing but the last biases."""
    rng = generator(0, "suppression-probe")
    network.load(crafted)
    gradient = network.gradient(
        rng.random((4, *network.shape), dtype=np.float32), rng.integers(network.classes, size=4)
    )
    last = last_layer(network)
    assert last is not None  # asked before
    assert last.bias is not None  # as above
    gradient[last.bias] = 0
    return not gradient.any()
