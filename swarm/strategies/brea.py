"""BREA: robust aggregation of updates that nobody sees, by shares.

So, Guler and Avestimehr 2021, "Byzantine-resilient secure federated learning", without its server: in round t every
peer deals shares of its update u_i, in whole numbers modulo p = 2^31 - 1; all compute shares of ||u_i - u_j||^2 and
decode these distances; multi-Krum chooses by them alone; shares of the chosen updates are added, and only their sum is
put together:  x <- x + mean of the chosen u_i.  What is said in which step: `brea_session`; what must hold between
peers, liars and colluding ones: `brea_terms` (N >= 2f + 2T + 1 + silent ones, N >= 3f + 1, ...).

What a peer learns: all pairwise distances (by design: the choice is made from them), who is chosen, and the sum. Up to
`colluding` peers together learn no more, but of their own updates. Liars may collude: those among them that pool their
shares count as colluding, so where `colluding` is below f, f liars together can read everybody's update. A liar that
splits the others' view of who has dealt may learn two random linear combinations of an update.

What a liar can do: say any update that is not chosen, or is near enough; deal or say wrong shares, for which it is
named (`fault`) and left out; and spoil a round, of which nothing is taken then (`abandoned`), by falling silent where
the terms leave no room for it, or by telling some one thing and others another. It is no Byzantine agreement.

A round costs a peer 2 (N - 1) vectors of words of four bytes: everybody's shares, and of the sum. `keep` shares only a
fraction of the coordinates, the same ones for all, drawn anew every round. There is no codec: shares are uniform, and
cannot be compressed. Of an update, what lies beyond `reach` or between two levels is remembered, and said later.

Secrets follow from the kit's `secret` and from what is shared. Where there is none, as in the laboratory, they follow
from the scenario's seed, so that runs can be repeated; then whoever knows the seed can open everything.

Faults: a step waits for everybody that is present and has spoken in the step before: for a patience in the first (who
is slow to train), for a quarter of it in the others, and for an eighth once most have gone on. A peer that finds itself
with another model than the others, or behind them, asks them for theirs, and takes what f + 1 say alike.

States: TRAINING (waits for WorkDone) -> EXCHANGING (the steps of a round) -> [ASKING] -> TRAINING ... -> CLOSING.
"""

from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from typing import Annotated, ClassVar, cast

import networkx as nx
import numpy as np
from pydantic import Field

from veilmesh.core import BadInput, Refusal, RemoteError, seed_number
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.crypto.codecs.randk import random_coordinates
from veilmesh.crypto.feedback import ErrorFeedback
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
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.brea_session import BreaSession
from veilmesh.swarm.strategies.brea_steps import Step, read, round_label
from veilmesh.swarm.strategies.brea_terms import Terms, dequantised, quantised, terms
from veilmesh.swarm.strategies.common_model import CommonModel, model_digest
from veilmesh.swarm.strategies.evaluation import Evaluation
from veilmesh.swarm.topology import complete_rows

__all__ = ["AHEAD", "REMEMBERED", "Brea", "BreaMachine"]

AHEAD = 2
"""How many rounds another may be ahead of ours: what it says there is a vector for each."""

REMEMBERED = 8
"""How many times its reach a coordinate may be remembered: who learns more in every round would speak of the past."""


class Phase(Enum):
    TRAINING = auto()
    EXCHANGING = auto()
    ASKING = auto()
    CLOSING = auto()


@STRATEGIES.register("brea")
@dataclass(frozen=True)
class Brea:
    """Robust aggregation of hidden updates (BREA): multi-Krum by distances between shares, then the sum of the chosen.

    `f`: how many peers may lie. `colluding`: how many may pool what they are dealt without learning anything; one more
    reads every update. Both by default as many as there may be if one is gone, f first. `chosen`: how many updates are
    averaged, by default n - f; `proven` asks for Krum's proof, which allows for n - 2f - 3. `reach`: the largest change
    of a coordinate in a round, as a multiple of local steps x learning rate. `levels`: how many steps it is cut in, by
    default as many as the field has room for. `keep`: the fraction of the coordinates that a round is about.
    """

    f: Annotated[int, Field(ge=0)] | None = None
    colluding: Annotated[int, Field(ge=1)] | None = None
    chosen: Annotated[int, Field(ge=1)] | None = None
    proven: bool = False
    reach: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    levels: Annotated[int, Field(ge=1)] | None = None
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        if not kit.sealer.lossless:
            raise BadInput("brea counts and shares by itself, so a codec has nothing to say; leave codec out.")
        count = max(1, round(self.keep * kit.sealer.dimension))
        agreed = self.terms(len(kit.order)).measured(count, self.levels)
        return BreaMachine(kit, agreed, self.reach * kit.stride)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        rows = complete_rows(graph, "brea")
        self.terms(len(rows))
        return rows

    def terms(self, members: int) -> Terms:
        """What is agreed among so many. Raises BadInput."""
        return terms(members, self.colluding, self.f, self.chosen, self.proven)


class BreaMachine:
    """One peer of BREA."""

    def __init__(self, kit: Kit, agreed: Terms, reach: float) -> None:
        self._kit = kit
        self._terms = agreed
        self._reach = reach
        self._me = kit.order.index(kit.me)
        self._place = {peer: place for place, peer in enumerate(kit.order)}
        self._x = kit.initial
        self._memory = ErrorFeedback(kit.sealer.dimension)
        self._present: frozenset[PeerId] = frozenset()
        self._round = 0
        self._phase = Phase.TRAINING
        self._session: BreaSession | None = None
        self._wanted = self._said = kit.initial  # of this round: the update and its memory; what is said of it
        self._silent: set[int] = set()  # in this round
        self._patient = False  # whether this round's first step that most were missing in was given more time
        self._due = 0.0  # when the present step is over
        self._early: dict[tuple[int, int, int], bytes] = {}  # round, step, sender: what was said before we got there
        self._common = CommonModel(kit, agreed.liars)
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._see(present)
                return self._train()
            case WorkDone(name, result) if name.startswith("train"):
                return self._deal(cast(Trained, result), now) if self._phase is Phase.TRAINING else []
            case WorkDone(name, result):
                return self._evaluation.scored(name, cast(Evaluated, result), self._stop)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body), now)
            case PeersChanged(present):
                self._see(present)
                return self._proceed(now)
            case TimerFired(name):
                return self._expired(name, now)

    # --- one round ---------------------------------------------------------------------------------------------

    def _see(self, present: frozenset[PeerId]) -> None:
        self._present = present
        self._common.see(present)

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        work: list[Effect] = [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]
        return work + self._common.answers(self._round, self._x)

    def _deal(self, trained: Trained, now: float) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        self._wanted = self._memory.outgoing(update)
        if reason := astray(self._wanted) or astray(self._x + update):
            return [self._stop(reason)]
        if self._common.is_ahead(self._round + AHEAD):  # too late for this round, and the next
            self._remember(np.zeros_like(self._x))
            return self._ask(now)
        shown = self._shown()
        values = quantised(self._wanted[shown], self._reach, self._terms.levels)
        self._said = np.zeros_like(self._x)
        self._said[shown] = dequantised(values, 1, self._reach, self._terms.levels)
        secret = self._kit.secret or str(self._kit.private).encode()
        name = f"/brea/{self._kit.seed}/{self._round}/".encode()
        key = blake2b(secret + name + values.tobytes(), digest_size=32).digest()  # never one key for two updates
        label = round_label(self._kit.seed, self._round)
        self._session = BreaSession(self._terms, self._me, key, label, model_digest(self._x), values)
        self._phase, self._silent, self._patient = Phase.EXCHANGING, set(), False
        deals = self._session.deal()
        sends = [self._say(p, Step.DEAL, deals[self._place[p]]) for p in self._kit.order if p in self._present]
        for (round_, step, sender), raw in sorted(self._early.items()):
            if round_ == self._round:
                self._session.hear(Step(step), sender, raw)
        note = Note("trained", {"round": self._round, "loss": trained.loss})
        return [*sends, *self._kit.sealer.alarms(), note, self._wait(now, 1), *self._proceed(now)]

    def _shown(self) -> Mask:
        """The coordinates that this round is about, (d,)."""
        seed = seed_number(self._kit.seed, "brea", self._round)
        return random_coordinates(seed, self._terms.length, self._kit.sealer.dimension)

    def _proceed(self, now: float) -> list[Effect]:
        """Go on for as long as nobody is missing, and end the round if that was all."""
        effects, session = list[Effect](), self._session
        if self._phase is not Phase.EXCHANGING or session is None:
            return []
        while not session.over and not session.missing(self._awaited()):
            effects += self._advance(session, now)
        if session.over:
            return effects + self._close(session, now)
        if 2 * session.ahead() > len(self._present) and self._due > now + self._kit.patience / 8:
            effects.append(self._wait(now, 1 / 8))
        return effects

    def _advance(self, session: BreaSession, now: float) -> list[Effect]:
        body = session.advance()
        if body is None and not session.over:
            self._silent = set()  # it is for those that go on to say what they come to
        waits = [] if session.over else [self._wait(now, 1 / 4 if body else 1)]
        if body is None:
            return list(waits)
        sends = [self._say(p, session.step, body) for p in self._kit.order if p in self._present]
        return [*sends, *waits]

    def _awaited(self) -> set[int]:
        return {self._place[p] for p in self._present} - self._silent

    def _expired(self, name: str, now: float) -> list[Effect]:
        if name == "ask" and self._phase is Phase.ASKING:
            self._common.give_up()
            return self._train()
        if name != "step" or self._phase is not Phase.EXCHANGING or self._session is None:
            return []
        silent = self._session.missing(self._awaited())
        if len(silent) > self._terms.members - self._terms.quorum and not self._patient:
            self._patient = True  # too few to go on without: it is they who still wait for somebody
            return [self._wait(now, 1)]
        self._silent |= silent
        note = Note("late", {"round": self._round, "peers": [str(self._kit.order[i]) for i in sorted(silent)]})
        return [note, *self._proceed(now)]

    def _close(self, session: BreaSession, now: float) -> list[Effect]:
        notes = [self._fault(*fault) for fault in session.faults]
        if session.total is None:
            notes.append(Note("abandoned", {"round": self._round, "why": session.failed}))
            self._remember(np.zeros_like(self._x))
        else:
            chosen = [str(self._kit.order[i]) for i in session.chosen]
            notes.append(Note("chosen", {"round": self._round, "peers": chosen}))
            self._remember(self._said)
            mean = dequantised(session.total, len(chosen), self._reach, self._terms.levels)
            self._x = self._x.copy()
            self._x[self._shown()] += mean
        if reason := astray(self._x):
            return [*notes, self._stop(reason)]
        late = session.total is None and self._common.is_ahead(self._round + 1)
        lost = late or session.holds_none_of() > self._terms.liars
        notes.append(Note("round", {"round": self._round, "group": len(session.chosen) or 1}))
        return [CancelTimer("step"), *notes, *self._begin(self._round + 1, lost, now)]

    def _remember(self, said: Vector) -> None:
        """Of this round's update, all but what was said; so much of it that it is said within a few rounds."""
        most = np.float32(REMEMBERED * self._reach)
        self._memory.sent(np.clip(self._wanted, said - most, said + most), said)

    def _fault(self, kind: str, who: int, whom: int) -> Note:
        data = {"round": self._round, "kind": kind, "peer": str(self._kit.order[who])}
        return Note("fault", data if whom < 0 else {**data, "towards": str(self._kit.order[whom])})

    def _begin(self, round_: int, lost: bool, now: float) -> list[Effect]:
        self._round, self._session = round_, None
        self._early = {key: raw for key, raw in self._early.items() if key[0] >= round_}
        due = self._evaluation.due(round_, lambda: self._x)
        if round_ >= self._kit.rounds:
            self._phase = Phase.CLOSING
            return due
        return [*due, *(self._ask(now) if lost else self._train())]

    def _ask(self, now: float) -> list[Effect]:
        self._phase = Phase.ASKING
        return self._common.ask(self._round, now)

    def _take_copy(self, sender: PeerId, message: messages.Copy, now: float) -> list[Effect]:
        if (found := self._common.hear(sender, message, self._round)) is None:
            return []
        round_, self._x = found
        return [*self._common.found(round_), *self._begin(round_, False, now)]

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what the others say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message, now: float) -> list[Effect]:
        if sender not in self._place or sender == self._kit.me:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        if message.round > self._kit.rounds:
            raise RemoteError(Refusal.MISMATCH, f"round {message.round} of {self._kit.rounds}")
        match message:
            case messages.Step():
                return self._take_step(sender, message, now)
            case messages.Copy():
                return self._take_copy(sender, message, now)
            case messages.Ask():
                return self._common.asked(sender, message, self._round, self._x)
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in brea")

    def _take_step(self, sender: PeerId, message: messages.Step, now: float) -> list[Effect]:
        if message.step not in Step.__members__.values():
            raise RemoteError(Refusal.MALFORMED, f"step {message.step}")
        read(Step(message.step), message.body, self._terms)
        key = (message.round, message.step, self._place[sender])
        if message.round < self._round or key in self._early:
            return []  # too late, or said again, which is no offence
        self._common.reached(sender, message.round)
        if message.round > max(self._round, self._common.frontier) + AHEAD:
            return []
        session = self._session if message.round == self._round else None
        self._early[key] = b"" if session else message.body
        last = sorted({round_ for round_, _, _ in self._early})[-2 * AHEAD :]
        self._early = {k: raw for k, raw in self._early.items() if k[0] == self._round or k[0] in last}
        if session is not None:
            session.hear(Step(message.step), self._place[sender], message.body)
            self._silent.discard(self._place[sender])
        return self._proceed(now)

    # --- small things ------------------------------------------------------------------------------------------

    def _say(self, to: PeerId, step: Step, body: bytes) -> Send:
        return Send(to, messages.encode(messages.Step(self._round, step, body)))

    def _wait(self, now: float, share: float) -> SetTimer:
        self._due = now + share * self._kit.patience
        return SetTimer("step", self._due)
