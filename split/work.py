"""What a split peer may ask of its worker, as data. No torch here: graphs stay in the worker, machines hold numbers.

A micro-batch is known by its `Key`; every task is about the stage number `stage` as far as it is trained with the
examples of one head, `head` (a place in the roster): a server may keep one copy of its stage for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from veilmesh.crypto.codecs.base import Vector

__all__ = [
    "Asked", "Average", "Backward", "Fetch", "Finish", "Forward", "Judge", "Judged", "Key", "Load", "Loaded", "Pass",
    "Refused", "Restore", "Returned", "Said", "Several", "StageState", "Task", "TrainRound",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """Which micro-batch of whose examples, at which stage; `of`: how many of them `step` has."""

    head: int
    stage: int
    step: int
    micro: int
    of: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Make the activations of a micro-batch: of this peer's own examples (`blob` None), or of what came in `blob`, and
    keep the graph. The result is `Said`, or `Refused`."""

    key: Key
    rows: int = 0
    blob: bytes | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """At the last stage: the loss of a micro-batch, `rows` of the step's `total` examples, and its gradients; the last
    micro-batch of a step to come trains the stage. `replicate`: and then say what a standby needs.

    Labels are in `labels`, or those of the examples `which`, or, with neither, this peer's own. The result is
    `Returned`, or `Refused`.
    """

    key: Key
    rows: int
    total: int
    blob: bytes
    labels: bytes = b""
    which: bytes = b""
    replicate: bool = False


@dataclass(frozen=True, slots=True)
class Backward:
    """Take the gradient in `blob` back through the graph of a micro-batch; the last one of a step to come trains the
    stage. `replicate`: and then say what a standby needs. The result is `Returned`, or `Refused`."""

    key: Key
    blob: bytes
    replicate: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """Part `part` of the test pictures (`blob` None), or what came of it, through `stage`, without learning. The result
    is `Asked`, or `Refused`."""

    head: int
    stage: int
    part: int
    rows: int = 0
    blob: bytes | None = None
    answers: bool = False  # whether what comes out are the network's answers


@dataclass(frozen=True, slots=True)
class Judge:
    """How good answers are to part `part` of the test pictures. The result is `Judged`, or `Refused`."""

    part: int
    rows: int
    blob: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """Begin a round of training from `parameters` (d,) of `stage`. The result is `Loaded`."""

    head: int
    stage: int
    parameters: Vector


@dataclass(frozen=True, slots=True)
class Fetch:
    """The parameters (d,) of `stage`."""

    head: int
    stage: int


@dataclass(frozen=True, slots=True)
class Average:
    """Make the copies of `stage` that `heads` train their mean, by their `weights` (sum 1). The result is `Loaded`."""

    stage: int
    heads: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StageState:
    """All that a stage needs to go on after a step, as bytes: parameters, those its round began with, optimizer."""

    blob: bytes
    start: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class Restore:
    """Take on what another peer's stage was after `step`. The result is `Loaded`, or `Refused`."""

    head: int
    stage: int
    state: StageState


@dataclass(frozen=True, slots=True)
class TrainRound:
    """Train the whole network for `round` on this member's own pictures, without anybody. The result is `Returned`,
    with the mean loss."""

    round: int


@dataclass(frozen=True, slots=True)
class Several:
    """Tasks done one after the other, in one go; the result is a tuple of theirs, up to the first `Refused`."""

    tasks: "tuple[Task, ...]"

    def each(self, do: "Callable[[Task], object]") -> tuple[object, ...]:
        """What `do` makes of the tasks, up to the first `Refused`."""
        results: list[object] = []
        for task in self.tasks:
            results.append(do(task))
            if isinstance(results[-1], Refused):
                break
        return tuple(results)


@dataclass(frozen=True, slots=True)
class Said:
    """What leaves a stage: encoded activations of `rows` of a step's `total` examples (0: of what came in, as that
    said); labels or numbers where they are to be said."""

    rows: int
    total: int
    blob: bytes
    labels: bytes = b""
    which: bytes = b""


@dataclass(frozen=True, slots=True)
class Returned:
    """What goes back from a stage: the encoded gradient of its input (empty at a head), and the `loss`, if it was made
    here. `alarms`: what guards found wrong; `stop`: one of them is certain. `state`: for a standby."""

    blob: bytes = b""
    loss: float = 0.0
    alarms: tuple[str, ...] = ()
    stop: bool = False
    state: StageState | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What leaves a stage of a question; `parts`: how many parts the question has, where this peer asks it."""

    rows: int
    blob: bytes
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """Of `count` test examples (pixels, where each has a class), `right` were named rightly; `loss` is the sum."""

    right: int
    loss: float
    count: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Done."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A remote peer's bytes are wrong; `detail` says how. `diverged`: nothing else than that what came of them is not
    finite, or beyond all bounds."""

    detail: str
    diverged: bool = False


Task: TypeAlias = Forward | Finish | Backward | Pass | Judge | Load | Fetch | Average | Restore | TrainRound | Several
