"""Noise for tensors, from a guard's own numpy generator: torch has one for the whole process."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["laplace", "normal"]


def normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Standard Gaussian noise in the shape, type and place of `like`."""
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), dtype=np.float32)).to(like)


def laplace(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Laplace noise of location 0 and scale 1 (variance 2) in the shape, type and place of `like`."""
    return torch.from_numpy(np.asarray(rng.laplace(size=tuple(like.shape)), dtype=np.float32)).to(like)
