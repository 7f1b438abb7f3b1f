"""A client of a star: trains from what the hub says, and says its update. `star.py` has the theory of operation.

States: waits for a model; trains; says; at the last model it evaluates and stops. It stops too when the hub is gone. A
protocol whose clients hear or say more than a model and an update overrides the last methods.
"""

from typing import Any, ClassVar, cast

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.feedback import ErrorFeedback
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Keep,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    State,
    Stop,
    TimerFired,
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.keeping import keep

__all__ = ["ClientMachine"]


class ClientMachine:
    """A client: trains when the hub says so."""

    hears: ClassVar[type[messages.Message]] = messages.Model

    def __init__(self, kit: Kit) -> None:
        assert kit.server is not None
        self._kit = kit
        self._hub = kit.server
        self._x = kit.initial
        self._round = -1
        self._training = False  # one training at a time, however fast the hub goes on
        self._memory = ErrorFeedback(kit.sealer.dimension)
        self._accuracy: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started():
                return [self._wait_for_hub(now)]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case WorkDone("evaluate", result):
                return self._evaluated(cast(Evaluated, result))
            case WorkDone(name, result):
                return self._trained(name, cast(Trained, result), now)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case PeersChanged(present):
                return [] if self._hub in present or self._over() else self._lost("the server is gone")
            case TimerFired():
                return [] if self._over() else self._lost("the server says nothing any more")

    def resume(self, kept: Keep) -> None:
        """What was kept is from when the hub had said round `kept.round`, which it says once more."""
        self._restore(kept.state)
        self._round = kept.round - 1

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender != self._hub or not isinstance(message, self.hears):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} from {sender} at a client")
        if message.round <= self._round or message.round > self._kit.rounds:
            raise RemoteError(Refusal.MISMATCH, f"round {message.round} while we are in {self._round}")
        self._take(message)
        self._round = message.round
        kept = keep(self._kit, self._round, None, self._state)
        if self._over():
            return [*kept, CancelTimer("hub"), Work("evaluate", self._kit.work.evaluate(self._x))]
        return [*kept, *([] if self._training else self._train()), self._wait_for_hub(now)]

    def _train(self) -> list[Effect]:
        self._training = True
        return [Work(f"train-{self._round}", self._task())]

    def _trained(self, name: str, trained: Trained, now: float) -> list[Effect]:
        self._training = False
        if name == f"train-{self._round}":
            return self._say(trained, now)
        return [] if self._over() else self._train()  # the hub went on without us: what is late is not said

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        if reason := self._astray(update):
            return [self._stop(reason)]
        body = messages.encode(self._message(update, trained.samples))
        note = Note("trained", {"round": self._round, "loss": trained.loss})
        return [Send(self._hub, body), *self._kit.sealer.alarms(), note, self._wait_for_hub(now)]

    def _encoded(self, update: Vector) -> bytes:
        """A guarded update (d,) through the codec, with error feedback."""
        wanted = self._memory.outgoing(update)
        blob, said = self._kit.sealer.encode(wanted, self._round)
        self._memory.sent(wanted, said)
        return blob

    def _evaluated(self, result: Evaluated) -> list[Effect]:
        self._accuracy = result.accuracy
        note = Note("accuracy", {"round": self._round, "accuracy": result.accuracy, "loss": result.loss})
        return [note, self._stop("finished")]

    def _over(self) -> bool:
        return self._round >= self._kit.rounds

    def _wait_for_hub(self, now: float) -> SetTimer:
        # the hub itself waits up to one patience for the slowest client, and then has to answer
        return SetTimer("hub", now + 3 * self._kit.patience)

    def _lost(self, why: str) -> list[Effect]:
        return [Note("server-lost", {"round": self._round, "why": why}), self._stop(why)]

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, max(self._round, 0), self._accuracy, reason))

    # --- what a protocol says of itself ------------------------------------------------------------------------

    def _state(self) -> State:
        """What is remembered from one round to the next."""
        return {"x": self._x, "memory": self._memory.memory}

    def _restore(self, state: State) -> None:
        """Remember what `_state` said."""
        self._x = np.asarray(state["x"], np.float32)
        self._memory.memory = np.asarray(state["memory"], np.float32)

    def _take(self, message: Any) -> None:
        """Begin a round with what the hub says, one of `hears`. Raises RemoteError, having changed nothing."""
        sealer = self._kit.sealer
        self._x = sealer.decode(message.blob).values if self._kit.proxied else sealer.decode_lossless(message.blob)

    def _task(self) -> object:
        """The round's training."""
        return self._kit.work.train(self._round, self._x)

    def _astray(self, update: Vector) -> str | None:
        """Why what follows from a guarded update (d,) is not fit to be said; None where it is."""
        return astray(self._memory.outgoing(update))

    def _message(self, update: Vector, samples: int) -> messages.Message:
        """What the hub is told of a guarded update (d,)."""
        return messages.Update(self._round, samples, self._encoded(update))
