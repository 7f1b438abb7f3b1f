"""A network with adapters: small layers between the stages of a backbone that no longer learns.

It is no network that a scenario could name: the backbone's numbers come from somewhere, and who trains the adapters is
a sharing scheme's business.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from veilmesh.core import BadInput, generator
from veilmesh.core.registry import name_and_options
from veilmesh.tasks.models.base import Shape
from veilmesh.tasks.models.build import build_model, vector_to_parameters
from veilmesh.tasks.work import Vector

__all__ = ["Adapted", "adapted"]

_FAINT = 0.1  # an adapter begins as a small disturbance


class Adapter(nn.Module):
    """x + up(relu(down(x))) through a bottleneck (Houlsby et al. 2019, "Parameter-efficient transfer learning"): linear
    layers, or for pictures 1x1 convolutions."""

    def __init__(self, channels: int, reduction: int, picture: bool) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.down, self.up = (
            nn.Conv2d(*widths, 1) if picture else nn.Linear(*widths)
            for widths in ((channels, inner), (inner, channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C) to the same shape."""
        return x + self.up(torch.relu(self.down(x)))  # type: ignore[no-any-return]  # nn.Module's call is typed Any


class Adapted(nn.Module):
    """The pieces of `backbone` in a row, with an adapter after every stage, where it `ends`. A stage is a run of pieces
    whose outputs are of one shape, one of them with parameters. The last piece, a linear classifier, is the `head`.

    The backbone is always in evaluation mode.
    """

    def __init__(self, backbone: list[nn.Module], ends: Mapping[int, tuple[int, ...]], reduction: int) -> None:
        super().__init__()
        *body, self.head = backbone
        self.body = nn.ModuleList(body)
        self._places = {place: number for number, place in enumerate(ends)}
        self.adapters = nn.ModuleList(Adapter(here[0], reduction, len(here) == 3) for here in ends.values())

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] to logits (B, classes)."""
        for place, piece in enumerate(self.body):
            x = piece(x)
            if place in self._places:
                x = self.adapters[self._places[place]](x)
        logits: Tensor = self.head(x)
        return logits

    def train(self, mode: bool = True) -> "Adapted":
        """As any module's, but for the backbone."""
        super().train(mode)
        self.body.eval()
        return self


def adapted(
    model: Mapping[str, Any], shape: Shape, classes: int, reduction: int, backbone: Vector | None = None
) -> Adapted:
    """The network that `model` (its name and options) describes, its parameters `backbone` (d,), with adapters whose
    bottlenecks are a `reduction`-th as wide. Raises BadInput where the network has no stages.

    Its head and its adapters begin as in any other call of the same sizes.
    """
    network = build_model(*name_and_options(model), shape, classes, 0)
    pieces = list(network) if isinstance(network, nn.Sequential) else []
    ends = _stages(pieces[:-1], shape)
    if not ends or not isinstance(pieces[-1], nn.Linear):
        raise BadInput(
            f"model {model['name']!r} is no sequence of layers that ends in a linear one, so it has no stages to "
            "adapt; take convnet, lenet, mlp or resnet."
        )
    head = [p.detach().clone() for p in pieces[-1].parameters()]
    if backbone is not None:
        vector_to_parameters(network, backbone)
    with torch.device("meta"):
        outlined = Adapted(pieces, ends, reduction)
    outlined.adapters.to_empty(device="cpu")
    _begin(outlined, head)
    return outlined


@torch.no_grad()
def _begin(network: Adapted, head: list[Tensor]) -> None:
    rng = generator(0, "adapters")
    for name, parameter in network.adapters.named_parameters():
        fan_in = parameter.shape[1] if parameter.ndim > 1 else parameter.shape[0]
        level = fan_in**-0.5 * (_FAINT if ".up." in name else 1)
        parameter.copy_(torch.from_numpy(rng.uniform(-level, level, tuple(parameter.shape))))
    for parameter, begun in zip(network.head.parameters(), head, strict=True):
        parameter.copy_(begun)


@torch.no_grad()
def _stages(pieces: list[nn.Module], shape: Shape) -> dict[int, tuple[int, ...]]:
    """After which pieces stages end, and the shape that each has there."""
    ends: dict[int, tuple[int, ...]] = {}
    x, learned = torch.zeros(2, *shape), False
    for place, piece in enumerate(pieces):
        before, x = x, piece(x)
        learned = (learned and before.shape == x.shape) or any(True for _ in piece.parameters())
        if place and before.shape == x.shape:
            ends.pop(place - 1, None)
        if learned:
            ends[place] = tuple(x.shape[1:])
    return ends
