"""Modules as a user might name them by import path: some that a mesh can train, and some that it cannot."""

import torch
from torch import Tensor, nn


class Small(nn.Sequential):
    """Is told the shape and the classes, begins by torch's own rules, and takes options."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 6) -> None:
        super().__init__(
            nn.Conv2d(shape[0], width, 3, padding=1),
            nn.BatchNorm2d(width, track_running_stats=False),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )


def pixels(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A function will do, if it says what it returns."""
    return nn.Sequential(nn.Conv2d(shape[0], 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, classes, 1))


def lazy(classes: int) -> nn.Sequential:
    """Finds out by itself what it is shown."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def says_nothing(classes: int):  # type: ignore[no-untyped-def]  # that it is not annotated is the point
    """Might do anything."""
    raise SystemExit("must never be called")


def another(classes: int) -> nn.Module:
    """Does not keep its word."""
    return "a network"  # type: ignore[return-value]  # that it is none is the point


def buffered(classes: int) -> nn.Module:
    """Keeps state beside its parameters."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.LazyLinear(classes))


def chancy(classes: int) -> nn.Module:
    """Draws as it trains."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.LazyLinear(classes))


def frozen(classes: int) -> nn.Module:
    """Does not train a part of itself."""
    return nn.Sequential(nn.Conv2d(1, 2, 1).requires_grad_(False), nn.Flatten(), nn.LazyLinear(classes))


def narrow() -> nn.Module:
    """Answers with one number."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(1))


def empty() -> nn.Module:
    """Learns nothing."""
    return nn.Flatten()


def brittle() -> nn.Module:
    """Wants other pictures."""
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 2))


class Idle(nn.Module):
    """Has a parameter that it does not use."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.used, self.idle = nn.LazyLinear(classes), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes)."""
        return self.used(x.flatten(1))  # type: ignore[no-any-return]  # nn.Module's call is typed Any


not_callable = 3
