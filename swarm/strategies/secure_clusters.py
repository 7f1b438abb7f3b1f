"""Robust aggregation of the means of groups in which nobody sees an update: robust against few liars, and cheap.

In round t, all peers at the same model x:

    a public seed divides the roster into groups of at least g; each sums its updates by masks (`secure_session`)
    every member tells everybody the digest of its group's sum, and one of them the sum itself (`cluster_means`)
    x <- x + rule(the groups' means), where the rule is the scenario's aggregator, the same for everybody

Masks hide single updates, so a robust rule cannot be shown them; it is shown means of g, whose honest spread is less by
sqrt(g) (Karimireddy et al. 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing"). A liar spoils
the mean of its whole group: f liars spoil f groups at worst, so a rule that is told of f needs 2f + 1 groups or more,
and g times as many peers; the honest in a spoilt group are lost for the round. To lie about a group's sum afterwards
takes more than half of the group, and gains nothing more.

What a peer sees: every group's mean, once a round. With the rest of its group colluding, a peer's update is seen.

Faults: a group without a sum (see `secure_session`), or whose members say different ones, is left out; the rule may
then have too few means, and the round changes nothing (`abandoned`). A peer that finds itself with another model than
more than lie asks for theirs (`common_model`). `f`: how many those are.

States: TRAINING -> SUMMING (in the group) -> TELLING (between groups) -> [ASKING] -> TRAINING ... -> CLOSING.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from typing import Annotated, ClassVar, cast

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.fixed import FixedPoint
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Machine,
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
from veilmesh.swarm.schedule import random_groups
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.secure_messages import SumMessage
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.cluster_means import (
    NOTHING,
    ClusterMeans,
    Stated,
    Whole,
    read_stated,
    read_whole,
    said,
)
from veilmesh.swarm.strategies.common_model import CommonModel, model_digest
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.strategies.secure_patience import TIMERS, expired, no_longer, waiting
from veilmesh.swarm.strategies.secure_plan import SumPlan, lowest_threshold
from veilmesh.swarm.strategies.secure_session import SecureSession
from veilmesh.swarm.topology import complete_rows

__all__ = ["AHEAD", "SecureClusters", "SecureClustersMachine"]

AHEAD = 2
"""How many rounds another may be ahead of ours."""

STATED, WHOLE, WANTED = 0, 1, 2
"""What is said between groups: the digest of a sum, a sum, and that one is missing."""


class Phase(Enum):
    TRAINING = auto()
    SUMMING = auto()
    TELLING = auto()
    ASKING = auto()
    CLOSING = auto()


@STRATEGIES.register("secure-clusters")
@dataclass(frozen=True)
class SecureClusters:
    """The scenario's aggregator over the means of random groups, of updates that nobody sees: sums by masks.

    `group`: how many peers a group has at least; larger hides better, smaller leaves more means to choose from.
    `limit`: the largest change of a coordinate in a round; what is beyond it is cut. `f`: how many peers may lie about
    the model that all share: one that has lost it believes what more than f say.
    """

    group: Annotated[int, Field(ge=2, le=64)] = 3
    limit: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    f: Annotated[int, Field(ge=0)] = 1

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = True

    def machine(self, kit: Kit) -> Machine:
        if not kit.sealer.lossless:
            raise BadInput(
                "secure-clusters counts and masks by itself, so a codec has nothing to say; leave codec out."
            )
        if (shown := len(_groups(kit, 0, self.group))) < kit.aggregator.fewest:
            raise BadInput(
                f"The aggregator has to be shown {kit.aggregator.fewest} means, and {len(kit.order)} peers in groups "
                f"of {self.group} make {shown}; lower group or f, or add peers."
            )
        return SecureClustersMachine(kit, self)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        return complete_rows(graph, "secure-clusters")


def _groups(kit: Kit, round_: int, least: int) -> tuple[tuple[int, ...], ...]:
    """The round's groups, each of at least so many, by place; one of all where there are too few for two."""
    peers = len(kit.order)
    size = -(-peers // max(1, peers // least))
    return tuple(sorted(set(random_groups(kit.seed, round_, peers, size))))


class SecureClustersMachine:
    """One peer of robust aggregation over the means of groups."""

    def __init__(self, kit: Kit, options: SecureClusters) -> None:
        self._kit = kit
        self._options = options
        self._me = kit.order.index(kit.me)
        self._place = {peer: place for place, peer in enumerate(kit.order)}
        self._x = kit.initial
        self._secret = kit.secret or sha256(f"{kit.private}/cluster-sums".encode()).digest()
        self._sessions: dict[int, SecureSession] = {}
        self._means: dict[int, ClusterMeans] = {}
        self._mine: dict[int, bytes] = {}  # by round: what was said of our group's sum, for those who ask
        self._repeated: set[tuple[int, PeerId]] = set()
        self._common = CommonModel(kit, options.f)
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
        self._phase = Phase.TRAINING
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._see(present)
                return self._train()
            case WorkDone(name, result) if name.startswith("train"):
                return self._contribute(cast(Trained, result), now)
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case PeersChanged(present):
                self._see(present)
                sends = [send for session in list(self._sessions.values()) for send in session.see(present)]
                return [*sends, *self._proceed(now)]
            case TimerFired(name):
                return self._timer(name, now)

    # --- in the group ------------------------------------------------------------------------------------------

    def _see(self, present: frozenset[PeerId]) -> None:
        self._present = present
        self._common.see(present)

    def _train(self) -> list[Effect]:
        """Train, while keys and shares go out."""
        self._phase = Phase.TRAINING
        work: list[Effect] = [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]
        self._sessions[self._round] = session = self._session(self._round)
        return [*work, *session.begin(self._present), *self._common.answers(self._round, self._x)]

    def _contribute(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        if reason := astray(update) or astray(self._x + update):
            return [self._stop(reason)]
        self._phase = Phase.SUMMING
        effects: list[Effect] = list(self._kit.sealer.alarms())
        effects.append(Note("trained", {"round": self._round, "loss": trained.loss}))
        effects += self._session(self._round).contribute(self._fixed(self._round).encode(update))
        return [*effects, *waiting(now, self._kit.patience), *self._proceed(now)]

    def _timer(self, name: str, now: float) -> list[Effect]:
        session = self._sessions.get(self._round)
        if name == "ask" and self._phase is Phase.ASKING:
            self._common.give_up()
            return self._train()
        if name in ("told", "repeat") and self._phase is Phase.TELLING:
            return self._close(now) if name == "told" else self._demand(now)
        if self._phase is not Phase.SUMMING or session is None or name not in TIMERS:
            return []
        return [*expired(name, session, self._round, now, self._kit.patience), *self._proceed(now)]

    # --- between groups ----------------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[Effect]:
        """Tell what the group's sum is once there is one or none, and close the round once all groups have told."""
        effects, session = list[Effect](), self._sessions.get(self._round)
        if self._phase is Phase.SUMMING and session is not None and session.over:
            effects += self._tell(session, now)
        if self._phase is Phase.TELLING and self._told().settled({self._place[p] for p in self._present}):
            effects += self._close(now)
        return effects

    def _tell(self, session: SecureSession, now: float) -> list[Effect]:
        self._phase, means, summed = Phase.TELLING, self._told(), session.result
        whole = None
        if summed is not None and not summed.missing:
            whole = Whole(len(summed.survivors), summed.words.tobytes())
            self._mine[self._round] = said(whole)
            means.take(self._me, whole)
        stated = Stated(whole.digest if whole else NOTHING, model_digest(self._x))
        means.state(self._me, stated)
        note = [] if whole else [Note("no-sum", {"round": self._round, "why": session.reason or "parts are missing"})]
        sends = [self._say(p, STATED, said(stated)) for p in self._kit.order if p in self._present]
        wholes = [self._say(p, WHOLE, said(whole)) for p in self._receivers() if whole]
        timers = no_longer()
        timers += [SetTimer(name, now + part * self._kit.patience) for name, part in (("repeat", 1 / 8), ("told", 1))]
        return [*note, *sends, *wholes, *timers]

    def _receivers(self) -> list[PeerId]:
        """Those of other groups that it is for us to tell the sum: our group shares them out."""
        group = next(g for g in self._groups(self._round) if self._me in g)
        here = {self._place[p] for p in self._present} | {self._me}
        alive = [place for place in group if place in here]
        others = [(place, p) for place, p in enumerate(self._kit.order) if place not in group and p in self._present]
        return [p for place, p in others if alive[place % len(alive)] == self._me]

    def _demand(self, now: float) -> list[Effect]:
        """Ask others for sums that did not come from those whose turn it was."""
        places = self._told().to_ask({self._place[p] for p in self._present})
        sends = [self._say(self._kit.order[place], WANTED, b"") for place in places]
        return [*sends, SetTimer("repeat", now + self._kit.patience / 8)]

    def _close(self, now: float) -> list[Effect]:
        means, done, start = self._told(), self._round, model_digest(self._x)
        found = [(count, self._fixed(done, n).decode_sum(words) / count) for n, (count, words) in means.sums().items()]
        total, notes = sum(count for count, _ in found), list[Effect]()
        if len(found) < max(1, self._kit.aggregator.fewest):
            notes.append(Note("abandoned", {"round": done, "why": f"{len(found)} groups have a mean"}))
        else:
            offsets = [mean.astype(np.float32) for _, mean in found]
            shares = [count / total for count, _ in found]
            self._x = self._x + self._kit.aggregator(np.zeros_like(self._x), offsets, shares)
            if reason := astray(self._x):
                return [*notes, self._stop(reason)]
        bases = means.bases()
        late = not means.complete() and self._common.is_ahead(done + 1)
        lost = late or sum(bases.values()) - bases[start] > self._options.f
        notes.append(Note("round", {"round": done, "group": total or 1}))
        return [CancelTimer("told"), CancelTimer("repeat"), *notes, *self._begin(done + 1, lost, now)]

    def _begin(self, round_: int, lost: bool, now: float) -> list[Effect]:
        self._round = round_
        self._sessions = {r: session for r, session in self._sessions.items() if r >= round_ - 1}
        self._means = {r: means for r, means in self._means.items() if r >= round_}
        self._mine = {r: body for r, body in self._mine.items() if r >= round_ - 1}
        self._repeated = {key for key in self._repeated if key[0] >= round_ - 1}
        due = self._evaluation.due(round_, lambda: self._x)
        if round_ >= self._kit.rounds:
            self._phase = Phase.CLOSING
            return due
        if not lost:
            return [*due, *self._train()]
        self._phase = Phase.ASKING
        return [*due, *self._common.ask(round_, now)]

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender not in self._place or sender == self._kit.me:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        if message.round >= self._kit.rounds + isinstance(message, messages.Copy | messages.Ask):
            raise RemoteError(Refusal.MISMATCH, f"round {message.round} of {self._kit.rounds}")
        if isinstance(message, SumMessage):
            return self._take_sum(sender, message, now)
        match message:
            case messages.Step():
                return self._take_step(sender, message, now)
            case messages.Copy():
                return self._take_copy(sender, message, now)
            case messages.Ask():
                return self._common.asked(sender, message, self._round, self._x)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in secure-clusters")

    def _take_sum(self, sender: PeerId, message: SumMessage, now: float) -> list[Effect]:
        if not self._round - 1 <= message.round <= self._round + AHEAD:
            return []
        session = self._sessions.get(message.round) or self._session(message.round)
        sends = session.receive(sender, message)
        self._common.reached(sender, message.round)
        self._sessions[message.round] = session
        return [*sends, *self._proceed(now)]

    def _take_step(self, sender: PeerId, message: messages.Step, now: float) -> list[Effect]:
        place, round_ = self._place[sender], message.round
        match message.step:
            case 0:
                stated = read_stated(message.body)
                self._heard(round_, sender, lambda means: means.state(place, stated))
            case 1:
                whole = read_whole(message.body, self._x.size, len(self._kit.order))
                self._heard(round_, sender, lambda means: means.take(place, whole))
            case 2:
                return self._give(sender, round_)
            case step:
                raise RemoteError(Refusal.MALFORMED, f"step {step}")
        return self._proceed(now)

    def _heard(self, round_: int, sender: PeerId, take: Callable[[ClusterMeans], None]) -> None:
        """What is said of our round, or of one that we may be in next: where the others are, if we have lost them."""
        self._common.reached(sender, round_)
        if self._round <= round_ <= max(self._round, self._common.frontier) + AHEAD:
            take(self._means.setdefault(round_, ClusterMeans(self._groups(round_))))
            last = sorted(self._means)[-2 * AHEAD :]
            self._means = {r: means for r, means in self._means.items() if r == self._round or r in last}

    def _give(self, sender: PeerId, round_: int) -> list[Effect]:
        """Our group's sum, once more for everybody who asks, and once only."""
        if round_ not in self._mine or (round_, sender) in self._repeated or sender not in self._present:
            return []
        self._repeated.add((round_, sender))
        return [Send(sender, messages.encode(messages.Step(round_, WHOLE, self._mine[round_])))]

    def _take_copy(self, sender: PeerId, message: messages.Copy, now: float) -> list[Effect]:
        if (found := self._common.hear(sender, message, self._round)) is None:
            return []
        round_, self._x = found
        return [*self._common.found(round_), *self._begin(round_, False, now)]

    # --- small things ------------------------------------------------------------------------------------------

    def _groups(self, round_: int) -> tuple[tuple[int, ...], ...]:
        return _groups(self._kit, round_, self._options.group)

    def _told(self) -> ClusterMeans:
        return self._means.setdefault(self._round, ClusterMeans(self._groups(self._round)))

    def _fixed(self, round_: int, number: int | None = None) -> FixedPoint:
        """How a group counts: by number, or our own."""
        groups = self._groups(round_)
        group = groups[number] if number is not None else next(g for g in groups if self._me in g)
        return FixedPoint(32, self._options.limit, len(group))

    def _session(self, round_: int) -> SecureSession:
        """This peer's side of its group's sum in a round."""
        if round_ in self._sessions:
            return self._sessions[round_]
        group = next(g for g in self._groups(round_) if self._me in g)
        threshold = lowest_threshold(len(group))
        members = tuple(self._kit.order[place] for place in group)
        copies, context = len(group) - threshold + 1, f"secure-clusters/{self._kit.seed}".encode()
        plan = SumPlan(members, round_, 0, threshold, self._x.size, 32, copies, context)
        return SecureSession(plan, self._kit.me, self._secret)

    def _say(self, to: PeerId, step: int, body: bytes) -> Send:
        return Send(to, messages.encode(messages.Step(self._round, step, body)))
