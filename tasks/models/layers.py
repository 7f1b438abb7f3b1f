"""The few pieces that networks share: normalisations, activations, convolutions, and how their parameters begin."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from veilmesh.tasks.models.base import Shape

__all__ = [
    "Activation", "BatchNorm", "FrozenNorm", "Head", "Learned", "Norm", "Normalise", "Padding", "Square",
    "activation_layer", "beginning", "convolution", "features_of", "norm_layers",
]  # fmt: skip

Activation: TypeAlias = Literal["relu", "leaky-relu", "sigmoid", "tanh", "square"]
Norm: TypeAlias = Literal["none", "batch", "frozen", "group"]
Padding: TypeAlias = Literal["zeros", "circular", "reflect", "replicate"]

_EPSILON = 1e-5  # torch's
_GROUPS = 8


class Normalise(nn.Module):
    """Pictures in [0, 1] to [-1, 1]: (x - 0.5) / 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * 2 - 1


class Square(nn.Module):
    """x^2: the activation that ciphertexts can have (CryptoNets: Gilad-Bachrach et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x * x


class _Record(torch.autograd.Function):
    """The shift, unchanged; and for the running statistics a gradient that leads to those of the batch.

    It depends on the statistics alone, not on the loss, and nothing goes from it into earlier layers. Who
    differentiates it again, as inversion does, gets to the input through the batch's statistics. It sits on the shift
    (C,) and not on the activations, which it would copy.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(shift: Tensor, running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return shift.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        running_mean, running_var, mean, var = ctx.saved_tensors
        return gradients[0], running_mean - mean, running_var - var, None, None


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) whose running statistics are parameters, and are exchanged as such.

    In training the batch's own mean and (biased) variance normalise it. The gradient of `running_mean` and
    `running_var` is what they are less what the batch's are, so plain SGD makes them exponential averages whose rate is
    the learning rate. This is what a federation that exchanges state dicts gives away: the statistics of its batches.
    In `eval()` the running statistics normalise. Parameters, each (C,): `weight`, `bias`, `running_mean`,
    `running_var`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.running_mean, self.running_var = (
            nn.Parameter(torch.empty(channels)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.training:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), unbiased=False)
            shift: Tensor = _Record.apply(  # type: ignore[no-untyped-call]  # torch has no types for it
                self.bias, self.running_mean, self.running_var, mean, var
            )
        else:  # averages of positive numbers, unless somebody lied or added noise
            mean, var, shift = self.running_mean, self.running_var.clamp_min(0), self.bias
        scale = self.weight * (var + _EPSILON).rsqrt()
        normal: Tensor = (x - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]
        return normal


class FrozenNorm(nn.Module):
    """Batch normalisation by mean 0 and variance 1, whatever the batch: an untrained network in evaluation mode.

    The easier setting of the literature on inversion; only scale and shift are learned.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scale = self.weight * float((1 + _EPSILON) ** -0.5)
        return x * scale[:, None, None] + self.bias[:, None, None]


class Learned(nn.Module):
    """Adds what is learned for every place: positions (N, width) to tokens (B, N, width)."""

    SPREAD = 0.02 * 3**0.5  # uniform with a standard deviation of 0.02

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(places, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same shape."""
        return x + self.value


class Head(nn.Linear):
    """The last layer of a network whose `bound` is for layers before a ReLU: it begins smaller, as torch's do."""


def beginning(module: nn.Module, parameter: str) -> tuple[float, float] | None:
    """The range that a parameter of such a layer begins in, uniformly; None: the network's `bound` says."""
    if isinstance(module, Learned):
        return -module.SPREAD, module.SPREAD
    if isinstance(module, Head):
        return -(module.in_features**-0.5), module.in_features**-0.5
    if isinstance(module, BatchNorm | FrozenNorm | nn.GroupNorm | nn.LayerNorm):
        level = float(parameter in ("weight", "running_var"))
        return level, level
    return None


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """The layer that normalises `channels`; none where there is to be none."""
    match norm:
        case "batch":
            return [BatchNorm(channels)]
        case "frozen":
            return [FrozenNorm(channels)]
        case "group":
            return [nn.GroupNorm(_groups(channels), channels)]
    return []


def _groups(channels: int) -> int:
    return next(n for n in range(_GROUPS, 0, -1) if channels % n == 0)


def activation_layer(name: Activation) -> nn.Module:
    """The layer of that name."""
    layers: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
        "square": Square,
    }  # fmt: skip
    return layers[name]()


def convolution(
    inputs: int, outputs: int, stride: int = 1, padding: Padding = "zeros", norm: Norm = "none", bias: bool = True
) -> list[nn.Module]:
    """A 3x3 convolution, padded by one, and its normalisation."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias, padding_mode=padding)
    return [layer, *norm_layers(norm, outputs)]


def features_of(body: nn.Module, shape: Shape) -> int:
    """How many numbers `body` makes of one picture."""
    with torch.no_grad():
        return int(body(torch.zeros(1, *shape)).numel())
