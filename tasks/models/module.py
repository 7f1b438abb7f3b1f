"""Any torch.nn.Module that can be imported, as a network.

The module is used as it is: pictures in [0, 1] go straight in, and it begins as its own constructor says, under torch's
generator seeded from the scenario's (so the same bits need the same release of torch). What a mesh cannot train is
refused with one sentence: buffers, dropout, parameters that are frozen or unused, answers of another shape.

Who names code to import runs it. Only classes of modules and functions annotated to return one are called, and an
invite that names one is refused (`sim/invite.py`).
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from veilmesh.core import BadInput, LocalError, seed_number
from veilmesh.tasks.models.base import MODELS, Shape

__all__ = ["Module", "PixelModule"]

_Path = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]

_THEIRS = (  # what other people's code raises: it is their input that is wrong, not this program
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip


@MODELS.register("module")
@dataclass(frozen=True, slots=True)
class Module:
    """A torch.nn.Module of yours by import path, `path = "package.module:Class"`, called with `options`.

    A function that says `-> nn.Module`, or a class of modules, will do as well. Where its signature has `shape` and
    `classes`, it is told them.
    """

    path: _Path
    options: Mapping[str, Any] = field(default_factory=dict)
    per_pixel: ClassVar[bool] = False
    imports: ClassVar[bool] = True

    def draw(self, shape: Shape, classes: int, seed: int) -> nn.Module:
        """As `SelfDrawn.draw`."""
        return _drawn(self.path, self.options, shape, (classes,), seed)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Raises BadInput: it has its own way to begin, so it can be no part of another network."""
        _not_a_part()

    def bound(self, fan_in: int) -> float:
        """Never asked."""
        raise LocalError("a module by import path begins in its own way")


@MODELS.register("module-per-pixel")
@dataclass(frozen=True, slots=True)
class PixelModule:
    """As `module`, for one that names a class for every pixel: (B, C, H, W) to (B, classes, H, W)."""

    path: _Path
    options: Mapping[str, Any] = field(default_factory=dict)
    per_pixel: ClassVar[bool] = True
    imports: ClassVar[bool] = True

    def draw(self, shape: Shape, classes: int, seed: int) -> nn.Module:
        """As `SelfDrawn.draw`."""
        return _drawn(self.path, self.options, shape, (classes, *shape[1:]), seed)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Raises BadInput: it has its own way to begin, so it can be no part of another network."""
        _not_a_part()

    def bound(self, fan_in: int) -> float:
        """Never asked."""
        raise LocalError("a module by import path begins in its own way")


def _not_a_part() -> NoReturn:
    raise BadInput("A model by import path cannot stand behind another; put the two together in your own module.")


def _drawn(path: str, options: Mapping[str, Any], shape: Shape, answer: tuple[int, ...], seed: int) -> nn.Module:
    make = _found(path)
    told = {"shape": shape, "classes": answer[0]}
    with torch.random.fork_rng(devices=[]), _said(path):
        torch.default_generator.manual_seed(seed_number(seed, "init"))
        wants = inspect.signature(make).parameters
        module = make(**{k: v for k, v in told.items() if k in wants}, **options)
        if not isinstance(module, nn.Module):
            raise BadInput(f"model {path!r} made a {type(module).__name__}; it has to be a torch.nn.Module.")
        module = module.to(device="cpu", dtype=torch.float32).train()
        x = torch.rand(2, *shape)
        module(x)  # a lazy layer takes its shape from what it sees first
        _check_state(path, module)
        _check_answer(path, module, x, answer)
    return module


def _found(path: str) -> Callable[..., object]:
    """What `path` names: a class of modules, or a function that says it returns one."""
    place, _, name = path.partition(":")
    with _said(path):
        try:
            found: Any = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise BadInput(
                f"model {path!r}: there is no module {error.name!r}; install it, or put its folder on PYTHONPATH."
            ) from None
        for step in name.split("."):
            if not hasattr(found, step):
                raise BadInput(f"model {path!r}: {place} has no {name!r}; check the name behind the colon.")
            found = getattr(found, step)
        kind = found if isinstance(found, type) else _returns(found)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise BadInput(
            f"model {path!r} is no class of torch.nn.Module, and no function annotated to return one; name one, or "
            "annotate it with -> nn.Module."
        )
    return found  # type: ignore[no-any-return]  # what is imported by name is Any


def _returns(function: Any) -> object:
    return typing.get_type_hints(function).get("return") if inspect.isfunction(function) else None


def _check_state(path: str, module: nn.Module) -> None:
    """Raises BadInput unless the parameters are all of the module's state, and all are trained."""
    if buffers := [name for name, _ in module.named_buffers()]:
        raise BadInput(
            f"model {path!r} keeps state beside its parameters ({buffers[0]!r}), which peers do not exchange; use "
            "layers without buffers, such as batch normalisation with track_running_stats=False."
        )
    if fixed := [name for name, p in module.named_parameters() if not p.requires_grad]:
        raise BadInput(f"model {path!r} does not train its parameter {fixed[0]!r}; set requires_grad on all of them.")
    if not any(True for _ in module.parameters()):
        raise BadInput(f"model {path!r} has no parameters, so there is nothing to train.")


def _check_answer(path: str, module: nn.Module, x: Tensor, answer: tuple[int, ...]) -> None:
    """Raises BadInput unless it answers `x` (B, C, H, W) with (B, *answer), by chance in nothing, with all it has."""
    before = torch.get_rng_state()
    y = module(x)
    if not torch.equal(before, torch.get_rng_state()):
        raise BadInput(f"model {path!r} draws random numbers as it trains, which no peer could repeat; drop dropout.")
    if not isinstance(y, Tensor) or y.shape != (len(x), *answer):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise BadInput(f"model {path!r} answers {tuple(x.shape)} with {got}; it has to be {(len(x), *answer)}, logits.")
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y.sum(), parameters, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise BadInput(f"model {path!r} does not use its parameter {name!r}; leave it out.")


@contextmanager
def _said(path: str) -> Iterator[None]:
    """Around other people's code: what it raises becomes a sentence."""
    try:
        yield
    except BadInput:
        raise
    except _THEIRS as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadInput(f"model {path!r} failed with {type(error).__name__}: {why}.") from error
