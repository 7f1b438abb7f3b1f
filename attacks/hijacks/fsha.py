"""Feature-space hijacking: gradients that teach a victim's head to speak the attacker's language."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from veilmesh.attacks.hijacks.base import HIJACKS, Executor, Knows
from veilmesh.attacks.hijacks.critic import Critic, critic_loss, wanted_loss
from veilmesh.attacks.seen.smashed import StageMap
from veilmesh.attacks.smashed.decoders import begin, generator_of
from veilmesh.attacks.smashed.pilot import Begins, make_pilot
from veilmesh.core import BadInput, RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.split.work import Backward, Finish, Forward, Key, Returned, Several

__all__ = ["Fsha"]

_PLACES = 512
"""Of a step: from here on, what is common to all of them moves the head as far as one can follow."""


@HIJACKS.register("fsha")
@dataclass(frozen=True, slots=True)
class Fsha:
    """Feature-space hijacking: the gradient said is that of making activations look like those of the attacker's pilot.

    Pasquini, Ateniese and Bernaschi, CCS 2021 (arXiv 2012.02670), section 4. The pilot and its decoder are an
    autoencoder of public pictures; a critic tells the pilot's activations of public pictures from the victim's, and the
    victim is sent the gradient of fooling it. Its head becomes like the pilot, and the decoder reads it (attack `fsha`,
    with the same `iterations` and `begins`). Labels that are sent tell the critic what to compare with.

    Theirs trains the pilot while the victim trains, and here it is trained, for `iterations` steps, before: nothing
    that it learns comes from the victim. `wasserstein`: a critic with a gradient `penalty` (WGAN-GP), as their runs
    had; else the plain loss. Every gradient said has a norm of `stride` / learning rate, for plain SGD at the victim,
    where they had Adam; where a step has more than 512 places (examples, times the places of a convolution that share
    its parameters), so much less as there are more, and after t steps settle / (settle + t) of it (0: all).
    `pretend`: the honest gradient's share in the one said, for guards that look for the task in it.
    """

    iterations: Annotated[int, Field(ge=1)] = 400
    begins: Begins = "public"
    stride: Annotated[float, Field(gt=0)] = 0.015
    settle: Annotated[int, Field(ge=0)] = 1000
    rate: Annotated[float, Field(gt=0)] = 1e-3
    wasserstein: bool = True
    penalty: Annotated[float, Field(ge=0)] = 10.0
    critics: Annotated[int, Field(ge=1)] = 1
    pretend: Annotated[float, Field(ge=0, le=1)] = 0.0

    seat: ClassVar[Literal["stage", "peer"]] = "stage"

    def execute(self, honest: Executor, knows: Knows) -> Executor:
        """As `Hijack.execute`."""
        return _Hijacker(self, honest, knows).run


class _Hijacker:
    """The worker of a member whose lowest stage has the victims' activations for input."""

    def __init__(self, options: Fsha, honest: Executor, knows: Knows) -> None:
        public = knows.public
        if not knows.stages or not knows.stages[0]:
            raise BadInput("fsha is done by a member that plays a stage above the head; take adversary.vantage tail.")
        self._options, self._honest, self._public, self._rng = options, honest, public, knows.rng
        self._stage = knows.stages[0]
        self._shape = StageMap(public).shapes[self._stage]
        self._codec = knows.codec("gradients")
        self._draws = generator_of(knows.rng)
        pilot = make_pilot(public, self._stage, options.iterations, options.begins)
        assert public.pictures is not None
        self._wanted = pilot.features(torch.from_numpy(public.pictures))
        labels = public.picture_labels
        self._labels = torch.from_numpy(labels) if labels is not None and labels.ndim == 1 else None
        self._critic = begin(partial(Critic, self._shape, public.classes), self._draws)
        betas = (0.5, 0.9) if options.wasserstein else (0.5, 0.999)
        self._learner = torch.optim.Adam(self._critic.parameters(), options.rate, betas)
        self._seen: dict[tuple[int, int], tuple[int, Tensor]] = {}  # by head and micro-batch: the step, what came in
        share = 1 - float(public.split.get("momentum", 0.0))
        places = public.batch * (prod(self._shape[1:]) if len(self._shape) == 3 else 1)
        self._norm = options.stride * share / public.learning_rate * min(1.0, _PLACES / places)

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The results of tasks, some of them lies."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        if isinstance(task, Several):
            return tuple(self._lied(one, said) for one, said in zip(task.tasks, self._whole(task), strict=False))
        return self._lied(task, self._honest([task])[0])

    def _whole(self, task: Several) -> tuple[object, ...]:
        found = self._honest([task])[0]
        assert isinstance(found, tuple)
        return found

    def _lied(self, task: object, result: object) -> object:
        """What is said instead of the honest `result`."""
        match task, result:
            case Finish(key=key, blob=blob, rows=rows, labels=labels), Returned() if key.stage == self._stage:
                z = self._read(blob, rows)
                return result if z is None else self._gradient(key, z, self._classes(labels, rows), result)
            case Forward(key=key, blob=bytes() as blob, rows=rows), _ if key.stage == self._stage:
                z = self._read(blob, rows)
                if z is not None:
                    self._seen[key.head, key.micro] = key.step, z
            case Backward(key=key), Returned() if key.stage == self._stage:
                step, z = self._seen.get((key.head, key.micro), (-1, torch.empty(0)))
                return self._gradient(key, z, None, result) if step == key.step else result
        return result

    def _gradient(self, key: Key, z: Tensor, labels: Tensor | None, honest: Returned) -> Returned:
        """The gradient of fooling the critic, once it has learned from `z` (B, ...)."""
        for _ in range(self._options.critics):
            self._learn(z, labels)
        x = z.clone().requires_grad_()
        loss = wanted_loss(self._critic(x, labels), self._options.wasserstein)
        (found,) = torch.autograd.grad(loss, x)
        mixed = self._unit(found)
        if self._options.pretend:
            said = self._read(honest.blob, len(z))
            usual = torch.zeros_like(z) if said is None else self._unit(said)
            mixed = (1 - self._options.pretend) * mixed + self._options.pretend * usual
        settle = self._options.settle
        norm = self._norm * (settle / (settle + key.step) if settle else 1.0)
        values = (mixed * (norm / key.of)).numpy().reshape(-1)
        blob = table.encode(self._codec, np.ascontiguousarray(values), self._rng)
        return Returned(blob, honest.loss, honest.alarms, honest.stop, honest.state)

    def _learn(self, z: Tensor, labels: Tensor | None) -> None:
        """One step of the critic, against as many wanted activations, of the same classes where they are told."""
        chosen = self._alike(labels, len(z))
        parameters = list(self._critic.parameters())
        options = self._options
        penalty = options.penalty if options.wasserstein else None
        loss = critic_loss(self._critic, self._wanted[chosen], z, labels, penalty, self._draws)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self._learner.step()

    def _alike(self, labels: Tensor | None, count: int) -> Tensor:
        """Places of `count` public pictures: of `labels` (count,), where they are told and there are some of each."""
        if labels is None or self._labels is None:
            return torch.randint(len(self._wanted), (count,), generator=self._draws)
        places = [torch.nonzero(self._labels == label).flatten() for label in labels]
        every = torch.arange(len(self._wanted))
        drawn = [(of if len(of) else every) for of in places]
        return torch.stack([of[torch.randint(len(of), (), generator=self._draws)] for of in drawn])

    def _classes(self, labels: bytes, rows: int) -> Tensor | None:
        """Labels (B,) that were sent, where the public pictures have some too."""
        if self._labels is None or len(labels) != 2 * rows:
            return None
        return torch.from_numpy(np.frombuffer(labels, "<u2").astype(np.int64))

    def _read(self, blob: bytes, rows: int) -> Tensor | None:
        try:
            values = table.decode(blob, rows * prod(self._shape)).values
        except RemoteError:
            return None
        return torch.from_numpy(np.array(values, np.float32)).view(rows, *self._shape)

    @staticmethod
    def _unit(g: Tensor) -> Tensor:
        unit: Tensor = g / g.norm().clamp_min(1e-12)
        return unit
