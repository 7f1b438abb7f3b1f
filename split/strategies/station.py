"""A stage above the head, for the examples of one data owner: takes activations, passes on, and answers with gradients.

Everything it has said of the step under way, and of the one before, it says again when it is asked again: a lost frame,
or a neighbour that was replaced, then costs a retry, and changes no bit.
"""

from collections.abc import Callable
from functools import partial

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.peer.machine import Effect, Note, Send
from veilmesh.split import messages
from veilmesh.split.messages import Activations, Answer, Ask, Gradients, Replica
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.strategies.company import Company, Desk
from veilmesh.split.work import Asked, Backward, Finish, Forward, Key, Pass, Refused, Returned, Said, StageState

__all__ = ["Station"]


class Station:
    """One stage of one route, at this member.

    Args:
        kit, company, desk: the member's.
        head, stage: which.
        told: where the label owner is the data owner itself: told the loss of every micro-batch, which then nobody
            else is.
        answered: there, too: takes the network's answers to a question.
        stepped: told when a step is done: its head, stage and number.
        after: the step after which its parameters were taken over from another; -1: it begins at the beginning.
    """

    def __init__(
        self, kit: SplitKit, company: Company, desk: Desk, head: int, stage: int,
        told: Callable[[int, int, float], None] | None = None,
        answered: Callable[[int, int, Asked], list[Effect]] | None = None,
        after: int = -1,
        stepped: Callable[[int, int, int], list[Effect]] = lambda head, stage, step: [],
    ) -> None:  # fmt: skip
        self._kit = kit
        self._company = company
        self._desk = desk
        self.head = head
        self.stage = stage
        self._last = stage == kit.plan.stages - 1
        self._told = told
        self._answered = answered
        self._after_step = stepped
        self._step = after
        self._said: dict[int, bytes] = {}  # by micro-batch: what went up
        self._returned: dict[int, bytes] = {}  # what went down
        self._before: dict[int, bytes] = {}  # what went down in the step before
        self._busy: set[tuple[str, int]] = set()
        self._asking: set[tuple[int, int]] = set()
        self.idle = True  # nothing of a step is missing

    def knows(self, m: Activations) -> bool:
        """Whether these were taken before, so that they are nothing but a question for what was answered."""
        return m.step < self._step or (m.step == self._step and (m.micro in self._said or m.micro in self._returned))

    # --- up ----------------------------------------------------------------------------------------------------

    def activations(self, m: Activations) -> list[Effect]:
        """What came from below. Raises RemoteError where it does not fit."""
        if m.of != self._kit.micro_batches:
            raise RemoteError(Refusal.MISMATCH, f"a step of {m.of} micro-batches, not {self._kit.micro_batches}")
        effects: list[Effect] = []
        if m.step > self._step:
            effects = self._turn(m.step)
        earlier = self._returned if m.step == self._step else self._before if m.step == self._step - 1 else {}
        if m.micro in earlier:
            return [*effects, self._down(earlier[m.micro])]
        if m.step < self._step:
            return effects
        if m.micro in self._said:
            return [*effects, self._up(self._said[m.micro])]
        if ("up", m.micro) in self._busy:
            return effects
        self._busy.add(("up", m.micro))
        self.idle = False
        name = f"up-{m.head}-{self.stage}-{m.step}-{m.micro}"
        return [*effects, self._desk.ask(name, self._task(m), partial(self._worked, m))]

    def _turn(self, step: int) -> list[Effect]:
        """A new step begins: the data owner has all of the one before."""
        skipped = step - self._step - 1
        self._before = self._returned if not skipped else {}
        self._step, self._said, self._returned, self._busy = step, {}, {}, set()
        return [Note("stale", {"stage": self.stage, "steps": skipped})] if skipped and step else []

    def _task(self, m: Activations) -> Forward | Finish:
        key = Key(m.head, self.stage, m.step, m.micro, m.of)
        if self._last:
            return Finish(key, m.rows, m.total, m.blob, m.labels, m.which, self._replicates)
        return Forward(key, m.rows, m.blob)

    def _worked(self, m: Activations, result: object) -> list[Effect]:
        self._busy.discard(("up", m.micro))
        if m.step != self._step:
            return []
        match result:
            case Refused(detail=detail):
                return [_refused(self.stage, detail)]
            case Said(blob=blob):
                up = Activations(
                    m.head, self.stage + 1, m.step, m.micro, m.of, m.rows, m.total, blob, m.labels, m.which
                )
                self._said[m.micro] = messages.encode(up)
                return [self._up(self._said[m.micro])]
            case Returned():
                return self._return(m.micro, result)
        raise LocalError(f"a stage got a {type(result).__name__}")

    # --- down --------------------------------------------------------------------------------------------------

    def gradients(self, m: Gradients) -> list[Effect]:
        """What came from above. Raises RemoteError where it does not fit."""
        if m.step > self._step or (m.step == self._step and m.micro not in self._said):
            raise RemoteError(Refusal.MISMATCH, "a gradient of what was never said")
        if m.step < self._step or ("down", m.micro) in self._busy:
            return []
        if m.micro in self._returned:
            return [self._down(self._returned[m.micro])]
        self._busy.add(("down", m.micro))
        key = Key(m.head, self.stage, m.step, m.micro, self._kit.micro_batches)
        name = f"down-{m.head}-{self.stage}-{m.step}-{m.micro}"
        return [self._desk.ask(name, Backward(key, m.blob, self._replicates), partial(self._backed, m))]

    def _backed(self, m: Gradients, result: object) -> list[Effect]:
        self._busy.discard(("down", m.micro))
        if m.step != self._step:
            return []
        if isinstance(result, Refused):
            return [_refused(self.stage, result.detail)]
        assert isinstance(result, Returned)
        return self._return(m.micro, result, m.loss)

    def _return(self, micro: int, result: Returned, loss: float | None = None) -> list[Effect]:
        """Say the gradient of what came in. The copy for a standby leaves first: who has an answer may count on it."""
        loss = result.loss if loss is None else loss
        if self._told is not None:
            self._told(self._step, micro, loss)
            loss = 0.0
        down = Gradients(self.head, self.stage - 1, self._step, micro, result.blob, loss)
        self._returned[micro] = messages.encode(down)
        effects: list[Effect] = [] if result.state is None else self._replica(result.state)
        effects.append(self._down(self._returned[micro]))
        self.idle = len(self._returned) == self._kit.micro_batches
        round_, step = divmod(self._step + 1, self._kit.steps)
        if self.idle and not step and self.head == 0 and self._told is None:
            effects.append(Note("round", {"round": round_ - 1}))
        return [*effects, *self._after_step(self.head, self.stage, self._step)] if self.idle else effects

    # --- questions ---------------------------------------------------------------------------------------------

    def ask(self, m: Ask) -> list[Effect]:
        """A question on its way up."""
        name = f"ask-{m.head}-{self.stage}-{m.number}-{m.part}"
        if (m.number, m.part) in self._asking:
            return []
        self._asking.add((m.number, m.part))
        task = Pass(m.head, self.stage, m.part, m.rows, m.blob, answers=self._last)
        return [self._desk.ask(name, task, partial(self._passed, m))]

    def _passed(self, m: Ask, result: object) -> list[Effect]:
        self._asking.discard((m.number, m.part))
        if isinstance(result, Refused):
            return [_refused(self.stage, result.detail)]
        assert isinstance(result, Asked)
        if not self._last:
            up = Ask(m.head, self.stage + 1, m.number, m.part, result.rows, result.blob)
            return [self._up(messages.encode(up))]
        if self._answered is not None:
            return self._answered(m.number, m.part, result)
        return self.answer(Answer(m.head, self.stage, m.number, m.part, result.rows, result.blob))

    def answer(self, m: Answer) -> list[Effect]:
        """Answers on their way down."""
        return [self._down(messages.encode(Answer(m.head, self.stage - 1, m.number, m.part, m.rows, m.blob)))]

    # --- pieces ------------------------------------------------------------------------------------------------

    @property
    def _replicates(self) -> bool:
        return self._company.standby is not None and self._told is None

    def _replica(self, state: StageState) -> list[Effect]:
        standby = self._company.standby
        if standby is None:
            return []
        said = Replica(self.head, self.stage, self._step, state.blob, state.start, state.state)
        return [Send(standby, messages.encode(said))]

    def _up(self, body: bytes) -> Send:
        return Send(self._company.player(self.head, self.stage + 1), body)

    def _down(self, body: bytes) -> Send:
        return Send(self._company.player(self.head, self.stage - 1), body)


def _refused(stage: int, detail: str) -> Note:
    return Note("refused", {"stage": stage, "why": detail})
