"""At the end of a chain: activations, which come along it, and their labels, which come straight from their owner."""

from msgspec.structs import replace

from veilmesh.core import Refusal, RemoteError
from veilmesh.split.messages import Activations, Labels
from veilmesh.split.strategies.base import SplitKit

__all__ = ["Joined"]

_Place = tuple[int, int]  # step, micro-batch


class Joined:
    """Holds back what comes first until the other half is there. Of every data owner, two steps at most."""

    def __init__(self, kit: SplitKit) -> None:
        self._kit = kit
        self.needed = kit.plan.stages > 2 and kit.plan.labels != "own"
        self._labels: dict[int, dict[_Place, Labels]] = {head: {} for head in range(kit.plan.heads)}
        self._waiting: dict[int, dict[_Place, Activations]] = {head: {} for head in range(kit.plan.heads)}

    def labels(self, m: Labels) -> Activations | None:
        """Labels have come; the activations that waited for them. Raises RemoteError(MISMATCH) where none can."""
        if not self.needed or m.stage != self._kit.plan.stages - 1:
            raise RemoteError(Refusal.MISMATCH, "labels for somebody who has no use for them")
        if m.micro >= self._kit.micro_batches or m.step >= self._kit.rounds * self._kit.steps:
            raise RemoteError(Refusal.MISMATCH, "labels of no step that there is")
        held = self._labels[m.head]
        held[m.step, m.micro] = m
        for old in [place for place in held if place[0] < m.step - 1]:
            del held[old]
        waiting = self._waiting[m.head].pop((m.step, m.micro), None)
        return None if waiting is None else self.activations(waiting)

    def activations(self, m: Activations) -> Activations | None:
        """Activations have come, and were checked; with their labels, or None: they wait. What those who stand between
        say of labels counts for nothing."""
        found = self._labels[m.head].get((m.step, m.micro))
        if found is not None and found.rows == m.rows:
            return replace(m, labels=found.labels, which=found.which)
        waiting = self._waiting[m.head]
        waiting[m.step, m.micro] = m
        for old in [place for place in waiting if place[0] < m.step - 1]:
            del waiting[old]
        return None
