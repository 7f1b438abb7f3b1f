"""`--device`: where an attack computes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeAlias

from veilmesh.core import BadInput

__all__ = ["Device", "on_device"]

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]


def on_device(attack: str, options: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """The options of an attack, with the device that is asked for; auto leaves them as they are. Raises BadInput."""
    from veilmesh.attacks.inference.base import registry_of

    if device == "auto":
        return dict(options)
    kind = registry_of(attack).get(attack)
    if "device" not in {field.name for field in fields(kind)}:
        raise BadInput(f"Attack {attack!r} does not compute on a device of its choice; leave --device {device} out.")
    return {**options, "device": device}
