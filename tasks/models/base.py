"""What a network promises. Pictures come in [0, 1]; every network brings them to [-1, 1] itself, by (x - 0.5) / 0.5.

The scale is fixed, so nobody needs statistics of anybody's data. No network has dropout or any buffer: its parameters
are all of its state, the running statistics of batch normalisation included (`layers.BatchNorm`), and a forward pass is
a pure function of them.
"""

from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias, runtime_checkable

from veilmesh.core import Registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Model", "SelfDrawn", "Shape"]

Shape: TypeAlias = tuple[int, int, int]
"""(C, H, W) of one picture."""


class Model(Protocol):
    """A network's configuration; build it by `models.build.build_model`, which also draws its parameters."""

    per_pixel: ClassVar[bool]  # whether it names a class for every pixel, not for every picture

    def build(self, shape: Shape, classes: int) -> "nn.Module":
        """The module: (B, C, H, W) in [0, 1] to logits (B, classes), or (B, classes, H, W) where per_pixel."""
        ...

    def bound(self, fan_in: int) -> float:
        """A layer with `fan_in` inputs begins with weights and biases uniform in [-bound, bound]."""
        ...


@runtime_checkable
class SelfDrawn(Model, Protocol):
    """A network's configuration that has its own way to begin; `build` and `bound` are not asked."""

    imports: ClassVar[bool]  # whether its options name code to import: nobody takes that from a stranger

    def draw(self, shape: Shape, classes: int, seed: int) -> "nn.Module":
        """The module as `Model.build`'s, float32 on the CPU, its parameters drawn from `seed`. Raises BadInput."""
        ...


MODELS: Registry[Model] = Registry("model", "veilmesh.tasks.models")
