"""Convolutions by a processor that multiplies matrices of bfloat16 in tiles (AMX): in float32's stead, too.

Half of a float32 number is the bfloat16 nearest to it, and what is left over is nearly all in the next one. A product
of two such sums is three products that count, added up in float32 inside; the fourth is below the rounding. What torch
gives back is rounded to bfloat16, so the first product is computed a second time, less what of it was given back.
"""

from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["How", "Weight", "has_tiles", "is_convolutional"]

How: TypeAlias = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, whether transposed, padding of the output, groups: as `convolution_backward` has them."""

_CHANNELS, _PLACES = 128, 512  # of a picture's from which on four products in tiles are faster than one in float32
_backward = torch.ops.aten.convolution_backward


def has_tiles() -> bool:
    """Whether this processor has such tiles."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def is_convolutional(module: nn.Module) -> bool:
    """Whether most of a network's parameters are those of convolutions over pictures."""
    inside = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return 2 * inside > sum(p.numel() for p in module.parameters())


class Weight:
    """A convolution's weight (O, I, h, w) and how it is applied: in all the forms that products are computed with."""

    def __init__(self, weight: Tensor, how: How) -> None:
        self.given, self.how = weight, how  # held: what it is known by stays its own
        self.near = weight.detach().contiguous(memory_format=torch.channels_last)
        self.rough, self._rest = _halves(self.near)
        stride, padding, dilation, _, _, groups = how
        borders = [size - 1 - pad for size, pad in zip(weight.shape[2:], padding, strict=True)]
        plain = {*stride, *dilation, groups} == {1} and min(*borders, *weight.shape[:2]) >= 0
        self._splits = plain and min(weight.shape[:2]) >= _CHANNELS and has_tiles() and _can_add()
        self._turned: tuple[Tensor, Tensor] | None = None
        self._borders = borders

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of `x` in float32."""
        stride, padding, dilation, _, _, groups = self.how
        if not self._worth(x):
            return functional.conv2d(x, self.near, bias, stride, padding, dilation, groups)
        return _product(x, self.rough, self._rest, padding, bias)

    def rounded(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The convolution of `x` by this weight, or another like it, all in bfloat16."""
        stride, padding, dilation, _, _, groups = self.how
        return functional.conv2d(x, self.rough if weight is None else weight, None, stride, padding, dilation, groups)

    def to_input(self, out: Tensor, x: Tensor) -> Tensor:
        """What the input `x` gets of what the output gets, in float32."""
        if not self._worth(out):
            to_x: Tensor = _backward(out, x, self.near, None, *self.how, [True, False, False])[0]
            return to_x
        if self._turned is None:
            turned = [t.transpose(0, 1).flip(2, 3) for t in (self.rough, self._rest)]
            rough, rest = (t.contiguous(memory_format=torch.channels_last) for t in turned)
            self._turned = rough, rest
        return _product(out, *self._turned, self._borders, None)

    def to_input_rounded(self, out: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The same all in bfloat16, by this weight or another like it; of `x` only the shape counts."""
        like = torch.empty_like(x, dtype=torch.bfloat16)
        weight = self.rough if weight is None else weight
        to_x: Tensor = _backward(out, like, weight, None, *self.how, [True, False, False])[0]
        return to_x

    def to_weight(self, out: Tensor, x: Tensor) -> Tensor:
        """What the weight gets, in float32."""
        to_weight: Tensor = _backward(out, x, self.near, None, *self.how, [False, True, False])[1]
        return to_weight

    def _worth(self, x: Tensor) -> bool:
        return self._splits and x.dtype == torch.float32 and x[:, 0].numel() >= _PLACES


@cache
def _can_add() -> bool:
    """Whether this torch has convolutions that add something to their result before they round it: found by asking, as
    that operator is none that torch promises to keep."""
    x = torch.linspace(1, 2, 4 * 16 * 16).view(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = x.view(16, 16, 2, 2).contiguous(memory_format=torch.channels_last)
    try:
        found = _product(x, *_halves(weight), [0, 0], None)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, functional.conv2d(x, weight), rtol=3e-5, atol=0)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 nearest to `x`, and the one nearest to what is left."""
    rough = x.bfloat16()
    again = rough.float()
    return rough, torch.sub(x, again, out=again).bfloat16()


def _product(x: Tensor, rough: Tensor, rest: Tensor, padding: list[int], bias: Tensor | None) -> Tensor:
    """The convolution of `x` by `rough` + `rest`, right to about 1e-5 of itself."""

    def added(x: Tensor, other: Tensor, weight: Tensor, how: str, bias: Tensor | None = None) -> Tensor:
        one = [1, 1]
        found: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, weight, bias, padding, one, one, 1, how, 1.0, None, [], None
        )
        return found

    high, low = _halves(x)
    shift, fine = (None, None) if bias is None else _halves(bias.detach())
    whole = functional.conv2d(high, rough, shift, 1, padding)
    left = added(high, whole, rough, "sub", shift)
    left = added(high, added(low, left, rough, "add", fine), rest, "add")
    return whole.float().add_(left)
