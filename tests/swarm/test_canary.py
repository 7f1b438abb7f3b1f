"""The guard that looks at the model it is made to train from: silent on honest ones, and not on crafted ones."""

from typing import Any

import numpy as np
import pytest

from veilmesh.core import generator
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.swarm.guards.base import GUARDS, Layout, RoundInfo, Watching
from veilmesh.swarm.guards.canary import Canary
from veilmesh.swarm.sealer import Sealer

ROWS, INPUTS, CLASSES = 64, 100, 10
LAYOUT: Layout = (
    ("1.weight", (4, 1, 3, 3), 0), ("2.weight", (ROWS, INPUTS), 36), ("2.bias", (ROWS,), 36 + ROWS * INPUTS),
    ("4.weight", (CLASSES, ROWS), 36 + ROWS * INPUTS + ROWS), ("4.bias", (CLASSES,), 36 + ROWS * INPUTS + 11 * ROWS),
)  # fmt: skip
SIZE = LAYOUT[-1][2] + CLASSES
STRUCTURE = {"away": 1e9, "scale": 1e9}  # so that nothing is told by the size of a change


def part(x: np.ndarray, name: str) -> np.ndarray:
    """A view of one parameter in the flat vector."""
    shape, offset = next((shape, offset) for found, shape, offset in LAYOUT if found == name)
    return x[offset : offset + int(np.prod(shape))].reshape(shape)


def model(seed: int = 0) -> np.ndarray:
    x = np.empty(SIZE, np.float32)
    for name, shape, _ in LAYOUT:
        bound = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        part(x, name)[:] = generator(seed, "model", name).uniform(-bound, bound, shape)
    return x


def learned(seed: int = 1) -> np.ndarray:
    return (0.01 * generator(seed, "update").standard_normal(SIZE)).astype(np.float32)


def info(start: np.ndarray | None, left: np.ndarray | None = None, samples: int = 16) -> RoundInfo:
    return RoundInfo(3, samples, start=start, left=left, layout=LAYOUT)


def alarm(start: np.ndarray, update: np.ndarray | None = None, **options: Any) -> str | None:
    return Canary(**options).alarm(learned() if update is None else update, info(start, model()))


def test_an_honest_round_passes_to_the_bit() -> None:
    update = learned()
    start = model() + learned(2)
    out = GUARDS.build("canary").outgoing(update, info(start, model()), generator(1, "guard"))
    np.testing.assert_array_equal(out, update)


@pytest.mark.parametrize("missing", ["start", "left", "layout"])
def test_where_nobody_says_what_there_is_to_look_at_nothing_is_stopped(missing: str) -> None:
    crafted = np.ones(SIZE, np.float32) if missing != "left" else model()
    known: dict[str, Any] = {"start": crafted, "left": model(), "layout": LAYOUT}
    known[missing] = () if missing == "layout" else None
    assert Canary().alarm(learned(), RoundInfo(3, 16, **known)) is None


def test_rows_that_measure_the_same() -> None:
    start = model()
    part(start, "2.weight")[:] = np.outer(np.linspace(0.5, 1, ROWS), model(9)[:INPUTS])
    assert "double" in str(alarm(start, **STRUCTURE))
    some = model()
    part(some, "2.weight")[: ROWS // 8] = 1 / INPUTS
    assert alarm(some, **STRUCTURE) is None
    assert "double" in str(alarm(some, parallel=0.1, **STRUCTURE))


def test_rows_whose_halves_cancel() -> None:
    start, rng = model(), generator(4, "trap")
    half = np.abs(rng.normal(0, 0.5, (ROWS, INPUTS // 2)))
    rows = np.concatenate([-half, 0.95 * half], axis=1)
    part(start, "2.weight")[:] = rng.permuted(rows, axis=1)
    assert "add up" in str(alarm(start, **STRUCTURE))
    assert alarm(start, balance=0, **STRUCTURE) is None
    assert "large" in str(alarm(start, balance=0))


def test_layers_without_a_gradient() -> None:
    update = learned()
    part(update, "2.weight")[:] = 0
    assert "learns nothing" in str(alarm(model(), update))
    update = learned()
    part(update, "2.weight")[: ROWS // 2] = 0  # a batch may well leave half of the units alone
    assert alarm(model(), update) is None
    part(update, "2.weight")[: ROWS - 2] = 0
    assert "97% of 2.weight" in str(alarm(model(), update))
    assert Canary().alarm(update, info(model(), model(), samples=1)) is None  # and one picture all but one


def test_an_update_that_lies_in_a_few_rows() -> None:
    layout: Layout = (("w", (200, 20), 0),)
    start = generator(1, "start").uniform(-0.2, 0.2, 4000).astype(np.float32)
    update = learned()[:4000].copy()
    update[:80] *= 1000
    where = RoundInfo(0, 16, start=start, left=start, layout=layout)
    assert "4 of its 200 rows" in str(Canary().alarm(update, where))
    assert Canary(few=1.0).alarm(update, where) is None


def test_a_layer_that_is_not_as_it_was_left() -> None:
    start = model()
    part(start, "4.bias")[3] = 1000
    assert "4.bias" in str(alarm(start))
    start = model()
    part(start, "2.weight")[:] = part(model(5), "2.weight")
    assert "away" in str(alarm(start))
    assert alarm(start, away=2) is None


def sealer(**options: Any) -> Sealer:
    return Sealer([Canary(**options)], Dense(), SIZE, 1, 0, (), LAYOUT, model())


def test_nothing_is_said_in_a_round_that_looks_crafted_and_the_reason_is_noted_once() -> None:
    one, crafted = sealer(), model()
    part(crafted, "2.weight")[:] = 1
    assert not one.guard(learned(), RoundInfo(0, 16, start=crafted)).any()
    [note] = one.alarms()
    assert (note.kind, note.data["round"]) == ("canary", 0)
    assert "2.weight" in note.data["why"]
    assert one.alarms() == []
    np.testing.assert_array_equal(one.guard(learned(), RoundInfo(1, 16, start=model())), learned())
    assert one.alarms() == []


def test_what_looked_crafted_is_not_what_the_next_round_is_compared_with() -> None:
    one, other = sealer(), model(7)
    for round_ in range(3):
        assert not one.guard(learned(), RoundInfo(round_, 16, start=other)).any()
    far = sealer(away=1e9)
    x = model()
    for round_ in range(30):  # honest steps, however far they lead in the end
        assert far.guard(learned(round_), RoundInfo(round_, 16, start=x)).any()
        x = x + learned(round_)


def test_who_comes_late_or_comes_back_compares_with_nothing_at_first() -> None:
    one, elsewhere = sealer(), model(7)
    assert one.guard(learned(), RoundInfo(100, 16, start=elsewhere)).any()
    assert not one.guard(learned(), RoundInfo(101, 16, start=model())).any()


def test_guards_that_look_at_nothing_are_told_nothing() -> None:
    seen: list[RoundInfo] = []

    class Spy:
        def outgoing(self, x: np.ndarray, info: RoundInfo, rng: np.random.Generator) -> np.ndarray:
            seen.append(info)
            return np.zeros_like(x)

    one = Sealer([Spy()], Dense(), SIZE, 1, 0, (), LAYOUT, model())
    one.guard(learned(), RoundInfo(0, 16, start=model()))
    assert one.alarms() == []
    assert seen[0].left is None
    assert seen[0].layout == ()
    assert isinstance(Canary(), Watching)
