"""Divide a network into stages at named layers.

Any `nn.Sequential` can be divided between its children, and any module that names its own cut points (`Cuttable`): the
pieces, applied one after the other, must be the network. Stages share the modules, so parameters keep their order, and
a split network's parameters, stage after stage, are the whole one's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from veilmesh.core import BadInput

__all__ = ["Cut", "Cuttable", "around_linear", "divide", "pieces", "places", "shapes"]

Cut: TypeAlias = int | str
"""Where to cut: after so many pieces, or after the piece of that name."""


@runtime_checkable
class Cuttable(Protocol):
    """A module that is no sequence, and says where it can be cut."""

    def pieces(self) -> Sequence[tuple[str, nn.Module]]:
        """(name, module) in order; applied one after the other, they are the whole module."""
        ...


def pieces(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """What a network can be cut between, in order. Raises BadInput if it is no sequence and names no cut points."""
    if isinstance(module, Cuttable):
        return list(module.pieces())
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        # With an activation that stands in several places: `named_children` would name it once.
        return [(n, m) for n, m in module.named_modules(remove_duplicate=False) if n and "." not in n]
    raise BadInput(
        f"{type(module).__name__} cannot be split: it is no plain nn.Sequential and has no method pieces() that names "
        "its cut points; give it one, or take another model."
    )


def places(module: nn.Module, cuts: Sequence[Cut], stages: int) -> tuple[int, ...]:
    """Where `cuts` are: after how many pieces each, rising; as even as can be where there are none.

    Raises BadInput on a place that does not exist, or another number of cuts than `stages` stages need.
    """
    names = [name for name, _ in pieces(module)]
    if not cuts:
        if len(names) < stages:
            raise BadInput(f"A model of {len(names)} pieces cannot be split into {stages} stages; take a deeper one.")
        return _even(pieces(module), stages)
    found = tuple(_place(cut, names) for cut in cuts)
    if len(found) != stages - 1:
        raise BadInput(f"This protocol has {stages} stages, so split.cuts needs {stages - 1}, not {len(found)}.")
    if list(found) != sorted(set(found)) or not 0 < found[0] <= found[-1] < len(names):
        raise BadInput(
            f"split.cuts must rise, and leave every stage a piece, of the {len(names)} there are: {', '.join(names)}."
        )
    return found


def around_linear(module: nn.Module, cuts: Sequence[Cut]) -> tuple[int, ...]:
    """As `places` with three stages, of which the last may be empty; without `cuts`, around the last linear layer.

    Raises BadInput where there is none.
    """
    every = pieces(module)
    if cuts:
        return places(nn.Sequential(OrderedDict([*every, ("output", nn.Identity())])), cuts, 3)
    found = [i for i, (_, piece) in enumerate(every) if isinstance(piece, nn.Linear) and i]
    if not found:
        raise BadInput("There is no linear layer behind the first piece, to be put on ciphertexts; take another model.")
    return found[-1], found[-1] + 1


def divide(module: nn.Module, at: Sequence[int]) -> list[nn.Sequential]:
    """The stages of a network cut after so many pieces each (`places`). Raises BadInput where two share parameters."""
    every = pieces(module)
    ends = [0, *at, len(every)]
    stages = [nn.Sequential(OrderedDict(every[a:b])) for a, b in zip(ends, ends[1:], strict=False)]
    if sum(len(list(stage.parameters())) for stage in stages) > len(list(module.parameters())):
        raise BadInput(f"{type(module).__name__} has the same parameters on both sides of a cut; cut it elsewhere.")
    return stages


def shapes(stages: Sequence[nn.Module], picture: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What enters each stage, of one example, and what leaves the last: one shape more than there are stages."""
    x = torch.zeros(2, *picture)
    found = [tuple(x.shape[1:])]
    modes = [(module, module.training) for stage in stages for module in stage.modules()]
    with torch.no_grad():
        for stage in stages:
            x = stage.eval()(x)
            found.append(tuple(x.shape[1:]))
    for module, mode in modes:
        module.training = mode
    return found


def _place(cut: Cut, names: Sequence[str]) -> int:
    if isinstance(cut, int):
        return cut
    if cut not in names:
        raise BadInput(f"There is no piece {cut!r} to cut after; known: {', '.join(names)}.")
    return names.index(cut) + 1


def _even(every: Sequence[tuple[str, nn.Module]], stages: int) -> tuple[int, ...]:
    """Cuts that leave every stage about as many pieces with parameters; behind an activation, not before it."""
    loaded = [i for i, (_, piece) in enumerate(every) if any(True for _ in piece.parameters())]
    if len(loaded) < stages:
        return tuple(round(len(every) * k / stages) for k in range(1, stages))
    return tuple(loaded[len(loaded) * k // stages] for k in range(1, stages))
