"""Which device an attack computes on."""

from typing import Literal, TypeAlias

import torch

from veilmesh.core import BadInput

__all__ = ["Device", "choose_device"]

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
"""auto: the first of cuda, mps and cpu that this machine has."""


def choose_device(wanted: Device = "auto") -> torch.device:
    """The device called `wanted`. Raises BadInput where this machine has none."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, is_there in there.items() if is_there) if wanted == "auto" else wanted
    if not there[name]:
        raise BadInput(f"This machine has no {name!r} device for torch; take cpu, or auto.")
    return torch.device(name)
