"""When a machine says what it remembers, so that it can go on from there: the same bookkeeping in every protocol.

What a checkpoint holds, and what it need not: training draws its batches, guards and codecs their noise, from streams
that are named by round, so there is no generator to remember. What was heard for rounds that are not done yet is said
again by whoever said it, for a mesh that goes on goes on from the same round everywhere. Presence, timers and open
questions belong to the connections, which are new.
"""

from collections.abc import Callable

from veilmesh.peer.machine import Effect, Keep, State
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.evaluation import Evaluation

__all__ = ["keep", "recalled"]


def keep(kit: Kit, done: int, evaluation: Evaluation | None, state: Callable[[], State]) -> list[Effect]:
    """The checkpoint that is due after `done` rounds, if one is: every `kit.keep_every`, and after the last."""
    if not kit.keep_every or not done or (done % kit.keep_every and done != kit.rounds):
        return []
    latest = evaluation.accuracy if evaluation else None
    return [Keep(done, {**state(), **({} if latest is None else {"accuracy": latest})})]


def recalled(kept: Keep, evaluation: Evaluation) -> State:
    """What was kept, once the latest score is back in its place."""
    accuracy = kept.state.get("accuracy")
    evaluation.accuracy = float(accuracy) if isinstance(accuracy, float) else None
    return kept.state
