"""The work of a split peer: forward and backward through its stages, with what guards and codecs make of both.

What one peer may know is what it is made with: a data owner its own examples, everybody else none. Remote bytes that
are wrong are part of the result (`Refused`), never an exception.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError, generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Codec, Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.split.guards.base import About, Alarm, Gradient, Inspecting, Labelling, Outgoing, Penalty, SplitGuard
from veilmesh.split.part import Part
from veilmesh.split.work import (
    Asked,
    Average,
    Backward,
    Fetch,
    Finish,
    Forward,
    Judge,
    Judged,
    Key,
    Load,
    Loaded,
    Pass,
    Refused,
    Restore,
    Returned,
    Said,
    Several,
    StageState,
)
from veilmesh.tasks.data.base import Labels, Pictures
from veilmesh.tasks.work import Settings, batch_place, epoch_order

__all__ = ["CHUNK", "RANGE", "Examples", "StageOptions", "Stages"]

RANGE = 1e6
"""The largest magnitude that a remote peer's activations and gradients may have."""
CHUNK = 256
"""Test pictures in one part of a question."""
_UNUSED = generator(0, "lossless")  # for the codec that draws nothing: a stream of its own for each message takes time


@dataclass(frozen=True)
class Examples:
    """What a member has of the data. `x` (n, C, H, W) and the test pictures: a data owner's alone. `y` (n,): also with
    whoever holds the labels of a head's examples, in the head's order."""

    x: Pictures | None = None
    y: Labels | None = None
    test_x: Pictures | None = None
    test_y: Labels | None = None


@dataclass(frozen=True)
class StageOptions:
    """What a run's stages have in common, and how this member is called."""

    settings: Settings
    seed: int  # of this run: names the streams of batches
    me: int  # this member's place in the roster
    shapes: Sequence[tuple[int, ...]]  # what enters each stage, of one example, and what leaves the last
    classes: int
    forward: Codec = Dense()
    backward: Codec = Dense()
    guards: Sequence[SplitGuard] = ()
    labels: str = "own"  # where the last stage has them from: "own", "sent", or "held" there
    copies: bool = False  # whether stages above a head are trained once for each head, as copies
    private: int = 0  # what this member draws noise from


@dataclass(slots=True)
class _Step:
    """What a head gave out at a step, for the guards that look at what comes back."""

    number: int
    true: Tensor
    given: Tensor


@dataclass(slots=True)
class _Guards:
    """The guards at work at one cut."""

    every: list[object] = field(default_factory=list)

    def of(self, kind: type) -> list[object]:
        return [guard for guard in self.every if isinstance(guard, kind)]


class Stages:
    """Runs the tasks of `split/work.py` for the stages that one member plays. Deterministic; not for two threads.

    Args:
        build: makes the module of a stage by its number, its parameters as all begin.
        examples: by head (a place in the roster), what this member has of its data.
        options: see `StageOptions`.
    """

    def __init__(
        self, build: Callable[[int], nn.Module], examples: Mapping[int, Examples], options: StageOptions
    ) -> None:
        self._build = build
        self._examples = examples
        self._options = options
        self._parts: dict[tuple[int, int], Part] = {}
        self._guards: dict[tuple[int, int], _Guards] = {}
        self._given: dict[int, _Step] = {}  # by micro-batch, of the last step it was in
        self._order: tuple[tuple[int, int], np.ndarray] | None = None  # of the head's epoch under way

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers to tasks, in their order. Raises LocalError on anything else, BadInput if training diverged."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        try:
            match task:
                case Several():
                    return task.each(self._one)
                case Forward():
                    return self._forward(task)
                case Finish():
                    return self._finish(task)
                case Backward():
                    return self._backward(task)
                case Pass():
                    return self._pass(task)
                case Judge():
                    return self._judge(task)
        except RemoteError as error:
            return Refused(str(error))
        except BadInput as error:
            # Above a head, numbers beyond all bounds come of what came in: they must not end who serves others.
            if isinstance(task, Forward | Finish | Backward | Pass) and _stage(task):
                return Refused(str(error), diverged=True)
            raise
        return self._keep(task)

    def _keep(self, task: object) -> object:
        """The tasks that are about parameters."""
        match task:
            case Load(head=head, stage=stage, parameters=parameters):
                self._part(head, stage).load(parameters)
                return Loaded()
            case Fetch(head=head, stage=stage):
                return self._part(head, stage).parameters
            case Average(stage=stage, heads=heads, weights=weights):
                mean = _mean([self._part(h, stage).parameters for h in heads], weights)
                for (_, number), part in self._parts.items():
                    if number == stage:
                        part.load(mean)
                return Loaded()
            case Restore(head=head, stage=stage, state=state):
                return self._restored(head, stage, state)
        raise LocalError(f"a stage cannot do a {type(task).__name__}")

    # --- up ----------------------------------------------------------------------------------------------------

    def _forward(self, task: Forward) -> Said:
        key, part = task.key, self._part(task.key.head, task.key.stage)
        place = key.step, key.head, key.micro
        if task.blob is not None:
            x = self._read(task.blob, task.rows, key.stage)
            out = part.forward(x, place, learns_input=True)
            return Said(task.rows, 0, self._write(out, self._options.forward, "up", key))
        chosen, total = self._chosen(key)
        x, true = self._own(key.head, chosen)
        out = part.forward(x, place, learns_input=False)
        guards = self._at(key.head, key.stage, "head")
        for guard in guards.of(Outgoing):
            assert isinstance(guard, Outgoing)
            out = guard.outgoing(out, x)
        penalties = [guard.penalty(out, x) for guard in guards.of(Penalty) if isinstance(guard, Penalty)]
        part.leaves(place, out, torch.stack(penalties).sum() * (len(x) / total) if penalties else None)
        given = true
        for guard in guards.of(Labelling):
            assert isinstance(guard, Labelling)
            given = guard.labels(given, key.step)
        self._given[key.micro] = _Step(key.step, true, given)
        blob = self._write(out, self._options.forward, "up", key)
        if self._options.labels == "sent":
            return Said(len(x), total, blob, labels=given.numpy().astype("<u2").tobytes())
        if self._options.labels == "held":
            return Said(len(x), total, blob, which=chosen.astype("<u4").tobytes())
        return Said(len(x), total, blob)

    def _finish(self, task: Finish) -> Returned:
        key, part = task.key, self._part(task.key.head, task.key.stage)
        if not task.rows <= task.total <= self._options.settings.batch:
            raise RemoteError(Refusal.MISMATCH, f"{task.rows} of {task.total} examples in a step")
        x = self._read(task.blob, task.rows, key.stage)
        labels = self._labels(task)
        place = key.step, key.head, key.micro
        logits = part.forward(x, place, learns_input=True)
        loss = functional.cross_entropy(logits, labels)
        if key.of > 1:
            loss = loss * (task.rows / task.total)
        part.leaves(place, loss, None)
        gradient = part.backward(place, None)
        assert gradient is not None
        guards = self._at(key.head, key.stage, "labels")
        for guard in guards.of(Gradient):
            assert isinstance(guard, Gradient)
            gradient = guard.gradient(gradient, labels)
        said = loss.item()
        if not isfinite(said):
            raise BadInput(f"Training diverged at step {key.step}: the loss is not finite; use a lower learning rate.")
        blob = self._write(gradient, self._options.backward, "down", key)
        return Returned(blob, said, state=self._trained(part, key, task.replicate))

    # --- down --------------------------------------------------------------------------------------------------

    def _backward(self, task: Backward) -> Returned:
        key, part = task.key, self._part(task.key.head, task.key.stage)
        place = key.step, key.head, key.micro
        shape = part.holds(place)
        if shape is None:
            raise RemoteError(Refusal.MISMATCH, f"nothing of step {key.step}, micro-batch {key.micro} is held")
        gradient = self._read(task.blob, shape[0], key.stage + 1)
        alarms = self._inspected(gradient, key) if key.stage == 0 else []
        fake = key.stage == 0 and self._is_fake(key)
        back = part.backward(place, gradient)
        if fake:  # nothing is learned from labels that nobody has
            part.skip(place)
        blob = b"" if back is None else self._write(back, self._options.backward, "down", key)
        state = self._trained(part, key, task.replicate)
        said = tuple(f"{alarm.reason} ({alarm.score:.3g})" for alarm in alarms)
        return Returned(blob, 0.0, said, any(alarm.certain for alarm in alarms), state)

    def _trained(self, part: Part, key: Key, replicate: bool) -> StageState | None:
        """Train, if this micro-batch was the last of its step; what a standby then needs, where there is one."""
        stepped = part.step(key.step, key.head, key.of)
        return StageState(*_state(part)) if stepped and replicate else None

    def _inspected(self, gradient: Tensor, key: Key) -> list[Alarm]:
        given = self._given.get(key.micro)
        watching = [g for g in self._at(key.head, 0, "head").of(Inspecting) if isinstance(g, Inspecting)]
        if given is None or not watching:
            return []
        # A micro-batch's gradient is its share of the step's; what a guard compares must not depend on how many.
        found = [guard.inspect(gradient * key.of, given.true, given.given, key.step) for guard in watching]
        return [alarm for alarm in found if alarm]

    def _is_fake(self, key: Key) -> bool:
        given = self._given.get(key.micro)
        return given is not None and not torch.equal(given.true, given.given)

    # --- questions ---------------------------------------------------------------------------------------------

    def _pass(self, task: Pass) -> Asked:
        part = self._part(task.head, task.stage)
        parts = 0
        if task.blob is None:
            test = self._examples[task.head].test_x
            assert test is not None
            parts = -(-len(test) // CHUNK)
            x = _tensor(test[task.part * CHUNK : (task.part + 1) * CHUNK])
        else:
            x = self._read(task.blob, task.rows, task.stage)
        part.module.eval()
        with torch.inference_mode():
            out = part.module(x)
        part.module.train()
        if task.blob is None:  # what leaves a head is guarded, whatever it is for
            for guard in self._at(task.head, task.stage, "head").of(Outgoing):
                assert isinstance(guard, Outgoing)
                out = guard.outgoing(out.clone(), x)
        codec = Dense() if task.answers else self._options.forward
        name = Key(task.head, task.stage, 0, task.part, 0)
        return Asked(len(x), self._write(out, codec, "ask", name), parts)

    def _judge(self, task: Judge) -> Judged:
        labels = self._examples[self._options.me].test_y
        assert labels is not None
        y = _tensor(labels[task.part * CHUNK : (task.part + 1) * CHUNK])
        logits = self._read(task.blob, task.rows, len(self._options.shapes) - 1)
        if len(logits) != len(y):
            raise RemoteError(Refusal.MISMATCH, "answers to other questions")
        right = int((logits.argmax(1) == y).sum())
        return Judged(right, float(functional.cross_entropy(logits, y, reduction="sum")), y.numel())

    # --- pieces ------------------------------------------------------------------------------------------------

    def _part(self, head: int, stage: int) -> Part:
        copy = (head if stage == 0 or self._options.copies else -1, stage)
        if copy not in self._parts:
            self._parts[copy] = Part(self._build(stage), self._options.settings)
        return self._parts[copy]

    def _at(self, head: int, stage: int, where: str) -> _Guards:
        """The guards at work for a head, of those that are for the place `where`."""
        if (head, stage) not in self._guards:
            o = self._options
            cut = o.shapes[1] if where == "head" else o.shapes[stage]
            known = [
                About(o.shapes[0], cut, o.classes, o.settings.batch, generator(o.private, "split-guard", head, i))
                for i in range(len(o.guards))
            ]
            mine = [g.start(about) for g, about in zip(o.guards, known, strict=True) if g.at == where]
            self._guards[head, stage] = _Guards(mine)
        return self._guards[head, stage]

    def _chosen(self, key: Key) -> tuple[np.ndarray, int]:
        """Which of its examples a head uses in a micro-batch, and how many in the whole step."""
        settings, mine = self._options.settings, self._examples[key.head].x
        assert mine is not None
        round_, step = divmod(key.step, settings.local_steps)
        epoch, start, stop = batch_place(round_, step, len(mine), settings.batch, settings.local_steps)
        place = key.head, epoch
        if self._order is None or self._order[0] != place:
            self._order = place, epoch_order(self._options.seed, key.head, epoch, len(mine))
        batch = self._order[1][start:stop]  # batch_indices, with the order drawn once an epoch
        return np.array_split(batch, key.of)[key.micro], len(batch)

    def _own(self, head: int, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        mine = self._examples[head]
        assert mine.x is not None
        assert mine.y is not None
        # Chosen by their numbers, which copies.
        return torch.from_numpy(np.ascontiguousarray(mine.x[chosen])), torch.from_numpy(mine.y[chosen])

    def _labels(self, task: Finish) -> Tensor:
        if self._options.labels == "own":
            given = self._given.get(task.key.micro)
            if given is None or given.number != task.key.step or len(given.given) != task.rows:
                raise RemoteError(Refusal.MISMATCH, "examples that this data owner does not train with now")
            return given.given
        if self._options.labels == "sent":
            labels = np.frombuffer(task.labels, "<u2").astype(np.int64)
        else:
            held, which = self._examples[task.key.head].y, np.frombuffer(task.which, "<u4")
            if held is None or (which >= len(held)).any():
                raise RemoteError(Refusal.MISMATCH, "an example that nobody has a label of")
            labels = held[which].astype(np.int64)
        if len(labels) != task.rows or (labels >= self._options.classes).any():
            raise RemoteError(Refusal.MISMATCH, "labels that the task does not have")
        return torch.from_numpy(labels)

    def _read(self, blob: bytes, rows: int, boundary: int) -> Tensor:
        """The tensor (rows, ...) in remote bytes, at the entrance of stage `boundary`. Raises RemoteError."""
        shape = self._options.shapes[boundary]
        if not 0 < rows <= max(self._options.settings.batch, CHUNK):
            raise RemoteError(Refusal.MISMATCH, f"{rows} examples at once")
        values = table.decode(blob, rows * prod(shape)).values
        if not _in_range(values):
            raise RemoteError(Refusal.MISMATCH, f"values beyond {RANGE:g}")
        mine = values if values.flags.writeable else values.copy()
        return torch.from_numpy(mine).view(rows, *shape)

    def _write(self, x: Tensor, codec: Codec, way: str, key: Key) -> bytes:
        values = x.detach().contiguous().numpy().reshape(-1)
        if not _in_range(values):
            raise BadInput(f"Training diverged at step {key.step}: what leaves stage {key.stage} is beyond all bounds.")
        if isinstance(codec, Dense):
            return table.encode(codec, values, _UNUSED)
        name = ("split-codec", way, key.head, key.stage, key.step, key.micro)
        return table.encode(codec, values, generator(self._options.private, *name))

    def _restored(self, head: int, stage: int, state: StageState) -> Loaded | Refused:
        part = self._part(head, stage)
        size = len(part.parameters)
        try:
            parameters, start = (table.decode_lossless(blob, size) for blob in (state.blob, state.start))
            part.restore(parameters, start, state.state)
        except (RemoteError, ValueError) as error:
            return Refused(str(error))
        return Loaded()


def _state(part: Part) -> tuple[bytes, bytes, bytes]:
    parameters, start, memory = part.state()
    return table.encode(Dense(), parameters, _UNUSED), table.encode(Dense(), start, _UNUSED), memory


def _stage(task: Forward | Finish | Backward | Pass) -> int:
    return task.stage if isinstance(task, Pass) else task.key.stage


def _mean(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The weighted mean of vectors (d,), in their order."""
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total += np.float32(weight) * vector
    return total


def _in_range(values: Vector) -> bool:
    """Whether all are numbers of a magnitude of at most RANGE: NaN is neither the one extreme nor the other."""
    return not values.size or bool(values.min() >= -RANGE and values.max() <= RANGE)


def _tensor(array: Pictures | Labels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy())  # a copy: the shard may be read-only or shared
