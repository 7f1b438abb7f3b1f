"""A data owner that makes pictures of somebody else's class, through the network that all of them train."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from veilmesh.attacks.hijacks.base import HIJACKS, Executor, Knows
from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.forger import Forger, Forging
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.split.work import Backward, Forward, Load, Refused, Returned, Said, Several

__all__ = ["ClientGan"]


@HIJACKS.register("client-gan")
@dataclass(frozen=True, slots=True)
class ClientGan:
    """A data owner says pictures of its own making, asks by their labels what makes them of `target`, and learns that.

    Hitaj, Ateniese and Perez-Cruz, CCS 2017 (arXiv 1702.07464), as Pasquini, Ateniese and Bernaschi carry it over to
    split learning (CCS 2021, section 5): the others' training is the discriminator. Of `every` steps all but one train
    the generator, and one teaches the tail that what it makes is of class `other`. Asking teaches the tail too, the
    wrong thing; the published way around it, a loss scaled down and its gradient up again, is not open to whoever only
    sends labels: the loss is the tail's own. The head is left as it came.

    It did not work where it was tried (digits, three data owners, 60 rounds of 16 steps, a convolution for a head): the
    pictures were further from the class than the mean of all public ones (10.4 dB against 15.0), and another classifier
    took 8 % of them for the target.

    For data owners that send labels, in turns (`round-robin`); attack `client-gan` shows what was made.
    """

    target: Annotated[int, Field(ge=0)] = 0
    other: Annotated[int, Field(ge=0)] | None = None
    every: Annotated[int, Field(ge=2)] = 4
    rate: Annotated[float, Field(gt=0)] = 1e-3

    seat: ClassVar[Literal["stage", "peer"]] = "peer"

    def execute(self, honest: Executor, knows: Knows) -> Executor:
        """As `Hijack.execute`."""
        return _Maker(self, honest, knows).run


class _Maker:
    def __init__(self, options: ClientGan, honest: Executor, knows: Knows) -> None:
        public = knows.public
        if public.split["labels"] != "sent" or knows.stages != (0,):
            raise BadInput("client-gan lies about labels that a data owner sends; take round-robin, with labels sent.")
        if max(options.target, options.other or 0) >= public.classes:
            raise BadInput(f"client-gan wants class {options.target}, and there are {public.classes}, counted from 0.")
        self._options, self._honest, self._place, self._rng = options, honest, knows.place, knows.rng
        self._classes, self._shape = public.classes, StageMap(public).shapes[1]
        self._codec = knows.codec("codec")
        self._forging = Forging(options.target, options.other, options.every, options.rate)
        self._forger = Forger(public, knows.place, self._forging)
        self._said: dict[int, tuple[int, int]] = {}  # by micro-batch: the step, and how many examples

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The results of tasks, those of steps being lies."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        match task:
            case Several(tasks=tasks):
                return tuple(self._one(each) for each in tasks)
            case Forward(blob=None):
                return self._forward(task)
            case Backward():
                return self._backward(task)
            case Load(stage=0, parameters=parameters):
                self._forger.take(parameters)
        return self._honest([task])[0]

    def _forward(self, task: Forward) -> object:
        """Activations of pictures of its own making, as many as honest work would have said."""
        said, key = self._honest([task])[0], task.key
        assert isinstance(said, Said)
        self._said[key.micro] = key.step, said.rows
        z = self._forger.activations(said.rows, key.step, key.micro)
        blob = table.encode(self._codec, np.ascontiguousarray(z.numpy().reshape(-1)), self._rng)
        label = self._forging.label(key.step, self._classes)
        return replace(said, blob=blob, labels=np.full(said.rows, label, "<u2").tobytes())

    def _backward(self, task: Backward) -> Returned | Refused:
        """Learn what makes pictures of the target. The honest half forgets the step by itself."""
        key = task.key
        step, rows = self._said.get(key.micro, (-1, 0))
        if step != key.step or not self._forging.asks(step):
            return Returned()
        try:
            seen = table.decode(task.blob, rows * prod(self._shape)).values
        except RemoteError as error:
            return Refused(str(error))
        self._forger.learn(torch.from_numpy(np.array(seen)).view(rows, *self._shape), step, key.micro)
        return Returned()
