"""In which order a stage takes what several data owners send it: what does not follow from when frames arrive."""

from typing import Protocol

from veilmesh.peer.machine import Effect, Work
from veilmesh.split.messages import Activations
from veilmesh.split.strategies.base import SplitKit
from veilmesh.split.work import Average

__all__ = ["Averaging", "Free", "Gate", "InTurn"]


class Gate(Protocol):
    """Holds back what is not to be taken yet."""

    def admits(self, m: Activations) -> bool:
        """Whether these may be taken now; otherwise they are kept, and handed out by `stepped` or `gone`."""
        ...

    def stepped(self, head: int, step: int) -> tuple[list[Effect], list[Activations]]:
        """A data owner's step is done: what is to be done before anything else, and what may now be taken."""
        ...

    def gone(self, heads: frozenset[int]) -> tuple[list[Effect], list[Activations]]:
        """These data owners are done, or gone: nobody waits for them any more."""
        ...


class Free:
    """Whatever comes is taken."""

    def admits(self, m: Activations) -> bool:
        return True

    def stepped(self, head: int, step: int) -> tuple[list[Effect], list[Activations]]:
        return [], []

    def gone(self, heads: frozenset[int]) -> tuple[list[Effect], list[Activations]]:
        return [], []


class _Holding:
    """What every gate that holds back has: positions, and what is held."""

    def __init__(self, kit: SplitKit) -> None:
        self._kit = kit
        self._next = dict.fromkeys(range(kit.plan.heads), 0)  # by head: its first step that is not done
        self._gone: frozenset[int] = frozenset()
        self._held: dict[tuple[int, int, int], Activations] = {}

    def admits(self, m: Activations) -> bool:
        """Whether these may be taken now."""
        if self._open(m.head, m.step):
            return True
        if m.step <= self._next.get(m.head, -1) + 1:  # nobody fills this with steps that he cannot have made
            self._held[m.head, m.step, m.micro] = m
        return False

    def stepped(self, head: int, step: int) -> tuple[list[Effect], list[Activations]]:
        self._next[head] = max(self._next[head], step + 1)
        return self._released()

    def gone(self, heads: frozenset[int]) -> tuple[list[Effect], list[Activations]]:
        self._gone = heads
        return self._released()

    def _waited_for(self) -> list[int]:
        return [head for head in self._next if head not in self._gone]

    def _released(self) -> tuple[list[Effect], list[Activations]]:
        effects = self._before()
        free = [key for key in sorted(self._held, key=lambda k: (k[1], k[0], k[2])) if self._open(key[0], key[1])]
        return effects, [self._held.pop(key) for key in free]

    def _open(self, head: int, step: int) -> bool:
        raise NotImplementedError

    def _before(self) -> list[Effect]:
        return []


class Averaging(_Holding):
    """SplitFed v1: one copy of the stage for each data owner, and at the end of a round all of them become their mean.

    Source: Thapa et al., arXiv 2004.12088, algorithm 1.
    """

    def __init__(self, kit: SplitKit, stage: int) -> None:
        super().__init__(kit)
        self._stage = stage
        self._rounds = 0  # averaged

    def _open(self, head: int, step: int) -> bool:
        return step // self._kit.steps <= self._rounds

    def _before(self) -> list[Effect]:
        """Average, if everybody who is waited for has done the round."""
        end, waited = (self._rounds + 1) * self._kit.steps, self._waited_for()
        if not waited or any(self._next[head] < end for head in waited):
            return []
        heads = tuple(head for head in self._next if self._next[head] >= end)
        self._rounds += 1
        task = Average(self._stage, heads, (1 / len(heads),) * len(heads))
        return [Work(f"average-{self._stage}-{self._rounds}", task)]


class InTurn(_Holding):
    """SplitFed v2: one copy, trained by the data owners in turn, step by step, in the order of the roster.

    Source: Thapa et al., arXiv 2004.12088, section 3.2; there the order is drawn anew in every round.
    """

    def _open(self, head: int, step: int) -> bool:
        ahead = [(self._next[other], other) for other in self._waited_for() if other != head]
        return all((step, head) < place for place in ahead)
