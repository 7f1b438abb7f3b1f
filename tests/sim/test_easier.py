"""What was made easier for an attack is named, and what is ordinary training is not."""

from dataclasses import dataclass
from typing import Any

import pytest

from veilmesh.sim.easier import easier, needs_telling
from veilmesh.sim.scenario import Scenario


@dataclass(frozen=True)
class Inverting:
    """An attack with the option that inversion attacks have."""

    labels: str = "inferred"
    counts: str = "inferred"


HONEST = Inverting()


def of(attack: object = HONEST, rounds: tuple[int, ...] = (3,), **scenario: Any) -> list[str]:
    return easier(Scenario.parse({"model": "mlp", **scenario}), attack, rounds)


def test_the_defaults_are_ordinary_training() -> None:
    assert of() == []
    assert of(rounds=(0, 5)) == []
    assert of(rounds=()) == []
    assert not needs_telling(Inverting())
    assert not needs_telling(object())


def test_whatever_was_told_is_named() -> None:
    assert of(Inverting(labels="told")) == ["labels told"]
    assert of(Inverting("told", "told")) == ["labels told", "counts told"]
    assert needs_telling(Inverting(labels="told"))
    assert not needs_telling(Inverting(counts="told"))


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ({"training": {"learning_rate": 1e-4, "local_steps": 5}}, "learning rate 0.0001: several local steps are one"),
        ({"training": {"learning_rate": 1e-4}}, "learning rate 0.0001: models hardly move"),
        ({"training": {"batch": 1}}, "one picture a step"),
        ({"model": {"name": "lenet", "spread": 0.5}}, "parameters begin as wide as 0.5"),
        ({"model": {"name": "convnet", "norm": "frozen"}}, "batch normalisation frozen"),
    ],
)
def test_each_departure_is_named(scenario: dict[str, Any], words: str) -> None:
    [named] = of(**scenario)
    assert named.startswith(words)


def test_what_trains_is_not_named() -> None:
    assert of(training={"learning_rate": 1e-4, "optimizer": "adam"}) == []
    assert of(training={"learning_rate": 1e-3, "local_steps": 5}) == []
    assert of(model={"name": "lenet", "spread": 0}) == []


def test_an_untrained_network_is_named() -> None:
    assert of(rounds=(0, 0)) == ["untrained network (round 0 only)"]
