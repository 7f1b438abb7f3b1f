"""A network whose convolutions are exact in value and first derivative, and rounded in their second derivatives.

Gradient matching needs gradients as they are: what is left to match is a small difference of two of them. What follows
from that difference for the pictures, the second derivative, has no such cancellation: rounded to bfloat16 it is off by
a part in some hundred of itself and no more, and processors with tiles for bfloat16 compute it several times as fast.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from veilmesh.attacks.matching.tiles import How, Weight

__all__ = ["RoughCurvature"]


class _Convolution(torch.autograd.Function):
    """A convolution by `by`, which is `weight` in other forms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, by: Weight) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by = by
        return by.forward(x, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (out,), (x,), needed = gradients, ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the first derivative, which will be differentiated
            to_x, to_weight = _Slopes.apply(out, x, ctx.by)  # type: ignore[no-untyped-call]  # torch has no types here
            return to_x, to_weight, out.sum((0, 2, 3)) if needed[2] else None, None
        return ctx.by.to_input_rounded(out.bfloat16(), x).float(), None, None, None


class _Slopes(torch.autograd.Function):
    """What a convolution's input and weight get of what its output gets."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, by: Weight) -> tuple[Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(out.bfloat16(), x.bfloat16())
        ctx.by = by
        return by.to_input(out, x) if ctx.needs_input_grad[1] else None, by.to_weight(out, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (to_x, to_weight), (out, x), by = gradients, ctx.saved_tensors, ctx.by
        moved = to_input = None
        if to_weight is not None:
            pull = to_weight.bfloat16().contiguous(memory_format=torch.channels_last)
            moved = by.rounded(x, pull).float()
            to_input = by.to_input_rounded(out, x, pull).float() if ctx.needs_input_grad[1] else None
        if to_x is not None:
            more = by.rounded(to_x.bfloat16())
            moved = more.float() if moved is None else moved.add_(more)
        return moved, to_input, None


class RoughCurvature(TorchFunctionMode):
    """Lets the two-dimensional convolutions that are called while it is entered round their second derivatives, and
    those alone. Every other function, transposed and one-dimensional convolutions too, is left as it is.

    For `torch.autograd.grad` twice: first with `create_graph`, then for what comes before the parameters: the second
    time, nothing goes to them. The parameters must stay as they are while this lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[int, str], Weight] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.conv2d or kwargs or not _is_plain(args):
            return func(*args, **(kwargs or {}))
        x, weight, bias, *spatial, groups = args
        stride, padding, dilation = ([n, n] if isinstance(n, int) else list(n) for n in spatial)
        with torch._C.DisableTorchFunctionSubclass():
            by = self._forms(weight, (stride, padding, dilation, False, [0, 0], groups))
            return _Convolution.apply(x, weight, bias, by)  # type: ignore[no-untyped-call]  # torch has no types here

    def _forms(self, weight: Tensor, how: How) -> Weight:
        name = id(weight), str(how)
        if name not in self._known:
            self._known[name] = Weight(weight, how)
        return self._known[name]


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether a convolution is called as its layer does, by parameters that depend on nothing: else, it is exact."""
    if len(args) != 7 or args[0].ndim != 4 or isinstance(args[4], str):
        return False
    return all(t is None or t.is_leaf for t in args[1:3])
