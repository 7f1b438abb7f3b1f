"""Synchronous gossip: D-PSGD with public copies.

Theory of operation (Lian et al. 2017, "Can decentralized algorithms outperform centralized algorithms?", algorithm 1;
the public copies are those of Koloskova et al. 2019, CHOCO-SGD):

    x_i^{t+1/2} = x_i^t + u_i^t                          local training, after the guards
    q_i^t       = C(x_i^{t+1/2} - xhat_i)                said to every neighbour
    xhat_i     += q_i^t                                  by i and by all of its neighbours alike
    x_i^{t+1}   = x_i^{t+1/2} + sum_j W_ij (xhat_j - xhat_i)     or another aggregator, of the same offsets

where W already holds the step size: (1 - step) I + step W. With a lossless codec xhat_i = x_i^{t+1/2}, and at step 1
this is D-PSGD. With a lossy one the difference carries whatever was not said before, which is error feedback.
Differences only add up if none is missing: a neighbour whose update does not come in time is left out of the round (its
weight stays with the peer itself) and is asked for its whole copy.

A mesh that lives (`kit.links`). A round's neighbours, and their weights, follow from who is there when it begins. When
a peer comes, or comes back, what was held of it is void, and both ask each other for their copies; until a neighbour's
copy has come, it is not waited for and not mixed. One who starts late finds its place as `joining.py` says. A neighbour
that let a whole patience pass is not waited for either, until all that it owed is there.

Being left behind (after a partition, or a pause). A peer that hears of rounds more than AHEAD beyond its own asks for
copies, and where they are so far ahead, it jumps: it mixes them into its model, goes on in the round after theirs, and
tells its neighbours its copy as a whole. It goes as far as the second highest round that neighbours gave a copy for
(with one neighbour: as far as that one), or as far as a copy for which others vouch who are near that round themselves
(`catching_up.py`; elastic only). So no single liar can push it beyond the rounds of the honest, nor to the end of the
run. What a single liar still can do: push one who has no other neighbour; hold back one who has a single other
neighbour, if nobody can vouch for that one; and make its neighbours wait for one patience, each time after it has kept
up with them. Two who agree can push. One that was alone and is far ahead of all its neighbours goes back to them.

States: (JOINING, if late ->) TRAINING (waits for WorkDone) -> GATHERING (waits for its neighbours, or for the round's
timer) -> TRAINING ... -> CLOSING (waits for the last evaluation) -> stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, ClassVar, cast

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Keep,
    Machine,
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
from veilmesh.swarm.aggregators.base import Needs
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.answers import Answers
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.catching_up import CatchingUp
from veilmesh.swarm.strategies.copies import AHEAD, Copies, Offsets, Unread
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.joining import ATTEMPTS, Joining
from veilmesh.swarm.strategies.keeping import keep, recalled
from veilmesh.swarm.strategies.links import Links
from veilmesh.swarm.strategies.neighbourhood import Neighbourhood
from veilmesh.swarm.topology import lazy, metropolis_hastings

__all__ = ["AHEAD", "Gossip", "GossipMachine"]


class Phase(Enum):
    JOINING = auto()
    TRAINING = auto()
    GATHERING = auto()
    CLOSING = auto()


@STRATEGIES.register("gossip")
@dataclass(frozen=True)
class Gossip:
    """Synchronous gossip (D-PSGD) with Metropolis-Hastings weights and public copies.

    `step`: how far towards the neighbours a round goes. 1 is D-PSGD; a lossy codec needs less, or the copies, which lag
    behind the models, drive them apart (CHOCO-SGD's consensus step size, Koloskova et al. 2019, theorem 2).
    """

    step: Annotated[float, Field(gt=0, le=1)] = 1.0

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        return GossipMachine(kit)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return lazy(metropolis_hastings(graph), self.step)


class GossipMachine:
    """One peer of a synchronous gossip."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._links = Links(kit)
        self._held = Copies(kit.me, kit.initial, witness=self._links.elastic)
        for peer in self._links.neighbours:
            self._held.found(peer, kit.initial)
        self._x = kit.initial
        self._half = kit.initial
        self._round = 0
        self._phase = Phase.TRAINING
        self._answers = Answers(kit.me, self._held, self._links)
        self._near = Neighbourhood(self._held, self._links)
        self._behind = CatchingUp(self._held, self._links)
        self._joining = Joining(kit, self._held, self._links)
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._links.change(present)
                return self._arrive(now) if self._links.elastic and self._kit.late else self._begin()
            case WorkDone(name, result) if name.startswith("train"):
                return self._say(cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body))
            case PeersChanged(present):
                return self._meet(self._links.change(present))
            case TimerFired("join"):
                return self._enter_or_ask_again(now)
            case TimerFired():
                return self._give_up_waiting()

    def resume(self, kept: Keep) -> None:
        state = recalled(kept, self._evaluation)
        self._round = kept.round
        self._x = np.asarray(state["x"], np.float32)
        for name in state:
            kind, _, peer = name.partition("/")
            if kind == "next":
                self._held.open(PeerId(peer))
                self._held.take(PeerId(peer), int(state[name]) - 1, np.asarray(state[f"copy/{peer}"], np.float32))
        self._held.say(kept.round - 1, np.asarray(state[f"copy/{self._kit.me}"], np.float32))

    def _state(self) -> State:
        copies = {f"copy/{p}": copy for p, copy in self._held.copies.items()}
        return {"x": self._x, **copies, **{f"next/{p}": round_ for p, round_ in self._held.next.items()}}

    # --- one round ---------------------------------------------------------------------------------------------

    def _begin(self) -> list[Effect]:
        """The first round, or the one after the checkpoint, whose score may not have been taken. What was missing of a
        neighbour's copy then is asked for at once: nobody says it again."""
        self._links.turn()
        for peer in self._links.hearers:
            if not self._held.is_open(peer):
                self._held.open(peer) if self._round else self._held.found(peer, self._kit.initial)
        behind = [p for p in self._links.hearers if self._held.position(p) < self._round - 1]
        effects = [e for p in behind for e in self._near.ask(p, self._held.position(p) + 1, self._round)]
        effects += self._evaluation.due(self._round, lambda: self._x) if self._round else []
        return effects + self._go_on()

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        asks = self._near.turn(self._round)
        self._behind.turn()
        return [*asks, Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _say(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        self._half = self._base() + update
        mine = self._held.copies[self._kit.me]
        if reason := astray(self._half) or astray(self._half - mine):
            return [self._stop(reason)]
        trained_note = Note("trained", {"round": self._round, "loss": trained.loss})
        if (goal := self._behind.goal(self._round)) is not None:
            return [trained_note, *self._jump(goal)]
        blob, said = self._kit.sealer.encode(self._half - mine, self._round)
        self._held.say(self._round, mine + said)
        self._phase = Phase.GATHERING
        wanting = self._answers.due()
        body = messages.encode(messages.Update(self._round, trained.samples, blob))
        effects: list[Effect] = [Send(p, body) for p in self._links.hearers if p not in wanting]
        effects += [*self._answers.give(wanting), *self._answers.vouch(), *self._kit.sealer.alarms(), trained_note]
        effects.append(SetTimer("round", now + self._kit.patience))
        return effects + self._mix_if_complete()

    def _base(self) -> Vector:
        """What a local update is added to (d,): where it was trained from, unless a protocol keeps the two apart."""
        return self._x

    def _mix_if_complete(self) -> list[Effect]:
        return [] if self._phase is not Phase.GATHERING or self._near.waited_for(self._round) else self._mix()

    def _give_up_waiting(self) -> list[Effect]:
        if self._phase is not Phase.GATHERING:
            return []
        late = self._near.waited_for(self._round)
        effects = self._near.give_up(late, self._round)
        return [*effects, Note("late", {"round": self._round, "peers": [str(p) for p in late]}), *self._mix()]

    def _mix(self) -> list[Effect]:
        for peer in self._links.neighbours:
            if self._held.is_synced(peer):
                self._held.apply(peer, self._round)
                self._held.trim(peer, self._round)
        heard, offsets = self._heard()
        self._x = self._outer(self._kit.aggregator(self._half, offsets, [self._links.row[p] for p in heard]))
        note = Note("round", {"round": self._round, "group": len(heard) + 1})
        self._round += 1
        vouches = self._answers.vouch()
        kept = keep(self._kit, self._round, self._evaluation, self._state)
        scores = self._evaluation.due(self._round, lambda: self._x)
        return [CancelTimer("round"), note, *vouches, *kept, *scores, *self._go_on()]

    def _heard(self) -> tuple[list[PeerId], Sequence[Vector]]:
        """Whose copies are of this round, and their offsets (d,) from our own; one at a time where only a sum is
        wanted: a large model's offsets would be as large as all the copies."""
        heard = [p for p in self._links.neighbours if self._held.next.get(p) == self._round + 1]
        mine = self._held.copies[self._kit.me]
        offsets = Offsets(tuple(self._held.copies[p] for p in heard), mine)
        return heard, offsets if self._kit.aggregator.needs is Needs.SUM else list(offsets)

    def _outer(self, mixed: Vector) -> Vector:
        """What the next round begins with, after mixing (d,): a seam for protocols with an outer optimizer."""
        return mixed

    def _settle(self, x: Vector) -> None:
        """Go on from a model (d,) that no round of ours has led to: a seam for protocols that keep more than one."""
        self._x = x

    def _go_on(self) -> list[Effect]:
        if self._round < self._kit.rounds:
            return self._train()
        self._phase = Phase.CLOSING
        return []

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- who is there ------------------------------------------------------------------------------------------

    def _meet(self, appeared: frozenset[PeerId]) -> list[Effect]:
        """Others are there now."""
        self._answers.refresh(appeared)
        if self._phase is Phase.JOINING:
            return self._joining.meet(appeared) + self._enter_if_sure()
        asks = self._near.meet(appeared, self._round)
        return [*asks, *self._answers.give(self._answers.due()), *self._mix_if_complete()]

    # --- coming late, and being left behind --------------------------------------------------------------------

    def _arrive(self, now: float) -> list[Effect]:
        self._phase = Phase.JOINING
        return self._joining.ask(now)

    def _enter_if_sure(self) -> list[Effect]:
        accepted = self._joining.accepted(over=False)
        return self._enter_late(accepted) if accepted else []

    def _enter_or_ask_again(self, now: float) -> list[Effect]:
        if self._phase is not Phase.JOINING:
            return []
        if accepted := self._joining.accepted(over=True):
            return self._enter_late(accepted)
        refused = self._joining.refuse([])
        if self._joining.attempts < ATTEMPTS:
            return [*refused, *self._joining.ask(now)]
        return [*refused, self._stop("no neighbour gave a model that another vouched for")]

    def _enter_late(self, accepted: list[PeerId]) -> list[Effect]:
        refused = self._joining.refuse(accepted)
        round_, x, notes = self._joining.model(accepted)
        if reason := astray(x):
            return [self._stop(reason)]
        self._settle(x)
        return [CancelTimer("join"), *refused, *notes, *self._enter(round_)]

    def _jump(self, goal: int) -> list[Effect]:
        """Go on after `goal`, with the models of those that are there mixed into ours."""
        self._links.turn()
        self._behind.turn_to(goal)
        held, own = self._held, self._half
        synced = [p for p in self._links.neighbours if p in self._links.present and held.is_synced(p)]
        near = [p for p in synced if held.position(p) >= goal - AHEAD]
        weights = [self._links.row[p] for p in near]
        x = self._kit.aggregator(own, [held.copies[p] - own for p in near], weights)
        if reason := astray(x):
            return [self._stop(reason)]
        self._settle(x)
        note = Note("caught-up" if goal > self._round else "fell-back", {"from": self._round, "to": goal + 1})
        return [CancelTimer("round"), note, *self._enter(goal + 1)]

    def _jump_if_left_behind(self) -> list[Effect]:
        goal = self._behind.goal(self._round) if self._phase is Phase.GATHERING else None
        return self._mix_if_complete() if goal is None else self._jump(goal)

    def _enter(self, round_: int) -> list[Effect]:
        """Go on in `round_`: what we have is our public copy after the one before, and what was awaited is void."""
        self._round = round_
        self._held.say(round_ - 1, self._x)
        self._near.enter(round_)
        copies = self._answers.give(self._links.hearers)
        return [*copies, *self._answers.vouch(), *self._evaluation.due(round_, lambda: self._x), *self._go_on()]

    # --- what neighbours say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        elastic, ask = self._links.elastic, isinstance(message, messages.Ask)
        known = ask or sender in self._links.present if elastic else sender in self._links.neighbours
        if not known or sender == self._kit.me:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        match message:
            case messages.Update(round=round_, blob=blob):
                return self._take_update(sender, round_, blob)
            case messages.Copy(round=round_, blob=blob):
                return self._take_copy(sender, round_, blob)
            case messages.Ask(round=round_):
                return self._take_ask(sender, round_)
            case messages.Attest() if elastic:
                joining = self._phase is Phase.JOINING
                return [self._answers.nothing(sender, message)] if joining else self._answers.attest(sender, message)
            case messages.Vouch() if elastic:
                return self._take_vouch(sender, message)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in a gossip of public copies")

    def _take_update(self, sender: PeerId, round_: int, blob: bytes) -> list[Effect]:
        held = self._held
        if not held.is_open(sender):
            return []  # a link that they have and we do not, or not yet
        if self._phase is Phase.JOINING or not held.is_synced(sender):
            return self._take_early(sender, round_, blob)
        if self._links.elastic and round_ < held.next[sender]:
            return self._take_old(sender, round_)
        if round_ > max(self._round, held.next[sender]) + AHEAD:
            self._check_round(round_, 0, self._kit.rounds - 1)
            return self._near.ask_if_due(sender, round_, self._round)  # it is far ahead, or says so
        self._check_round(round_, max(held.next[sender], self._round - AHEAD + 1), round_)
        if round_ in held.inbox[sender]:
            raise RemoteError(Refusal.MISMATCH, f"a second update for round {round_}")
        held.put(sender, round_, Unread.kept(blob, self._kit.sealer.decode))
        if held.position(sender) > self._round + AHEAD:  # no round of ours needs an earlier copy: let it be the latest
            held.apply(sender, round_)
        self._near.made_good(sender, self._round)
        return self._mix_if_complete()

    def _take_old(self, sender: PeerId, round_: int) -> list[Effect]:
        """An update of which we hold what it led to: overtaken by a copy, or said by one that began anew."""
        if round_ < self._held.position(sender) - AHEAD:
            self._held.open(sender)
        return [*self._near.ask_if_due(sender, round_, self._round), *self._mix_if_complete()]

    def _take_early(self, sender: PeerId, round_: int, blob: bytes) -> list[Effect]:
        """An update of a copy that we do not have yet, or do not know whether to believe."""
        self._check_round(round_, 0, self._kit.rounds - 1)
        values = self._kit.sealer.decode(blob).values
        if self._phase is Phase.JOINING:
            self._joining.take_update(sender, round_, values)
            return []
        self._held.put(sender, round_, values)
        return self._near.ask_if_due(sender, 1, self._round)

    def _take_copy(self, sender: PeerId, round_: int, blob: bytes) -> list[Effect]:
        if not self._held.is_open(sender):
            return []
        oldest = 0 if self._links.elastic else self._held.position(sender) + 1  # elastic: it may have begun anew
        self._check_round(round_, oldest, self._kit.rounds - 1)
        copy = self._kit.sealer.decode_lossless(blob)
        if self._phase is Phase.JOINING:
            return self._joining.take_copy(sender, round_, copy) + self._enter_if_sure()
        if round_ < self._round - AHEAD:  # it was left behind, and will say so when it is back
            self._held.open(sender)
            self._behind.is_far_behind(sender, round_, copy)
            return self._jump_if_left_behind()
        overtaking = self._held.take(sender, round_, copy)
        self._near.synced(sender)
        if overtaking > round_:
            return [*self._near.ask(sender, overtaking, self._round), *self._jump_if_left_behind()]
        return self._behind.second_opinion(sender, self._round) + self._jump_if_left_behind()

    def _take_ask(self, sender: PeerId, round_: int) -> list[Effect]:
        if self._phase is Phase.JOINING and sender in self._links.present:
            nothing = messages.encode(messages.Vouch(0, self._kit.me, b""))
            return [*self._answers.ask(sender, round_), Send(sender, nothing)]
        effects = self._near.began_anew(sender, round_, self._round)
        return [*effects, *self._answers.ask(sender, round_), *self._mix_if_complete()]

    def _take_vouch(self, sender: PeerId, vouch: messages.Vouch) -> list[Effect]:
        if self._phase is Phase.JOINING:
            self._joining.take_vouch(sender, vouch)
            return self._enter_if_sure()
        self._behind.hear(sender, vouch)
        return self._jump_if_left_behind()

    def _check_round(self, round_: int, oldest: int, newest: int) -> None:
        if not oldest <= round_ <= newest:
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")
