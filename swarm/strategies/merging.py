"""One peer among those that elect a leader to merge: see `leader` for the protocol, and `election` for the vote.

States: the round's update is being TRAINED, or offered to the leader; beside it runs the election, if one is on. After
the last round: CLOSING (waits for the last evaluation) -> stopped.
"""

from typing import cast

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.feedback import ErrorFeedback
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
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
from veilmesh.swarm.strategies.election import ATTEMPTS, Election
from veilmesh.swarm.strategies.evaluation import Evaluation

__all__ = ["LeaderMachine"]


class LeaderMachine:
    """One peer: a leader when it is elected, a member otherwise."""

    def __init__(self, kit: Kit, term: int, penalty: int) -> None:
        self._kit = kit
        self._term = term
        self._x = kit.initial
        self._round = 0
        self._version = (0, 0)  # of the model: the ballot of who merged it, and the round it begins
        self._serving: tuple[PeerId | None, int] = (None, 0)  # the leader, and by which ballot
        self._former: tuple[PeerId | None, int] = (None, 0)  # the one before: its last model may still be under way
        self._until = 0  # the round with which the leader's term ends, at the latest
        self._source = 0  # the ballot under which this round's training began
        self._training = False  # one training at a time, however fast the leader goes on
        self._offer: tuple[int, bytes, Vector] | None = None  # this round's update: samples, bytes, and as it is read
        self._got: dict[PeerId, tuple[int, int, Vector]] = {}  # round, samples, update
        self._early: dict[PeerId, tuple[int, int, int, Vector]] = {}  # merged by one we have not elected yet
        self._helped: set[PeerId] = set()  # who was told the leader's model beside the rounds, in this term
        self._memory = ErrorFeedback(kit.sealer.dimension)
        self._election = Election(kit, penalty)
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present) | PeersChanged(present):
                self._election.see(present)
                return self._start(now) if isinstance(event, Started) else self._changed(now)
            case WorkDone(name, result) if name.startswith("train"):
                return self._trained(name, cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case TimerFired(name):
                return [] if self._over else self._expired(name, now)

    @property
    def _over(self) -> bool:
        return self._round >= self._kit.rounds

    @property
    def _leads(self) -> bool:
        return self._election.leader == self._kit.me and not self._election.on

    # --- who leads ---------------------------------------------------------------------------------------------

    def _start(self, now: float) -> list[Effect]:
        return self._alone() or [*self._train(), *self._call(now)]

    def _alone(self) -> list[Effect]:
        if len(self._election.everybody) > 1:
            return []
        return [Note("alone", {"round": self._round}), self._stop("everybody else is gone")]

    def _call(self, now: float) -> list[Effect]:
        return self._elected(self._election.settled, self._election.call(now), now)

    def _elected(self, before: int, effects: list[Effect], now: float) -> list[Effect]:
        """What an election said, and what follows if it has an outcome now."""
        if self._election.failed >= ATTEMPTS:
            return [*effects, self._stop(f"no leader had a majority in {ATTEMPTS} ballots")]
        if self._election.settled == before:
            return effects
        self._helped = set()
        self._former, self._serving = self._serving, (self._election.leader, self._election.settled)
        self._until = ((self._election.reached + 1) // self._term + 1) * self._term  # it may be one ahead of the most
        early, self._early = self._early, {}
        leader = self._election.leader
        if self._leads:
            elsewhere = [p for p, (round_, _, _) in self._got.items() if round_ != self._round]
            helped = [effect for p in sorted(elsewhere) for effect in self._help(p, self._got[p][0])]
            return [*effects, *helped, CancelTimer("leader"), self._patience("round", 1, now), *self._offered(now)]
        self._got = {}
        effects += [CancelTimer("round"), self._patience("leader", 2, now)]
        if leader in early and early[leader][0] == self._election.settled and self._may_be(early[leader][1]):
            return effects + self._adopt(*early[leader], now)
        return effects + self._offered(now)

    def _may_be(self, round_: int) -> bool:
        """Whether the leader may have a model of that round."""
        return self._election.reached - 1 <= round_ <= min(self._until, self._kit.rounds)

    def _changed(self, now: float) -> list[Effect]:
        if self._over:
            return []
        if alone := self._alone():
            return alone
        if not self._election.on and self._election.leader not in (None, *self._election.everybody):
            return self._lost("gone", now)
        effects = self._elected(self._election.settled, self._election.proceed(now), now)
        return effects if self._election.failed >= ATTEMPTS else effects + self._merge_if_complete(now)

    def _lost(self, why: str, now: float) -> list[Effect]:
        note = Note("leader-lost", {"round": self._round, "leader": str(self._election.leader), "why": why})
        self._election.depose()
        return [note, CancelTimer("leader"), CancelTimer("round"), *self._call(now)]

    def _expired(self, name: str, now: float) -> list[Effect]:
        if name == "ballot":
            return self._elected(self._election.settled, self._election.expired(now), now)
        if self._election.on:
            return []
        if name == "leader":
            return [] if self._leads else self._lost("silent", now)
        if not self._leads:
            return []
        if self._kit.me not in self._got:
            return [self._patience("round", 1, now)]  # slower than the round's patience ourselves
        if 2 * len(self._here()) <= len(self._election.everybody):
            return self._lost("no majority", now)
        late = [str(p) for p in self._kit.order if p in self._election.everybody and p not in self._here()]
        return [Note("late", {"round": self._round, "peers": late}), *self._merge(now)]

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        if self._training:
            return []
        self._training = True
        return [Work(self._name(), self._kit.work.train(self._round, self._x))]

    def _name(self) -> str:
        return f"train-{self._round}-{self._source}"

    def _trained(self, name: str, trained: Trained, now: float) -> list[Effect]:
        self._training = False
        if name != self._name():
            return [] if self._over else self._train()  # the others went on without us: what is late is not said
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        wanted = self._memory.outgoing(update)
        if reason := astray(wanted):
            return [self._stop(reason)]
        blob, said = self._kit.sealer.encode(wanted, self._round)
        self._memory.sent(wanted, said)
        self._offer = (trained.samples, blob, said)
        note = Note("trained", {"round": self._round, "loss": trained.loss})
        return [*self._kit.sealer.alarms(), note, *self._offered(now)]

    def _offered(self, now: float) -> list[Effect]:
        """Hand this round's update to the leader, if there are both."""
        leader = self._election.leader
        if self._offer is None or self._election.on or leader is None or self._over:
            return []
        samples, blob, said = self._offer
        if leader == self._kit.me:
            self._got[leader] = (self._round, samples, said)
            return self._merge_if_complete(now)
        update = messages.encode(messages.Update(self._round, samples, blob))
        sends: list[Effect] = [Send(leader, update)] if leader in self._election.everybody else []
        return [*sends, self._patience("leader", 2, now)]

    def _here(self) -> dict[PeerId, tuple[int, Vector]]:
        """The updates of this round, in roster order."""
        got = [(peer, self._got[peer]) for peer in self._kit.order if peer in self._got]
        return {peer: (samples, update) for peer, (round_, samples, update) in got if round_ == self._round}

    def _merge_if_complete(self, now: float) -> list[Effect]:
        if self._over or not self._leads or self._election.everybody - self._here().keys():
            return []
        return self._merge(now)

    def _merge(self, now: float) -> list[Effect]:
        here = list(self._here().values())
        total = sum(samples for samples, _ in here)
        still = np.zeros_like(self._x)
        merged = self._kit.aggregator(still, [update for _, update in here], [n / total for n, _ in here])
        if reason := astray(self._x + merged):
            return [self._stop(reason)]
        x, ballot = self._x + merged, self._election.settled
        body = self._said(x, self._round + 1, len(here))
        sends = [Send(p, body) for p in self._kit.order if p in self._others()]
        return [*sends, *self._begin(x, ballot, self._round + 1, len(here), now)]

    def _said(self, x: Vector, round_: int, group: int) -> bytes:
        blob = table.encode(Dense(), x, np.random.default_rng(0))
        return messages.encode(messages.Merged(round_, self._election.settled, group, blob))

    def _begin(self, x: Vector, ballot: int, round_: int, group: int, now: float) -> list[Effect]:
        """The round that begins with model x (d,)."""
        self._x, self._round, self._version, self._source = x, round_, (ballot, round_), ballot
        self._offer = None
        self._got = {p: got for p, got in self._got.items() if got[0] >= round_}  # some may be ahead of the leader
        self._election.at(round_)
        taken = Note("taken-over", {"round": round_})
        effects: list[Effect] = [Note("round", {"round": round_ - 1, "group": group}) if group else taken]
        effects += self._evaluation.due(round_, lambda: self._x) if group else []
        if self._over:
            return [*effects, CancelTimer("round"), CancelTimer("leader"), *self._election.drop()]
        effects += self._train()
        if round_ % self._term == 0 and ballot == self._election.settled and group and not self._election.on:
            return [*effects, CancelTimer("round"), CancelTimer("leader"), *self._call(now)]
        name, patience = ("round", 1) if self._election.leader == self._kit.me else ("leader", 2)
        return [*effects, self._patience(name, patience, now)]

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender not in self._kit.weights or sender == self._kit.me:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        match message:
            case messages.Commit() | messages.Reveal() | messages.Vote():
                if self._over:
                    return []
                settled = self._election.settled
                return self._elected(settled, self._election.hear(sender, message, now), now)
            case messages.Update():
                return self._take_update(sender, message, now)
            case messages.Merged():
                return self._take_merged(sender, message, now)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} where a leader merges")

    def _take_update(self, sender: PeerId, message: messages.Update, now: float) -> list[Effect]:
        if message.samples > self._kit.examples:
            raise RemoteError(Refusal.MISMATCH, f"{message.samples} examples, of at most {self._kit.examples}")
        if not self._leads and not self._election.on:
            raise RemoteError(Refusal.MISMATCH, "an update for a peer that does not lead")
        if not self._round <= message.round <= self._round + self._election.on or self._over:
            return self._help(sender, message.round)
        self._got[sender] = (message.round, message.samples, self._kit.sealer.decode(message.blob).values)
        return self._merge_if_complete(now)

    def _help(self, sender: PeerId, round_: int) -> list[Effect]:
        """A member that is elsewhere is told the leader's model, once in a term; one that is just late has it."""
        new = self._version[0] < self._election.settled  # nothing was merged in this term yet
        if self._election.on and round_ < self._round:
            return []
        if not self._leads or sender in self._helped:
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")
        if round_ < self._round and not new:
            return []
        self._helped.add(sender)
        return [Send(sender, self._said(self._x, self._round, 0))] if sender in self._others() else []

    def _take_merged(self, sender: PeerId, message: messages.Merged, now: float) -> list[Effect]:
        if message.group > len(self._kit.order):
            raise RemoteError(Refusal.MISMATCH, f"{message.group} updates of {len(self._kit.order)} peers")
        early = self._election.on and message.ballot == self._election.ballot
        former = (sender, message.ballot) == self._former
        if not early and not former and (sender, message.ballot) != self._serving:
            raise RemoteError(Refusal.MISMATCH, f"a model of ballot {message.ballot} from one that does not lead by it")
        if self._over or (message.ballot, message.round) <= self._version:
            return []
        if former and message.round > self._election.reached:
            return []  # most have not heard it, and follow another now
        if not early and not former and not self._may_be(message.round):
            raise RemoteError(Refusal.MISMATCH, f"round {message.round} while we are in {self._round}")
        merged = (message.ballot, message.round, message.group, self._kit.sealer.decode_lossless(message.blob))
        if early:
            self._early[sender] = merged
            return []
        return self._adopt(*merged, now)

    def _adopt(self, ballot: int, round_: int, group: int, x: Vector, now: float) -> list[Effect]:
        back = self._election.on and not self._election.wanted and self._serving[0] in self._others()
        idle = self._election.drop() if back else []
        if round_ == self._round and np.array_equal(x, self._x):
            self._version = (ballot, round_)
            return [*idle, *self._offered(now)] if idle else []
        return [*idle, *self._begin(x, ballot, round_, group, now)]

    # --- small things ------------------------------------------------------------------------------------------

    def _others(self) -> frozenset[PeerId]:
        return self._election.everybody - {self._kit.me}

    def _patience(self, name: str, times: int, now: float) -> SetTimer:
        return SetTimer(name, now + times * self._kit.patience)
