"""Networks that attackers of split mode train: activations to pictures, and how they begin and are trained.

Everything draws from one `torch.Generator`: the global one is never touched.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Decoder", "Smashing", "batches", "begin", "cosine", "fit", "generator_of", "redraw", "schedule"]

_FEATURES = 1200  # of a patch, at most: the normal equations have that many unknowns
_ROWS = 60_000  # of the normal equations
_RIDGE = 1e-4  # relative to the mean square of a standardised feature


class Smashing(Protocol):
    """What happens to activations on their way: a guard's noise, a codec's rounding."""

    def __call__(self, z: Tensor, draws: torch.Generator) -> Tensor:
        """What is seen (B, ...) instead of `z` (B, ...)."""
        ...


def generator_of(rng: np.random.Generator) -> torch.Generator:
    """Torch's generator, seeded by `rng`."""
    return torch.Generator().manual_seed(int(rng.integers(1 << 62)))


def begin(build: Callable[[], nn.Module], draws: torch.Generator) -> nn.Module:
    """What `build` builds, its parameters uniform in +-1 / sqrt(fan_in), biases 0, from `draws`."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu").train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    redraw(module, draws)
    return module


@torch.no_grad()
def redraw(module: nn.Module, draws: torch.Generator) -> None:
    """Draw the weights of `module` anew, uniform in +-1 / sqrt(fan_in); vectors, as biases, stay what they are."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            bound = parameter[0].numel() ** -0.5
            parameter.uniform_(-bound, bound, generator=draws)


def batches(count: int, size: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Places of batches, for ever: one permutation after the other, without what is left at its end."""
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=draws)
        yield from torch.split(order[: count - count % size], size)


def cosine(step: int, steps: int) -> float:
    """The share of the learning rate at `step` of `steps`: a short rise, then half a cosine down to nothing."""
    rise = max(1, steps // 20)
    return min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def schedule(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Set the learning rate of `step`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * cosine(step, steps)


class Decoder(nn.Module):
    """Activations of `shape`, (C, h, w) or (d,), to pictures (C', H, W): a linear map, and what a network adds.

    The linear map takes every place's neighbourhood to the pixels of that place; `solve` sets it in closed form (ridge
    regression), and the network begins at 0. Where places of activations do not lie on pixels, the whole of the
    activations is one place. `width`: channels of the network at the activations' resolution; `blocks`: how many
    residual blocks of two 3x3 convolutions.
    """

    def __init__(self, shape: Sequence[int], picture: tuple[int, int, int], width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.picture = picture
        self.grid = _grid(shape, picture)
        channels = int(np.prod(shape)) // (self.grid[0] * self.grid[1])
        self.up = picture[1] // self.grid[0], picture[2] // self.grid[1]
        out = picture[0] * self.up[0] * self.up[1]
        places = self.grid != (1, 1)
        kernel = 1 if not places else 5 if channels * 25 <= _FEATURES else 3 if channels * 9 <= 2 * _FEATURES else 1
        self.linear = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.mean = nn.Parameter(torch.zeros(channels, 1, 1), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1), requires_grad=False)
        size = 3 if places else 1
        width = width if places else 4 * width
        self.first = nn.Conv2d(channels, width, size, padding=size // 2)
        self.blocks = nn.ModuleList(_Block(width, size) for _ in range(blocks))
        self.last = nn.Conv2d(width, out, size, padding=size // 2)

    def forward(self, z: Tensor) -> Tensor:
        """(B, ...) to (B, C', H, W); not clamped."""
        x = (z.reshape(len(z), -1, *self.grid) - self.mean) * self.scale
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self._pixels(self.linear(x) + self.last(functional.relu(hidden))) + 0.5

    def _pixels(self, x: Tensor) -> Tensor:
        """(B, C' u v, h, w) to (B, C', h u, w v)."""
        up, across = self.up
        x = x.view(len(x), self.picture[0], up, across, *self.grid)
        return x.permute(0, 1, 4, 2, 5, 3).reshape(len(x), *self.picture)

    def _places(self, x: Tensor) -> Tensor:
        """The way back."""
        up, across = self.up
        x = x.view(len(x), self.picture[0], self.grid[0], up, self.grid[1], across)
        return x.permute(0, 1, 3, 5, 2, 4).reshape(len(x), -1, *self.grid)

    @torch.no_grad()
    def solve(self, z: Tensor, x: Tensor, draws: torch.Generator, ridge: float = _RIDGE) -> None:
        """Set the scale of what comes in, and the linear map in closed form, by activations (N, ...) and pictures; the
        network's last layer becomes 0."""
        seen = z.reshape(len(z), -1, *self.grid)
        self.mean.copy_(seen.mean(dim=(0, 2, 3))[:, None, None])
        self.scale.copy_(1 / seen.std(dim=(0, 2, 3), correction=0).clamp_min(1e-4)[:, None, None])
        self.last.weight.zero_()
        rows = self.grid[0] * self.grid[1]
        chosen = torch.randperm(len(z), generator=draws)[: max(1, _ROWS // rows)]
        scaled = (seen[chosen] - self.mean) * self.scale
        goal = self._places(x[chosen] - 0.5).flatten(2).transpose(1, 2).reshape(-1, self.linear.out_channels)
        patches = functional.unfold(scaled, self.linear.kernel_size, padding=self.linear.kernel_size[0] // 2)
        features = patches.transpose(1, 2).reshape(len(goal), -1)
        weight = _ridge(features, goal - goal.mean(dim=0), ridge)
        self.linear.weight.copy_(weight.T.reshape(self.linear.weight.shape))
        self.linear.bias.copy_(goal.mean(dim=0) - features.mean(dim=0) @ weight)  # type: ignore[union-attr]  # it has one


class _Block(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        added: Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + added


def fit(
    decoder: nn.Module,
    pairs: Callable[[Tensor], tuple[Tensor, Tensor]],
    count: int,
    iterations: int,
    draws: torch.Generator,
    batch: int = 64,
    rate: float = 2e-3,
) -> None:
    """Train `decoder` by mean squared error; `pairs` makes (activations, pictures) of places among `count`."""
    learned = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, rate)
    chosen = batches(count, batch, draws)
    for step in range(iterations):
        schedule(optimizer, rate, step, iterations)
        z, x = pairs(next(chosen))
        loss = functional.mse_loss(decoder(z), x)
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = gradient
        optimizer.step()


def _grid(shape: Sequence[int], picture: tuple[int, int, int]) -> tuple[int, int]:
    """The places of activations whose pixels are known; (1, 1) where they are one."""
    if len(shape) == 3 and not picture[1] % shape[1] and not picture[2] % shape[2]:
        return int(shape[1]), int(shape[2])
    return 1, 1


def _ridge(features: Tensor, goal: Tensor, ridge: float) -> Tensor:
    """Weights (F, K) of the regression of centred `goal` (N, K) on `features` (N, F), in the smaller of both spaces."""
    centred = features - features.mean(dim=0)
    size = ridge * centred.square().sum().item() / centred.shape[1] + 1e-12
    if len(centred) < centred.shape[1]:
        gram = (centred @ centred.T).double()
        gram.diagonal().add_(size * centred.shape[1] / len(centred))
        dual: Tensor = torch.linalg.solve(gram, goal.double())
        return (centred.double().T @ dual).float()
    gram = (centred.T @ centred).double()
    gram.diagonal().add_(size)
    weights: Tensor = torch.linalg.solve(gram, (centred.T @ goal).double())
    return weights.float()
