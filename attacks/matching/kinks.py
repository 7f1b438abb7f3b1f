"""A network with its kinks held still: a second pass takes the side of every ReLU and maximum that the first one took.

Networks of convolutions, ReLUs and maxima are linear in each layer's parameters as long as no unit changes sides. What
a small step in the parameters does can then be read off a difference of two passes, exactly but for rounding; without
holding the kinks still, units that change sides drown it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Kinks"]

_RELU = (torch.relu, functional.relu, Tensor.relu)
_MAXIMUM = (functional.max_pool2d, torch.max_pool2d)


class Kinks(TorchFunctionMode):
    """Records the sides taken while it is entered, and takes them again when it is entered `again()`.

    It knows ReLUs, leaky ReLUs and two-dimensional maximum pooling; other functions are left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sides: list[Any] = []
        self._replayed: int | None = None  # how many were taken again; None: recording

    def again(self) -> "Kinks":
        """The same, to be entered for a second pass."""
        self._replayed = 0
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELU:
            return self._scaled(args[0], 0.0)
        if func is functional.leaky_relu:
            slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
            return self._scaled(args[0], slope)
        if func in _MAXIMUM:
            return self._maximum(*args, **kwargs)
        return func(*args, **kwargs)

    def _scaled(self, x: Tensor, slope: float) -> Any:
        """`x` where it is positive, and `slope` times it where it is not."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._replayed is not None:
                return x * self._next()
            side = (x.detach() > 0).to(x.dtype)
            self._sides.append(side + slope * (1 - side) if slope else side)
            return functional.leaky_relu(x, slope) if slope else functional.relu(x)

    def _maximum(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if self._replayed is not None:
                shape, places = self._next()
                return x.flatten(2).gather(2, places).view(shape)
            out, places = functional.max_pool2d(x, *args, **{**kwargs, "return_indices": True})
            self._sides.append((out.shape, places.flatten(2)))
            return out

    def _next(self) -> Any:
        assert self._replayed is not None
        self._replayed += 1
        return self._sides[self._replayed - 1]
