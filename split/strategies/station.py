"""A stage above the head, for the examples of one data owner: takes activations, passes on, and answers with gradients.

Everything it has said of the step under way, and of the one before, it says again when it is asked again: a lost frame
then costs a retry, and changes no bit. One that takes over from a peer that died begins with the copy of the step that
it is asked for. Where that copy is missing it is one step behind, and whoever sends it activations says the step before
once more (`again`); what is above repeats its answers, so the step comes out as it did before.
"""

from collections.abc import Callable, Mapping
from functools import partial

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.peer.machine import Effect, Note, Send, Stop
from veilmesh.split import messages
from veilmesh.split.messages import Activations, Answer, Ask, Diverged, Gradients, Replica
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.strategies.company import Company, Desk
from veilmesh.split.work import (
    Asked,
    Backward,
    Finish,
    Forward,
    Key,
    Pass,
    Refused,
    Restore,
    Returned,
    Said,
    StageState,
)

__all__ = ["Station"]

_IN_VAIN = 3
"""How often one that takes over is told of a step before it goes on with an older copy than that step's."""
_ASKED = 16
"""Parts of questions that it works on at a time; one data owner sends fewer."""


class Station:
    """One stage of one route, at this member.

    Args:
        kit, company, desk: the member's.
        head, stage: which.
        told: where the label owner is the data owner itself: told the loss of every micro-batch, which then nobody
            else is.
        answered: there, too: takes the network's answers to a question.
        stepped: told when a step is done: its head, stage and number.
        copies: what another's stage was after its last steps, by step, where this one takes over from it.
    """

    def __init__(
        self, kit: SplitKit, company: Company, desk: Desk, head: int, stage: int,
        told: Callable[[int, int, float], None] | None = None,
        answered: Callable[[int, int, Asked], list[Effect]] | None = None,
        copies: Mapping[int, StageState] | None = None,
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
        self._step = -1
        self._copies = copies  # None: it has done a step
        self._through = -1  # what a copy already holds is not learned from again, up to this step
        self._early: dict[int, tuple[Activations, int]] = {}  # by micro-batch, of a step to come; how often it was said
        self._said: dict[int, bytes] = {}  # by micro-batch: what went up
        self._said_before: dict[int, bytes] = {}  # in the step before, where somebody stands by
        self._returned: dict[int, bytes] = {}  # what went down
        self._before: dict[int, bytes] = {}  # what went down in the step before
        self._busy: set[tuple[str, int]] = set()
        self._asking: set[tuple[int, int]] = set()
        self._last_ask = (-1, -1)
        self._vain = 0  # how much was asked before it had begun
        self._idle = True  # nothing of a step is missing

    def check(self, m: Activations) -> None:
        """Raises RemoteError(MISMATCH) on activations of no step that there is."""
        if m.of != self._kit.micro_batches:
            raise RemoteError(Refusal.MISMATCH, f"a step of {m.of} micro-batches, not {self._kit.micro_batches}")
        if m.step >= self._kit.rounds * self._kit.steps:
            raise RemoteError(Refusal.MISMATCH, f"there is no step {m.step}")

    def knows(self, m: Activations) -> bool:
        """Whether these were taken before, so that they are nothing but a question for what was answered."""
        return m.step < self._step or (m.step == self._step and (m.micro in self._said or m.micro in self._returned))

    # --- up ----------------------------------------------------------------------------------------------------

    def activations(self, m: Activations) -> list[Effect]:
        """What came from below, checked."""
        if m.step <= self._through or (m.step > self._step and self._waits(m)):
            return []
        effects: list[Effect] = []
        if m.step > self._step:
            effects = self._turn(m.step) if self._copies is None else self._take_over(m.step, self._copies)
        earlier = self._returned if m.step == self._step else self._before if m.step == self._step - 1 else {}
        if m.micro in earlier:
            return [*effects, self._down(earlier[m.micro])]
        if m.step < self._step:
            return effects
        if m.micro in self._said:
            return [*effects, *self._repeat(m.micro)]
        if ("up", m.micro) in self._busy:
            return effects
        self._busy.add(("up", m.micro))
        self._idle = False
        name = f"up-{m.head}-{self.stage}-{m.step}-{m.micro}"
        return [*effects, self._desk.ask(name, self._task(m), partial(self._worked, m))]

    def _turn(self, step: int) -> list[Effect]:
        """A new step begins: the data owner has all of the one before."""
        skipped = step - self._step - 1
        self._before = self._returned if not skipped else {}
        self._said_before = self._said if self._kit.plan.standbys and not skipped else {}
        self._step, self._said, self._returned, self._busy, self._early = step, {}, {}, set(), {}
        self._idle = True
        return [Note("stale", {"stage": self.stage, "steps": skipped})] if skipped and step else []

    # --- taking over -------------------------------------------------------------------------------------------

    def _waits(self, m: Activations) -> bool:
        """Whether a step to come waits for the one under way; or, for one that takes over, for the step before it,
        which it has no copy of: that one not for ever."""
        if self._copies is None and (self._idle or m.step > self._step + 1):
            return False
        if self._copies is not None and (m.step == 0 or m.step - 1 in self._copies):
            return False
        times = 1 + (self._early[m.micro][1] if m.micro in self._early else 0)
        self._early[m.micro] = m, times
        return times < _IN_VAIN or m.step == self._step + 1

    def _take_over(self, step: int, copies: Mapping[int, StageState]) -> list[Effect]:
        """Begin with the copy of the step before `step`; without one, with the nearest that there is."""
        early = self._early
        base = max((known for known in copies if known < step), default=min(copies, default=-1) if step else -1)
        self._step, self._said, self._returned = min(base, step - 1), {}, {}
        effects = self._turn(step)
        self._early = {micro: (m, n) for micro, (m, n) in early.items() if m.step == step + 1}
        if base >= step:  # it has learned from that step once, and will again
            effects.append(Note("stale", {"stage": self.stage, "steps": base - step + 1}))
        return effects if base < 0 else [*effects, *self._restore(base, step, copies)]

    def _restore(self, base: int, step: int, copies: Mapping[int, StageState]) -> list[Effect]:
        def restored(result: object) -> list[Effect]:
            return [_refused(self.stage, result.detail)] if isinstance(result, Refused) else []

        name = f"restore-{self.head}-{self.stage}-{base}-{step}"
        return [self._desk.ask(name, Restore(self.head, self.stage, copies[base]), restored)]

    def settle(self) -> list[Effect]:
        """Be what the last copy says, if one that takes over has done no step yet: none of those is asked for."""
        copies, self._copies = self._copies, None
        if not copies or max(copies) < self._step:
            return []
        self._through = max(copies)
        self._turn(self._through)
        return self._restore(self._through, self._through + 1, copies)

    def again(self) -> list[Effect]:
        """Say what went up of this step and of the one before once more: there is somebody else above."""
        return [self._up(body) for said in (self._said_before, self._said) for _, body in sorted(said.items())]

    def _repeat(self, micro: int) -> list[Effect]:
        """Say what went up once more; where somebody took over, all of it: also of micro-batches that were answered,
        for without them no step is whole, and of the step before, which may be missing there."""
        first = min(m for m in self._said if m not in self._returned)
        if (self.head, self.stage + 1) in self._company.recasts and micro == first:
            return self.again()
        return [self._up(self._said[micro])]

    # --- up, from the worker -----------------------------------------------------------------------------------

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
            case Refused():
                return self._refuse(m.step, result)
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
            return self._refuse(m.step, result)
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
        self._idle = len(self._returned) == self._kit.micro_batches
        return [*effects, *self._ended()] if self._idle else effects

    def _ended(self) -> list[Effect]:
        """A step is done; what came too early is taken now."""
        effects: list[Effect] = []
        round_, step = divmod(self._step + 1, self._kit.steps)
        if not step and self._told is None:
            effects.append(Note("round", {"round": round_ - 1}))
        effects += self._after_step(self.head, self.stage, self._step)
        self._copies = None
        early, self._early = self._early, {}
        return [*effects, *(e for _, (m, _) in sorted(early.items()) for e in self.activations(m))]

    def _refuse(self, step: int, refused: Refused) -> list[Effect]:
        """Note what was wrong; a data owner is told that its step cannot be done."""
        note = _refused(self.stage, refused.detail)
        if not refused.diverged:
            return [note]
        if self._told is not None:
            return [note, Stop(refused.detail)]
        return [note, Send(self._company.player(self.head, 0), messages.encode(Diverged(self.head, self.stage, step)))]

    # --- questions ---------------------------------------------------------------------------------------------

    def ask(self, m: Ask) -> list[Effect]:
        """A question on its way up."""
        name = f"ask-{m.head}-{self.stage}-{m.number}-{m.part}"
        if (m.number, m.part) in self._asking or len(self._asking) >= _ASKED:
            return []
        effects: list[Effect] = []
        if self._copies is not None or not self._idle:  # it took over, and is told of the last step before it is asked
            self._vain += 1
            if self._vain < 2 * _IN_VAIN:
                return []
            effects = self.settle()
        if (self.head, self.stage + 1) in self._company.recasts:
            effects += self.again() if (m.number, m.part) == self._last_ask else []
            self._last_ask = m.number, m.part
        self._asking.add((m.number, m.part))
        task = Pass(m.head, self.stage, m.part, m.rows, m.blob, answers=self._last)
        return [*effects, self._desk.ask(name, task, partial(self._passed, m))]

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
        return bool(self._company.standbys) and self._told is None

    def _replica(self, state: StageState) -> list[Effect]:
        """To all who stand by: whoever takes over then, the next of them is not empty-handed."""
        said = Replica(self.head, self.stage, self._step, state.blob, state.start, state.state)
        body = messages.encode(said)
        return [Send(standby, body) for standby in self._company.standbys]

    def _up(self, body: bytes) -> Send:
        return Send(self._company.player(self.head, self.stage + 1), body)

    def _down(self, body: bytes) -> Send:
        return Send(self._company.player(self.head, self.stage - 1), body)


def _refused(stage: int, detail: str) -> Note:
    return Note("refused", {"stage": stage, "why": detail})
