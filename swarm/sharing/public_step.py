"""GradientHide (ICLR 2026 submission 8522, OpenReview hcL8wbKFB5): a public step over the private one, before sending.

A peer trains on its own pictures as ever, from w to w1. Then it takes a step on public pictures, from w1 to w2 = w1 -
rate * eta * gradient(w1; public batch), and shares w2 - w: the private gradient hides under the public one. All of it
is the peer's own business, so it works under every protocol. Only the abstract of the paper was at hand: the rate, the
batch and the pool are options here.

Which of the public pictures are a peer's pool, and in which order it takes them, is drawn from its own secrets and said
to nobody. The pictures themselves, and how they are labelled, everybody knows: what that is worth to an attacker is
`attacks/inversion/public_step.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from veilmesh.core import BadInput, generator, seed_number
from veilmesh.crypto.codecs.base import Vector
from veilmesh.swarm.sharing.base import SHARINGS, Learner, Own, Setting
from veilmesh.swarm.sharing.whole_model import WholeModel
from veilmesh.tasks.aligners.base import ALIGNERS, Aligned, Aligner
from veilmesh.tasks.data.base import Labels, Pictures
from veilmesh.tasks.work import Indices, Train, Trained, batch_indices

__all__ = ["PublicStep"]


@SHARINGS.register("public-step")
@dataclass(frozen=True)
class PublicStep:
    """A step on public pictures over the private ones, before a model is shared (GradientHide).

    Args:
        rate: step size on public pictures, in private ones (eta_p / eta).
        batch: public pictures in a step.
        steps: public steps in a round, or with `mixing` = "interleaved", behind every private one.
        pool: how many public pictures a peer chooses for itself, of those that are labelled well enough.
        threshold: how sure a public picture's label has to be, 0 to 1.
        mixing: all private steps and then the public ones ("sequential"), or in turns ("interleaved").
        aligner: what labels public pictures: a name, or a table with a name and that aligner's options.
    """

    like_model: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    batch: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=1)] = 1
    pool: Annotated[int, Field(ge=1)] = 200
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    mixing: Literal["sequential", "interleaved"] = "sequential"
    aligner: str | Mapping[str, Any] = "class-means"

    def __post_init__(self) -> None:
        """Raises BadInput where there is no such aligner."""
        self._aligner()

    def initial(self, setting: Setting) -> Vector:
        """As `Sharing.initial`. Raises BadInput also where no public picture is labelled well enough."""
        self.labelled(setting)
        if self.mixing == "interleaved" and (setting.settings.momentum or setting.settings.optimizer != "sgd"):
            raise BadInput(
                "sharing 'public-step' takes private and public steps in turns only with plain SGD; set momentum to 0 "
                "and optimizer to sgd, or mixing to 'sequential'."
            )
        return WholeModel().initial(setting)

    def learner(self, setting: Setting, own: Own) -> Learner:
        """As `Sharing.learner`."""
        sure, labels = self.labelled(setting)
        mine = self._mine(sure, own.private)
        turns = self.mixing == "interleaved"
        settings = setting.settings
        once = replace(settings, local_steps=1) if turns else settings
        public = replace(
            settings, batch=self.batch, local_steps=self.steps, learning_rate=self.rate * settings.learning_rate
        )
        x, y = setting.public_x[mine], labels[mine]
        secret = replace(own, x=x, y=y, test_x=own.test_x[:1], test_y=own.test_y[:1], importance=None)
        return _TwoStages(
            WholeModel().learner(replace(setting, settings=once), own),
            WholeModel().learner(replace(setting, settings=public, seed=_order(own.private)), secret),
            settings.local_steps if turns else 1,
        )

    def labelled(self, setting: Setting) -> tuple[Indices, Labels]:
        """The public pictures that anybody may choose (m,), by their places, and the classes of all of them: known to
        everybody. Raises BadInput where there is none."""
        return self.chosen_from(setting.public_x, setting.public_y, setting.classes)

    def chosen_from(self, x: Pictures, y: Labels, classes: int) -> tuple[Indices, Labels]:
        """As `labelled`, of public pictures `x` (N, C, H, W) with labels `y`."""
        aligned: Aligned = self._aligner().align(x, y, classes)
        sure = np.flatnonzero(aligned.confidence >= self.threshold)
        if not len(sure):
            raise BadInput(
                f"sharing 'public-step' finds no public picture whose label is sure by {self.threshold:g}; lower "
                "threshold, or take another aligner."
            )
        return sure, aligned.labels

    def drawn(self, setting: Setting, private: int, index: int, round_: int) -> Indices:
        """The truth, for who scores: places of the public pictures behind peer `index`'s update of `round_`, step by
        step (n,), of one whose secrets are drawn from `private`."""
        mine = self._mine(self.labelled(setting)[0], private)
        each = setting.settings.local_steps if self.mixing == "interleaved" else 1
        rounds = range(round_ * each, (round_ + 1) * each)
        steps = [
            batch_indices(_order(private), index, r, s, len(mine), self.batch, self.steps)
            for r in rounds
            for s in range(self.steps)
        ]
        return mine[np.concatenate(steps)]

    def _aligner(self) -> Aligner:
        named = {"name": self.aligner} if isinstance(self.aligner, str) else dict(self.aligner)
        if not isinstance(name := named.pop("name", None), str):
            raise BadInput("The aligner of sharing 'public-step' has no name; write aligner = { name = ... }.")
        return ALIGNERS.build(name, named)

    def _mine(self, sure: Indices, private: int) -> Indices:
        """A peer's own pool, in its own order: places among the public pictures."""
        return generator(private, "public-pool").permutation(sure)[: self.pool]


@dataclass(frozen=True, slots=True, eq=False)
class _TwoStages:
    """Private steps, then public ones, so often in a round."""

    private: Learner
    public: Learner
    turns: int

    def run(self, tasks: Sequence[object]) -> list[object]:
        """As `Learner.run`."""
        return [self._train(task) if isinstance(task, Train) else self.private.run([task])[0] for task in tasks]

    def _train(self, task: Train) -> Trained:
        """What is said of a round, its loss and its samples, is said of the private pictures."""
        update, losses, samples = np.zeros_like(task.parameters), list[float](), 0
        for turn in range(self.turns):
            for trainer in (self.private, self.public):
                found = _trained(trainer, self._step(task, turn, update, trainer is self.private))
                update = update + found.update
                if trainer is self.private:
                    losses.append(found.loss)
                    samples += found.samples
        return Trained(update, sum(losses) / len(losses), samples)

    def _step(self, task: Train, turn: int, update: Vector, private: bool) -> Train:
        """What a protocol asks of training besides, it asks of the private steps. In turns, a proximal term is a
        correction: its gradient where a step begins."""
        here, number = task.parameters + update, task.round * self.turns + turn
        if not private:
            return Train(number, here)
        if self.turns == 1:
            return Train(number, here, task.proximal, task.correction)
        correction = task.correction
        if task.proximal and turn:
            correction = np.float32(task.proximal) * update + (0 if correction is None else correction)
        return Train(number, here, correction=correction)


def _trained(trainer: Learner, task: Train) -> Trained:
    (found,) = trainer.run([task])
    assert isinstance(found, Trained)  # a trainer's answer to Train
    return found


def _order(private: int) -> int:
    """The seed of the order in which a peer takes the pictures of its pool."""
    return seed_number(private, "public-order")
