"""One peer of a protocol with rounds in which a public schedule says who speaks to whom; `push_sum` and `epidemic` are.

States: TRAINING (waits for WorkDone) -> GATHERING (waits for those that the schedule lets speak to it in this round, or
for the round's timer) -> TRAINING ... -> CLOSING (waits for the last evaluation) -> stopped.

Everybody can draw everybody's out-peers from the public seed, so a peer knows whom to wait for, and refuses whoever
speaks out of turn: what is kept for rounds ahead is bounded by what the schedule allows for them. Sums follow round and
roster, so arrival order cannot change a bit.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Generic, TypeVar, cast

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
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
from veilmesh.swarm.strategies.base import Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.keeping import keep, recalled

__all__ = ["WINDOW", "ScheduledMachine"]

WINDOW = 32
"""How many rounds what is heard may be ahead of ours or behind. On a directed ring of n, a peer may be n-1 rounds ahead
of the one it speaks to."""

T = TypeVar("T")


class Phase(Enum):
    TRAINING = auto()
    GATHERING = auto()
    CLOSING = auto()


class ScheduledMachine(Generic[T]):
    """Rounds, deadlines and refusals; what is said and what becomes of it is for the protocol: the last methods."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._me = kit.order.index(kit.me)
        self._neighbours = tuple(p for p in kit.order if p in kit.weights and p != kit.me)
        self._place = {p: i for i, p in enumerate(kit.order) if p in self._neighbours}
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
        self._heard: dict[int, dict[PeerId, T | None]] = {}  # by round; None once it has been taken in
        self._expected: tuple[PeerId, ...] = self._senders(0)
        self._phase = Phase.TRAINING
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._present = present
                return self._begin()
            case WorkDone(name, result) if name.startswith("train"):
                return self._say(cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body))
            case PeersChanged(present):
                self._present = present
                return self._close_if_complete()
            case TimerFired():
                return self._give_up_waiting()

    def resume(self, kept: Keep) -> None:
        """See `Resumable`. What was late, and still under way when this was kept, is lost, and in push-sum its mass."""
        self._restore(recalled(kept, self._evaluation))
        self._round = kept.round
        self._expected = self._senders(self._round)

    # --- one round ---------------------------------------------------------------------------------------------

    def _begin(self) -> list[Effect]:
        """The first round, or the one after the checkpoint, whose score may not have been taken."""
        return [*(self._evaluation.due(self._round, self._model) if self._round else []), *self._go_on()]

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        return [Work(f"train-{self._round}", self._kit.work.train(self._round, self._model()))]

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._model()))
        out = [self._kit.order[i] for i in self._out(self._round, self._me)]
        receivers = [p for p in out if p in self._present]
        message = self._share(update, trained.samples, len(receivers))
        if isinstance(message, str):
            return [self._stop(message)]
        self._phase = Phase.GATHERING
        body = messages.encode(message)
        effects: list[Effect] = [Send(p, body) for p in receivers]
        effects += [*self._kit.sealer.alarms(), Note("trained", {"round": self._round, "loss": trained.loss})]
        effects.append(SetTimer("round", now + self._kit.patience))
        return effects + self._close_if_complete()

    def _late(self) -> list[PeerId]:
        heard = self._heard.get(self._round, {})
        return [p for p in self._expected if p in self._present and p not in heard]

    def _close_if_complete(self) -> list[Effect]:
        return [] if self._phase is not Phase.GATHERING or self._late() else self._close()

    def _give_up_waiting(self) -> list[Effect]:
        if self._phase is not Phase.GATHERING:
            return []
        late = Note("late", {"round": self._round, "peers": [str(p) for p in self._late()]})
        return [late, *self._close()]

    def _close(self) -> list[Effect]:
        group = 1 + sum(part is not None for part in self._heard.get(self._round, {}).values())
        self._take_in([part for part in self._due() if part is not None])
        self._round += 1
        self._forget()
        self._expected = self._senders(self._round)
        note = Note("round", {"round": self._round - 1, "group": group})
        kept = keep(self._kit, self._round, self._evaluation, self._state)
        return [CancelTimer("round"), note, *kept, *self._evaluation.due(self._round, self._model), *self._go_on()]

    def _due(self) -> list[T | None]:
        rounds = sorted(r for r in self._heard if r <= self._round)
        return [self._heard[r][p] for r in rounds for p in self._neighbours if p in self._heard[r]]

    def _forget(self) -> None:
        """What was taken in leaves only that it was heard; and nothing, once it is too late to be heard again."""
        oldest = self._round - WINDOW
        done = {r: dict.fromkeys(heard) for r, heard in self._heard.items() if oldest <= r < self._round}
        ahead = {r: heard for r, heard in self._heard.items() if r >= self._round}
        self._heard = {**done, **ahead}

    def _go_on(self) -> list[Effect]:
        if self._round < self._kit.rounds:
            return self._train()
        self._phase = Phase.CLOSING
        return []

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._model(), self._round, self._evaluation.accuracy, reason))

    # --- what neighbours say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        if sender not in self._place:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        round_ = message.round
        if not max(0, self._round - WINDOW) <= round_ < min(self._round + WINDOW, self._kit.rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")
        if self._me not in self._out(round_, self._place[sender]):
            raise RemoteError(Refusal.MISMATCH, f"out of turn in round {round_}")
        if sender in self._heard.get(round_, {}):
            raise RemoteError(Refusal.MISMATCH, f"a second message for round {round_}")
        part = self._read(message)
        self._heard.setdefault(round_, {})[sender] = part
        return self._close_if_complete()

    def _senders(self, round_: int) -> tuple[PeerId, ...]:
        return tuple(p for p, place in self._place.items() if self._me in self._out(round_, place))

    # --- what a protocol says of itself ------------------------------------------------------------------------

    def _out(self, round_: int, peer: int) -> tuple[int, ...]:
        """The out-peers of `peer` in a round, by place: the same whoever asks."""
        raise NotImplementedError

    def _model(self) -> Vector:
        """(d,) what is trained from, evaluated and left behind."""
        raise NotImplementedError

    def _state(self) -> State:
        """What is remembered from one round to the next."""
        raise NotImplementedError

    def _restore(self, state: State) -> None:
        """Remember what `_state` said."""
        raise NotImplementedError

    def _share(self, update: Vector, samples: int, receivers: int) -> messages.Message | str:
        """Add a guarded local update (d,), and say what each of so many receivers is told; or why nothing can be."""
        raise NotImplementedError

    def _read(self, message: messages.Message) -> T:
        """What a message says. Raises RemoteError; changes nothing."""
        raise NotImplementedError

    def _take_in(self, parts: Sequence[T]) -> None:
        """Mix in what was heard for this round, and for earlier ones too late for them."""
        raise NotImplementedError
