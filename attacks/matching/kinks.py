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


class _RoughWeights(torch.autograd.Function):
    """A convolution whose weight's gradient is computed in bfloat16: it is summed over all places of a picture, so what
    that rounds off is noise a thousand times below it, while processors with tiles for it take half the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = [[n, n] if isinstance(n, int) else list(n) for n in how[:3]]
        ctx.groups = how[3]
        return functional.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (out,), (x, weight) = gradients, ctx.saved_tensors
        rest = (None, *ctx.how, False, [0, 0], ctx.groups)
        both = torch.ops.aten.convolution_backward
        (to_x, _, _) = both(out, x, weight, *rest, [True, False, False])
        rough = [t.bfloat16() for t in (out, x, weight)]
        (_, to_weight, _) = both(*rough, *rest, [False, True, False])
        to_bias = out.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return to_x, to_weight.float(), to_bias, None, None, None, None


class Kinks(TorchFunctionMode):
    """Records the sides taken while it is entered, and takes them again when it is entered `again()`.

    It knows ReLUs, leaky ReLUs and two-dimensional maximum pooling; other functions are left alone. With `half`, the
    pass that is recorded computes the gradients of convolutions' weights in bfloat16.
    """

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self._half = half
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
        if func is functional.conv2d and self._half and self._replayed is None and not kwargs:
            with torch._C.DisableTorchFunctionSubclass():
                return _RoughWeights.apply(*args)  # type: ignore[no-untyped-call]  # torch has no types here
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
