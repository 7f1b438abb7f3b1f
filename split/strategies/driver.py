"""A data owner's half: makes the steps of a round, one after the other, and asks the network about its test pictures.

One thing at a time; what comes meanwhile waits. Every micro-batch that is out is said again after a while without any
answer, and whoever has one repeats it, so no step is lost and none counts twice.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import CancelTimer, Effect, Note, Send, SetTimer, Stop
from veilmesh.split import messages
from veilmesh.split.messages import Activations, Answer, Ask, Gradients, Labels
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.strategies.company import Company, Desk
from veilmesh.split.work import (
    Asked,
    Backward,
    Fetch,
    Forward,
    Judge,
    Judged,
    Key,
    Load,
    Loaded,
    Pass,
    Refused,
    Returned,
    Said,
    Several,
    Task,
)

__all__ = ["ATTEMPTS", "RETRY", "Driver", "Quality"]

ATTEMPTS = 4
"""How often something is said without an answer before its data owner gives up; it does after `patience` seconds."""
RETRY = "split-retry"
_HURRY = 6
_WINDOW = 4
"""Parts of a question on their way at a time: what waits for one neighbour is bounded, and test pictures are many."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the network is on the test pictures."""

    accuracy: float
    loss: float


@dataclass(slots=True)
class _Step:
    """A step under way."""

    number: int
    said: dict[int, bytes] = field(default_factory=dict)  # by micro-batch
    began: int = 0  # micro-batches whose activations were asked for
    backing: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Question:
    """A question under way."""

    number: int
    then: Callable[[Quality], list[Effect]]
    parts: int = 1  # as far as is known before the first has been looked at
    began: int = 0
    said: dict[int, bytes] = field(default_factory=dict)
    judging: set[int] = field(default_factory=set)
    judged: dict[int, Judged] = field(default_factory=dict)


@dataclass(slots=True)
class _Round:
    number: int
    then: Callable[[float, Vector | None], list[Effect]]
    fetch: bool
    losses: list[float] = field(default_factory=list)


class Driver:
    """The head of one data owner, and its turns through the stages above it."""

    def __init__(self, kit: SplitKit, company: Company, desk: Desk) -> None:
        self._kit = kit
        self._company = company
        self._desk = desk
        self._me = kit.place
        self._jobs: deque[Callable[[], list[Effect]]] = deque()
        self._round: _Round | None = None
        self._labels: dict[tuple[int, int], bytes] = {}  # by step and micro-batch, of this step and the one before
        self._step: _Step | None = None
        self._question: _Question | None = None
        self._before: dict[int, bytes] = {}  # what went up in the step before, where somebody stands by
        self._quiet = 0  # how often nothing had come when the timer fired
        self._hurry = 0  # how often it still says things again soon
        self._moved = False
        self.now = 0.0

    # --- what is asked of it -----------------------------------------------------------------------------------

    def run(
        self, round_: int, then: Callable[[float, Vector | None], list[Effect]], parameters: Vector | None = None
    ) -> list[Effect]:
        """Make the steps of a round; then say the mean loss and, where it began from `parameters` (d,), the new."""

        def begin() -> list[Effect]:
            self._round = _Round(round_, then, parameters is not None)
            if parameters is None:
                return self._begin_step(round_ * self._kit.steps)
            return [self._load(f"round-{round_}", parameters, lambda: self._begin_step(round_ * self._kit.steps))]

        return self._take(begin)

    def question(
        self, number: int, then: Callable[[Quality], list[Effect]], parameters: Vector | None = None
    ) -> list[Effect]:
        """Ask the network about all test pictures, with a head of `parameters` (d,) or as it is; then say how good it
        is."""

        def begin() -> list[Effect]:
            self._question = _Question(number, then)
            if parameters is None:
                return self._pass_more()
            return [self._load(f"question-{number}", parameters, self._pass_more)]

        return self._take(begin)

    def fetch(self, then: Callable[[Vector], list[Effect]]) -> list[Effect]:
        """Say the head's parameters (d,)."""
        task = Fetch(self._me, 0)
        return self._take(lambda: [self._desk.ask("fetch-head", task, lambda found: self._over(then(_vector(found))))])

    def _take(self, begin: Callable[[], list[Effect]]) -> list[Effect]:
        self._jobs.append(begin)
        return self._jobs[0]() if len(self._jobs) == 1 else []

    def _over(self, effects: list[Effect]) -> list[Effect]:
        """What was under way is done: `effects` follow, and the next that waits."""
        self._jobs.popleft()
        self._remember()
        self._round, self._step, self._question = None, None, None
        return [CancelTimer(RETRY), *effects, *(self._jobs[0]() if self._jobs else [])]

    def _load(self, name: str, parameters: Vector, then: Callable[[], list[Effect]]) -> Effect:
        def loaded(result: object) -> list[Effect]:
            assert isinstance(result, Loaded)
            return then()

        return self._desk.ask(f"load-{name}", Load(self._me, 0, parameters), loaded)

    # --- steps -------------------------------------------------------------------------------------------------

    def _begin_step(self, number: int) -> list[Effect]:
        self._next(number)
        return [self._watch(), *self._forward_more()]

    def _next(self, number: int) -> None:
        self._remember()
        self._step = _Step(number)
        self._labels = {place: body for place, body in self._labels.items() if place[0] >= number - 1}

    def _remember(self) -> None:
        """Whoever takes over from a peer that dies may be one step behind, and is then told of it once more."""
        if self._step is not None and self._kit.plan.standbys:
            self._before = self._step.said

    def _forward_more(self) -> list[Effect]:
        """Ask for the activations of as many micro-batches as may be in flight."""
        step = self._step
        assert step is not None
        most = self._kit.in_flight or self._kit.micro_batches
        effects: list[Effect] = []
        while step.began < self._kit.micro_batches and step.began - len(step.done) < most:
            key = self._key(step.number, step.began)
            step.began += 1
            effects.append(self._desk.ask(_name("forward", key), Forward(key), partial(self._forwarded, key)))
        return effects

    def _forwarded(self, key: Key, result: object) -> list[Effect]:
        assert isinstance(result, Said)
        assert self._step is not None
        labels, which, effects = result.labels, result.which, []
        if (labels or which) and self._kit.plan.stages > 2:  # they go past those who stand between
            apart = Labels(self._me, self._kit.plan.stages - 1, key.step, key.micro, result.rows, labels, which)
            self._labels[key.step, key.micro] = messages.encode(apart)
            effects, labels, which = [self._labelled(self._labels[key.step, key.micro])], b"", b""
        up = Activations(
            self._me, 1, key.step, key.micro, key.of, result.rows, result.total, result.blob, labels, which
        )
        self._step.said[key.micro] = messages.encode(up)
        return [*effects, Send(self._company.player(self._me, 1), self._step.said[key.micro])]

    def _labelled(self, body: bytes) -> Send:
        return Send(self._company.player(self._me, self._kit.plan.stages - 1), body)

    def gradients(self, m: Gradients) -> list[Effect]:
        """What came back. Raises RemoteError where it does not fit."""
        step = self._step
        if step is None or m.step != step.number:
            return []  # said a second time
        if m.micro not in step.said:
            raise RemoteError(Refusal.MISMATCH, "a gradient of what was never said")
        if m.micro in step.done or m.micro in step.backing:
            return []
        step.backing.add(m.micro)
        step.losses.setdefault(m.micro, m.loss)
        self._moved = True
        key = self._key(m.step, m.micro)
        task: Task = Backward(key, m.blob)
        last = len(step.done) + 1 == self._kit.micro_batches  # it lets go of what it holds of this step
        if last and (m.step + 1) % self._kit.steps:  # on the way, the next step: a trip to the worker less
            task = Several((task, Forward(self._key(m.step + 1, 0))))
        return [self._desk.ask(_name("backward", key), task, partial(self._backed, key))]

    def require_said(self, step: int, micro: int) -> None:
        """Raises RemoteError(MISMATCH) unless this micro-batch is on its way."""
        if self._step is None or self._step.number != step or micro not in self._step.said:
            raise RemoteError(Refusal.MISMATCH, "activations of what was never said")

    def require_asked(self, number: int, part: int) -> None:
        """Raises RemoteError(MISMATCH) unless this part of a question is on its way."""
        if self._question is None or self._question.number != number or part not in self._question.said:
            raise RemoteError(Refusal.MISMATCH, "a question that was never asked")

    def diverged(self, stage: int, step: int) -> list[Effect]:
        """Whoever plays `stage` cannot do `step`."""
        if self._step is None or self._step.number != step:
            return []
        who = self._company.name(self._me, stage)
        return self.stop(f"Training diverged at step {step}, at {who}; use a lower learning rate.")

    def told(self, step: int, micro: int, loss: float) -> None:
        """The loss of a micro-batch, where this data owner has the labels itself."""
        if self._step is not None and self._step.number == step:
            self._step.losses[micro] = loss

    def _backed(self, key: Key, result: object) -> list[Effect]:
        step = self._step
        assert step is not None
        results = result if isinstance(result, tuple) else (result,)
        step.backing.discard(key.micro)
        if isinstance(results[0], Refused):
            return [Note("refused", {"stage": 0, "why": results[0].detail})]
        assert isinstance(results[0], Returned)
        step.done.add(key.micro)
        effects: list[Effect] = [Note("alarm", {"step": key.step, "why": why}) for why in results[0].alarms]
        if results[0].stop:
            return [*effects, *self.stop(f"hijacked, it seems: {results[0].alarms[-1]}")]
        if len(step.done) < self._kit.micro_batches:
            return [*effects, *self._forward_more()]
        return [*effects, *self._stepped(step, results[1:])]

    def _stepped(self, step: _Step, ahead: tuple[object, ...]) -> list[Effect]:
        """A step is done: the next one, of which the first activations may be there, or the end of the round."""
        assert self._round is not None
        self._round.losses.append(sum(step.losses[micro] for micro in sorted(step.losses)))
        if not (step.number + 1) % self._kit.steps:
            return self._ended(self._round)
        self._next(step.number + 1)
        if not ahead or self._step is None:
            return [self._watch(), *self._forward_more()]
        self._step.began = 1
        said = self._forwarded(self._key(step.number + 1, 0), ahead[0])
        return [self._watch(), *said, *self._forward_more()]

    def _ended(self, round_: _Round) -> list[Effect]:
        loss = sum(round_.losses) / len(round_.losses)
        if not round_.fetch:
            return self._over(round_.then(loss, None))

        def fetched(found: object) -> list[Effect]:
            return self._over(round_.then(loss, _vector(found)))

        return [self._desk.ask(f"fetch-{round_.number}", Fetch(self._me, 0), fetched)]

    # --- questions ---------------------------------------------------------------------------------------------

    def _pass_more(self) -> list[Effect]:
        """Ask for the activations of as many parts as may be on their way."""
        question = self._question
        assert question is not None
        effects: list[Effect] = []
        while question.began < question.parts and question.began - len(question.judged) < _WINDOW:
            part = question.began
            question.began += 1
            name = f"pass-{question.number}-{part}"
            effects.append(self._desk.ask(name, Pass(self._me, 0, part), self._passed(part)))
        return effects

    def _passed(self, part: int) -> Callable[[object], list[Effect]]:
        def passed(result: object) -> list[Effect]:
            assert isinstance(result, Asked)
            question = self._question
            assert question is not None
            question.parts = result.parts
            up = Ask(self._me, 1, question.number, part, result.rows, result.blob)
            question.said[part] = messages.encode(up)
            return [self._watch(), Send(self._company.player(self._me, 1), question.said[part]), *self._pass_more()]

        return passed

    def answer(self, m: Answer) -> list[Effect]:
        """What came back to a question."""
        return self.answered(m.number, m.part, Asked(m.rows, m.blob))

    def answered(self, number: int, part: int, answers: Asked) -> list[Effect]:
        """Answers to a part of the question under way."""
        question = self._question
        if question is None or number != question.number or part in question.judged or part in question.judging:
            return []
        self.require_asked(number, part)
        question.judging.add(part)
        self._moved = True
        task = Judge(part, answers.rows, answers.blob)
        return [self._desk.ask(f"judge-{number}-{part}", task, partial(self._judged, part))]

    def _judged(self, part: int, result: object) -> list[Effect]:
        question = self._question
        assert question is not None
        question.judging.discard(part)
        if isinstance(result, Refused):
            return [Note("refused", {"stage": 0, "why": result.detail})]
        assert isinstance(result, Judged)
        question.judged[part] = result
        if len(question.judged) < question.parts:
            return self._pass_more()
        every = [question.judged[i] for i in range(question.parts)]
        count = sum(j.count for j in every)
        quality = Quality(sum(j.right for j in every) / count, sum(j.loss for j in every) / count)
        return self._over(question.then(quality))

    # --- what does not come ------------------------------------------------------------------------------------

    def _watch(self) -> Effect:
        self._moved, self._quiet = False, 0
        return SetTimer(RETRY, self.now + self._kit.patience / ATTEMPTS)

    def retry(self, soon: bool = False) -> list[Effect]:
        """Say again what nobody has answered yet. Without any answer for too long, stop. `soon`: because somebody was
        replaced, whom the news may reach after what is said here; then it is said again a few times more, and soon."""
        waiting = self._unanswered()
        self._hurry = _HURRY if soon else max(0, self._hurry - 1)
        self._quiet = 0 if self._moved or self._hurry or not waiting else self._quiet + 1
        self._moved = False
        if self._quiet >= ATTEMPTS:
            gone = [self._company.name(self._me, stage) for stage in self._company.missing(self._me)]
            why = f": {', '.join(gone)} gone, and nobody stands by" if gone else ""
            return self.stop(f"no answer for {self._kit.patience:g} s{why}")
        wait = self._kit.patience / ATTEMPTS
        wait = min(1.0, wait / 2) if self._hurry else wait
        if waiting and (self._me, 1) in self._company.recasts:  # who took over has to learn from all of it
            whole = self._step.said.values() if self._step is not None else waiting
            waiting = [*self._before.values(), *whole]
        again = [Send(self._company.player(self._me, 1), body) for body in waiting]
        if waiting and self._step is not None:
            again = [self._labelled(body) for _, body in sorted(self._labels.items())] + again
        return [*again, SetTimer(RETRY, self.now + wait)] if self._jobs else []

    def _unanswered(self) -> list[bytes]:
        """What is on its way, and nothing has come back for."""
        if self._step is not None:
            held = self._step.done | self._step.backing
            return [body for micro, body in sorted(self._step.said.items()) if micro not in held]
        if self._question is not None:
            held = set(self._question.judged) | self._question.judging
            return [body for part, body in sorted(self._question.said.items()) if part not in held]
        return []

    def stop(self, reason: str) -> list[Effect]:
        """End early; whoever holds this half says goodbye."""
        self._jobs.clear()
        self._round, self._step, self._question = None, None, None
        return [CancelTimer(RETRY), Stop(reason)]

    def _key(self, step: int, micro: int) -> Key:
        return Key(self._me, 0, step, micro, self._kit.micro_batches)


def _name(kind: str, key: Key) -> str:
    return f"{kind}-{key.step}-{key.micro}"


def _vector(found: object) -> Vector:
    return found  # type: ignore[return-value]  # Fetch's result, and nothing else
