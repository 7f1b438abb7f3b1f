"""What makes an attack's task easier than it is in ordinary training, named beside every figure that rests on it.

Inferred labels, batch normalisation as in training, batches, learning rates that move a model: these are the defaults
here. Many published figures were made without one or more of them, and cannot be compared with those that were not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass

from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.tasks.models.base import MODELS

__all__ = ["TRAINING_RATE", "easier", "needs_choice", "needs_telling"]

TRAINING_RATE = 1e-3
"""Plain SGD with a lower learning rate than this hardly trains the networks here."""

_WIDE = 0.25  # of parameters that begin uniform in [-spread, spread]; training begins with a tenth of it or less


def easier(scenario: Scenario, attack: object, rounds: Iterable[int] = ()) -> list[str]:
    """Each setting that helps the attacker, in plain words; empty for training as it is done.

    `rounds`: those that the attack guessed at. `scenario` as a cast holds it, its network named.
    """
    return [*_telling(attack), *_network(scenario.model), *_training(scenario), *_target(list(rounds))]


def needs_telling(attack: object) -> bool:
    """Whether an attack asks for its victims' labels: it has an option `labels`, and that is "told"."""
    return getattr(attack, "labels", None) == "told"


def needs_choice(attack: object) -> bool:
    """Whether an attack asks which public pictures its victims chose: its option `public_batch` is "told"."""
    return getattr(attack, "public_batch", None) == "told"


def _telling(attack: object) -> Iterator[str]:
    """Whatever an option of the attack says it was told."""
    if is_dataclass(attack):
        told = (field.name for field in fields(attack) if getattr(attack, field.name) == "told")
        yield from (f"{name.replace('_', ' ')} told" for name in told)


def _network(model: Choice | None) -> Iterator[str]:
    if model is None:
        return
    built = model.build(MODELS)
    if getattr(built, "norm", None) == "frozen":
        yield "batch normalisation frozen, as in evaluation mode"
    if getattr(built, "spread", 0) > _WIDE:
        yield f"parameters begin as wide as {built.spread:g}"


def _training(scenario: Scenario) -> Iterator[str]:
    training = scenario.training
    if training.optimizer == "sgd" and training.learning_rate < TRAINING_RATE:
        what = "several local steps are one gradient" if training.local_steps > 1 else "models hardly move"
        yield f"learning rate {training.learning_rate:g}: {what}"
    if training.batch == 1:
        yield "one picture a step"


def _target(rounds: list[int]) -> Iterator[str]:
    if rounds and not any(rounds):
        yield "untrained network (round 0 only)"
