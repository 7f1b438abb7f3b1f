"""What a machine leaves behind when it stops, whatever its protocol."""

from dataclasses import dataclass

from veilmesh.crypto.codecs.base import Vector

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A member's last word. `parameters` (d,): its model, or, in split mode, those of the stages that it played."""

    parameters: Vector
    rounds: int
    accuracy: float | None
    reason: str  # "finished", or why it ended early
