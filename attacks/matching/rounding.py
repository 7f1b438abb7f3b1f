"""A network whose convolutions are exact in value and first derivative, and rounded in their second derivatives.

Gradient matching needs gradients as they are: what is left to match is a small difference of two of them. What follows
from that difference for the pictures, the second derivative, has no such cancellation: rounded to bfloat16 it is off by
a part in some hundred of itself and no more, and processors with tiles for bfloat16 compute it several times as fast.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["RoughCurvature", "has_tiles", "is_convolutional"]

How: TypeAlias = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, whether transposed, padding of the output, groups: as `convolution_backward` has them."""

_backward = torch.ops.aten.convolution_backward


def has_tiles() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in tiles (AMX), which is what makes rounding worth it."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def is_convolutional(module: nn.Module) -> bool:
    """Whether most of a network's parameters are those of convolutions over pictures."""
    inside = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return 2 * inside > sum(p.numel() for p in module.parameters())


class _Convolution(torch.autograd.Function):
    """A convolution; `near` and `rough` are its weight again, in the layout that is fastest and in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, near: Tensor, rough: Tensor, how: How
    ) -> Tensor:
        ctx.save_for_backward(x, near, rough)
        ctx.how = how
        return functional.conv2d(x, near, bias, how[0], how[1], how[2], how[5])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (out,), (x, near, rough), needed = gradients, ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the first derivative, which will be differentiated
            to_x, to_weight = _Slopes.apply(out, x, near, rough, ctx.how)  # type: ignore[no-untyped-call]  # untyped
            return to_x, to_weight, out.sum((0, 2, 3)) if needed[2] else None, None, None, None
        return _to_input(out.bfloat16(), x, rough, ctx.how), None, None, None, None, None


class _Slopes(torch.autograd.Function):
    """What a convolution's input and weight get of what its output gets."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, near: Tensor, rough: Tensor, how: How) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(out.bfloat16(), x.bfloat16(), rough)
        ctx.how = how
        to_x, to_weight, _ = _backward(out, x, near, None, *how, [ctx.needs_input_grad[1], True, False])
        return to_x, to_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (to_x, to_weight), (out, x, rough), how = gradients, ctx.saved_tensors, ctx.how
        moved: Tensor | None = None
        to_input = None
        if to_weight is not None:
            pull = to_weight.bfloat16().contiguous(memory_format=torch.channels_last)
            moved = functional.conv2d(x, pull, None, how[0], how[1], how[2], how[5]).float()
            to_input = _to_input(out, x, pull, how) if ctx.needs_input_grad[1] else None
        if to_x is not None:
            more = functional.conv2d(to_x.bfloat16(), rough, None, how[0], how[1], how[2], how[5])
            moved = more.float() if moved is None else moved.add_(more)
        return moved, to_input, None, None, None


def _to_input(out: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
    """What the input gets, by a weight in bfloat16; of `x` the shape is what counts."""
    like = torch.empty_like(x, dtype=torch.bfloat16)
    to_x: Tensor = _backward(out, like, weight, None, *how, [True, False, False])[0]
    return to_x.float()


class RoughCurvature(TorchFunctionMode):
    """Lets the two-dimensional convolutions that are called while it is entered round their second derivatives, and
    those alone. Every other function, transposed and one-dimensional convolutions too, is left as it is.

    For `torch.autograd.grad` twice: first with `create_graph`, then for what comes before the parameters: the second
    time, nothing goes to them. The parameters must stay as they are while this lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.conv2d or kwargs or not _is_plain(args):
            return func(*args, **(kwargs or {}))
        x, weight, bias, *spatial, groups = args
        stride, padding, dilation = ([n, n] if isinstance(n, int) else list(n) for n in spatial)
        with torch._C.DisableTorchFunctionSubclass():
            near, rough = self._copies(weight)
            how = (stride, padding, dilation, False, [0, 0], groups)
            return _Convolution.apply(x, weight, bias, near, rough, how)  # type: ignore[no-untyped-call]  # untyped

    def _copies(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`weight` with channels last, and in bfloat16: made once for a parameter, which is held so that its identity
        stays its own."""
        if id(weight) not in self._known:
            near = weight.detach().contiguous(memory_format=torch.channels_last)
            self._known[id(weight)] = weight, near, near.bfloat16()
        return self._known[id(weight)][1:]


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether a convolution is called as its layer does, by parameters that depend on nothing: else, it is exact."""
    if len(args) != 7 or args[0].ndim != 4 or isinstance(args[4], str):
        return False
    return all(t is None or t.is_leaf for t in args[1:3])
