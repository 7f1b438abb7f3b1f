"""When a machine scores its model, and what the last score was: the same bookkeeping in every protocol."""

from collections.abc import Callable

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, Note, Stop, Work
from veilmesh.swarm.strategies.base import Evaluated, Kit

__all__ = ["Evaluation"]


class Evaluation:
    """One machine's scores: every `kit.evaluate_every` rounds, and after the last."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self.accuracy: float | None = None  # of the latest score

    def due(self, done: int, model: Callable[[], Vector]) -> list[Effect]:
        """The work of scoring `model()`, if it is due after `done` rounds."""
        if done != self._kit.rounds and done % self._kit.evaluate_every:
            return []
        return [Work(f"evaluate-{done}", self._kit.work.evaluate(model()))]

    def take(self, name: str, result: Evaluated) -> tuple[Note, bool]:
        """What to note of a score that has come, and whether it was the one after the last round."""
        done = int(name.rpartition("-")[2])
        self.accuracy = result.accuracy
        note = Note("accuracy", {"round": done, "accuracy": result.accuracy, "loss": result.loss})
        return note, done == self._kit.rounds

    def scored(self, name: str, result: Evaluated, stop: Callable[[str], Stop]) -> list[Effect]:
        """What follows from a score that has come: its note, and after the last round the end."""
        note, last = self.take(name, result)
        return [note, stop("finished")] if last else [note]
