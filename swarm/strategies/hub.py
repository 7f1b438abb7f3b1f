"""The hub of a star: says the global model, waits for its clients, averages. `star.py` has the theory of operation.

States: GATHERING (waits for clients, or for the round's timer) -> ... -> CLOSING (last evaluation) -> stopped. A
protocol whose hub says or hears more than a model and updates overrides the last methods.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
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
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import Evaluated, Kit, Outcome
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.keeping import keep, recalled

__all__ = ["Contribution", "HubMachine", "lossless"]

Contribution: TypeAlias = tuple[int, tuple[Vector, ...]]
"""What a client said: how many examples stand behind it, and the vectors (d,), of which the first is its update."""


class HubMachine:
    """The server: sees every client's update."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._clients = tuple(p for p in kit.order if p != kit.me)
        self._x = kit.initial
        self._round = 0
        self._present: frozenset[PeerId] = frozenset()
        self._got: dict[PeerId, Contribution] = {}
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._present = present
                return self._begin(now)
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case PeersChanged(present):
                self._present = present
                return self._average_if_complete(now)
            case TimerFired():
                return self._average(now) if self._round < self._kit.rounds else []
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]

    def resume(self, kept: Keep) -> None:
        self._restore(recalled(kept, self._evaluation))
        self._round = kept.round

    def _begin(self, now: float) -> list[Effect]:
        """The first round, or the one after the checkpoint, whose score may not have been taken."""
        due = self._evaluation.due(self._round, lambda: self._x) if self._round else []
        return due + self._announce(now)

    def _announce(self, now: float) -> list[Effect]:
        self._got = {}
        if reason := self._astray():
            return [self._stop(reason)]
        if self._round < self._kit.rounds and not self._present:  # the last to speak may also have been the last to go
            return [Note("alone", {"round": self._round}), self._stop("every client is gone")]
        clients = [p for p in self._clients if p in self._present]
        effects: list[Effect] = [Send(p, body) for p, body in self._bodies(clients)]
        if self._round < self._kit.rounds:
            effects.append(SetTimer("round", now + self._kit.patience))
        return effects

    def _bodies(self, clients: Sequence[PeerId]) -> list[tuple[PeerId, bytes]]:
        """What a round begins with, by client: the same for all, or a proxy of the model for each."""
        if (proxy := self._kit.proxy) is None:
            body = messages.encode(self._message())
            return [(p, body) for p in clients]
        return [(p, messages.encode(messages.Model(self._round, proxy(self._x, p, self._round)))) for p in clients]

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender not in self._clients:
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} at the hub")
        if message.round != self._round or self._round >= self._kit.rounds or sender in self._got:
            raise RemoteError(Refusal.MISMATCH, f"round {message.round} while we are in {self._round}")
        contribution = self._read(message)
        if contribution[0] > self._kit.examples:
            raise RemoteError(Refusal.MISMATCH, f"{contribution[0]} examples, of at most {self._kit.examples}")
        self._got[sender] = contribution
        return self._average_if_complete(now)

    def _average_if_complete(self, now: float) -> list[Effect]:
        if self._round >= self._kit.rounds or any(p in self._present and p not in self._got for p in self._clients):
            return []
        if not self._got:
            return [Note("alone", {"round": self._round}), self._stop("every client is gone")]
        return self._average(now)

    def _average(self, now: float) -> list[Effect]:
        late = [str(p) for p in self._clients if p in self._present and p not in self._got]
        effects: list[Effect] = [Note("late", {"round": self._round, "peers": late})] if late else []
        self._take_in({p: self._got[p] for p in self._clients if p in self._got})
        effects += [CancelTimer("round"), Note("round", {"round": self._round, "group": len(self._got)})]
        self._round += 1
        effects += keep(self._kit, self._round, self._evaluation, self._state)
        return effects + self._evaluation.due(self._round, lambda: self._x) + self._announce(now)

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what a protocol says of itself ------------------------------------------------------------------------

    def _state(self) -> State:
        """What is remembered from one round to the next."""
        return {"x": self._x}

    def _restore(self, state: State) -> None:
        """Remember what `_state` said."""
        self._x = np.asarray(state["x"], np.float32)

    def _astray(self) -> str | None:
        """Why the global state is not fit to be said any more; None where it is."""
        return astray(self._x)

    def _message(self) -> messages.Message:
        """What a round begins with, for every client alike."""
        return messages.Model(self._round, lossless(self._x))

    def _read(self, message: messages.Message) -> Contribution:
        """What a client says. Raises RemoteError; changes nothing."""
        if not isinstance(message, messages.Update):
            raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} at the hub")
        return message.samples, (self._kit.sealer.decode(message.blob).values,)

    def _take_in(self, got: Mapping[PeerId, Contribution]) -> None:
        """Bring the global state on by what was said in a round, in roster order; nobody may have said anything."""
        total = sum(samples for samples, _ in got.values())
        weights = [samples / total for samples, _ in got.values()]
        self._x = self._x + self._kit.aggregator(
            np.zeros_like(self._x), [vectors[0] for _, vectors in got.values()], weights
        )


def lossless(x: Vector) -> bytes:
    """The bytes of `x` (d,), every coordinate as it is."""
    return table.encode(Dense(), x, np.random.default_rng(0))
