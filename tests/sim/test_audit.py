"""Honest figures: nothing that knows the truth reaches an attack, and nothing is chosen by it before it is scored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from veilmesh.attacks.view import ATTACKS, Guess, Public, View
from veilmesh.core import BadInput, generator
from veilmesh.peer.machine import PeerId
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import told_labels
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.score import psnr
from veilmesh.sim.virtual import run_in_virtual_time

BATCH = 4
SCENARIO = {
    "world": "virtual", "peers": 3, "rounds": 2, "seed": 7, "task": "digits", "training": {"batch": BATCH},
    "adversary": {"vantage": "peer:1"},
}  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """Says what a test tells it to say; remembers what it was given."""

    reconstructs: ClassVar[str] = "pictures"
    says: ClassVar[Callable[[View], list[Guess]]]
    seen: ClassVar[list[tuple[View, Any]]]

    def run(self, view: View, rng: np.random.Generator) -> Iterator[Guess]:
        type(self).seen.append((view, rng.bit_generator.state))
        yield from type(self).says(view)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    run_in_virtual_time(Cast.prepare(Scenario.parse(SCENARIO)), folder, lambda *_: None)
    return folder


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    ATTACKS.names()  # scanned before anything is planted
    monkeypatch.setitem(ATTACKS._classes, "planted", Planted)  # taken out again, unlike by register()
    Planted.seen, Planted.says = [], lambda view: []
    return Planted


def looked(run: Path, **changes: Any) -> dict[str, Any]:
    cast, ids = open_run(run)
    cast = replace(cast, scenario=cast.scenario.model_copy(update=changes))
    return audit(run, cast, ids, Choice(name="planted"), "peer:1")


def truth(run: Path, victim: int, round_: int) -> np.ndarray:
    cast, _ = open_run(run)
    return cast.dataset.train_x[cast.drawn(victim, round_)]


def guess(victim: int, round_: int, pictures: Any, loss: float = 0.0, labels: Any = ()) -> Guess:
    shown = np.asarray(pictures, np.float32).reshape(-1, 1, 8, 8)
    return Guess(PeerId(f"peer:{victim}"), round_, shown, np.array(labels or [0] * len(shown)), loss)


GREY = np.full((1, 8, 8), 0.5)


def test_an_attacks_generator_says_nothing_of_the_seed(run: Path, planted: type[Planted]) -> None:
    """From the seed follow the victims' batches, and the noise that guards them."""
    looked(run)
    looked(run, seed=8)
    (view, state), (_, other) = planted.seen
    assert state == other
    assert state != generator(7, "attack", "planted").bit_generator.state
    assert "seed" not in {field.name for field in fields(view.public)}


@pytest.mark.parametrize("task", ["digits", "faces"])
def test_what_is_public_holds_no_private_picture(task: str) -> None:
    cast = Cast.prepare(Scenario.parse({**SCENARIO, "task": task}))
    public: Public = cast.public([PeerId(name) for name in cast.names])
    assert public.pictures is not None
    private = {picture.tobytes() for part in (cast.dataset.train_x, cast.dataset.test_x) for picture in part}
    assert private.isdisjoint(picture.tobytes() for picture in public.pictures)


def test_of_many_guesses_at_one_batch_the_attackers_own_choice_counts(run: Path, planted: type[Planted]) -> None:
    """A thousand guesses, and the nearest one scored, would be a choice by the truth."""
    right, grey = truth(run, 0, 0), [GREY] * BATCH
    planted.says = lambda view: [guess(0, 0, right, loss=0.9), guess(0, 0, grey, loss=0.1), guess(0, 0, right, 0.5)]
    row = looked(run)
    assert row["guesses_made"] == 1
    assert row["psnr_best"] == pytest.approx(psnr(np.array([GREY] * BATCH), right).max(), abs=1e-4)
    assert row["psnr_best"] < 20


def test_more_pictures_than_there_were_are_not_matched(run: Path, planted: type[Planted]) -> None:
    right = truth(run, 0, 0)
    planted.says = lambda view: [guess(0, 0, np.concatenate([[GREY] * BATCH, right]))]
    row = looked(run)
    assert (row["pictures"], row["guessed"]) == (BATCH, BATCH)
    assert row["psnr_best"] < 20


def test_pictures_that_were_left_out_count_as_grey(run: Path, planted: type[Planted]) -> None:
    """Dropping what failed is how medians get better than attacks."""
    right = truth(run, 0, 0)
    planted.says = lambda view: [guess(0, 0, right[:1])]
    row = looked(run)
    grey = sorted(psnr(np.array([GREY] * BATCH), right))
    assert (row["pictures"], row["guessed"], len(row["guesses"])) == (BATCH, 1, 1)
    assert row["psnr_best"] == 60
    assert grey[0] <= row["psnr_median"] <= grey[-1]
    assert row["success"] == {"20": 1 / BATCH, "25": 1 / BATCH, "30": 1 / BATCH}
    assert row["guesses"][0]["guess"]
    assert (run / row["guesses"][0]["guess"]).exists()


def test_an_attack_that_guessed_no_picture_has_no_figures(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, [])]
    row = looked(run)
    assert (row["pictures"], row["guessed"], row["psnr_best"], row["psnr_median"]) == (BATCH, 0, None, None)
    assert row["guesses"] == []


def test_an_adversary_does_not_attack_itself(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(1, 0, truth(run, 1, 0))]
    row = looked(run)
    assert (row["guesses_made"], row["pictures"], row["psnr_best"]) == (0, 0, None)


def test_the_best_is_the_scorers_and_the_chosen_the_attackers(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, truth(run, 0, 0), loss=0.9), guess(2, 1, [GREY] * BATCH, loss=0.1)]
    row = looked(run)
    assert row["psnr_best"] == 60
    assert row["psnr_chosen"] < 20
    assert row["gain_chosen"] < 0


def test_labels_stand_beside_what_knowing_nothing_scores(run: Path, planted: type[Planted]) -> None:
    cast, _ = open_run(run)
    labels = cast.dataset.train_y[cast.drawn(0, 0)]
    planted.says = lambda view: [guess(0, 0, [GREY] * BATCH, labels=labels.tolist())]
    row = looked(run)
    assert row["labels_right"] == 1.0
    assert 0 <= row["labels_floor"] < 1


def test_an_attack_on_labels_has_no_figures_of_pictures(run: Path) -> None:
    cast, ids = open_run(run)
    row = audit(run, cast, ids, Choice(name="label-recovery"), "peer:1")
    assert row["labels_right"] is not None
    assert "psnr_best" not in row
    assert "pictures" not in row


@pytest.mark.parametrize("vantage", ["peer:0", "wire"])
def test_what_was_not_kept_is_not_taken_for_nothing_learned(run: Path, vantage: str) -> None:
    """A row without a picture would say that the neighbour learned nothing."""
    cast, ids = open_run(run)
    with pytest.raises(BadInput, match="was not kept"):
        audit(run, cast, ids, Choice(name="analytic"), vantage)


def test_a_transcript_that_reached_its_budget_says_so(tmp_path: Path) -> None:
    data = {"world": "virtual", "peers": 2, "rounds": 3, "transcript": {"keep": "all", "max_bytes": 30_000}}
    heard: list[str] = []
    cast = Cast.prepare(Scenario.parse(data))
    run_in_virtual_time(cast, tmp_path, lambda index, note, t, traffic: heard.append(note.kind))
    assert heard.count("transcript-full") == 2
    assert all(file.stat().st_size <= 30_100 for file in (tmp_path / "transcript").iterdir())


def test_every_figure_has_its_floor_and_its_interval_beside_it(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(v, r, truth(run, v, r)[: 2 + r], loss=0.5) for v in (0, 2) for r in (0, 1)]
    row = looked(run)
    assert (row["pictures"], row["guessed"], row["interval_over"]) == (4 * BATCH, 10, "batches")
    for name in ("psnr", "gain"):
        assert row[f"{name}_low"] <= row[f"{name}_mean"] <= row[f"{name}_high"]
        assert row[f"{name}_low"] < row[f"{name}_high"]
    for db in ("20", "25", "30"):
        assert row["success"][db] == 10 / 16
        assert row["success_low"][db] < 10 / 16 < row["success_high"][db]
        assert 0 <= row["success_floor"][db] < row["success"][db]
    assert set(row["floors"]) == {"grey", "mean", "nearest", "blind", "shifted"}
    assert row["floors"]["blind"] <= row["floors"]["nearest"]
    assert row["floor_blind"] < row["psnr_mean"]
    assert row["psnr_shifted_median"] >= row["psnr_median"]
    assert row["psnr_shifted_mean"] >= row["psnr_mean"]
    assert row["error_best"] == 0  # guessed to the bit
    assert 0 < row["error_worst"] <= 1  # grey, of pictures that were left out
    assert row["psnr_std"] > 0
    for each in row["guesses"]:
        assert each["floor_blind"] <= each["floor_nearest"]
        assert each["floor_blind"] <= each["floor_shifted"]


def test_one_picture_has_a_mean_and_no_interval(run: Path, planted: type[Planted]) -> None:
    cast, _ = open_run(run)
    training = cast.scenario.training.model_copy(update={"batch": 1})
    planted.says = lambda view: [guess(0, 0, [GREY])]
    row = looked(run, training=training)
    assert (row["pictures"], row["psnr_low"], row["psnr_high"]) == (1, None, None)
    assert row["psnr_mean"] == row["psnr_best"]
    assert row["psnr_std"] is None


def test_a_batch_is_looked_at_picture_by_picture_where_it_is_the_only_one(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, truth(run, 0, 0)[:2])]
    assert looked(run)["interval_over"] == "pictures"


def test_a_faint_picture_is_identified_and_a_gray_one_is_not(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, 0.5 * truth(run, 0, 0) + 0.25)]
    row = looked(run)
    assert row["psnr_best"] < 16
    assert row["identified"] == 1.0
    assert 0 < row["identified_floor"] < 0.2
    assert row["identified_low"] < 1.0 == row["identified_high"]
    assert row["gallery"] > 50
    planted.says = lambda view: [guess(0, 0, [GREY] * BATCH)]
    assert looked(run)["identified"] <= looked(run)["identified_floor"]


def test_what_an_attack_has_not_is_there_without_a_value(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, truth(run, 0, 0))]
    whole = looked(run)
    planted.says = lambda view: [guess(0, 0, [])]
    nothing = looked(run)
    figures = {k for k, v in whole.items() if isinstance(v, float) and not k.startswith(("labels", "cpu"))}
    assert {name for name in figures if name not in nothing} == {"psnr_chosen", "gain_chosen"}
    assert all(nothing[name] is None for name in figures & nothing.keys())


@dataclass(frozen=True)
class Helped(Planted):
    """The same, with the option that inversion attacks have."""

    labels: str = "inferred"


@pytest.mark.parametrize("labels", ["inferred", "told"])
def test_labels_are_told_only_where_that_was_asked_for_and_then_it_is_said(
    run: Path, planted: type[Planted], monkeypatch: pytest.MonkeyPatch, labels: str
) -> None:
    monkeypatch.setitem(ATTACKS._classes, "planted", Helped)
    Helped.says = lambda view: [guess(0, 0, [GREY] * BATCH, labels=[1] * BATCH), guess(0, 1, [GREY] * BATCH)]
    cast, ids = open_run(run)
    row = audit(run, cast, ids, Choice(name="planted", labels=labels), "peer:1")
    [(view, _)] = Helped.seen
    if labels == "inferred":
        assert view.told is None
        assert row["easier"] == []
        assert row["labels_right"] is not None
    else:
        told = view.told(PeerId("peer:0"), 1)
        assert told.tolist() == sorted(cast.dataset.train_y[cast.drawn(0, 1)].tolist())
        assert row["easier"] == ["labels told"]
        assert row["labels_right"] is None  # nobody found them out


def test_a_row_names_what_made_it_easier(run: Path, planted: type[Planted]) -> None:
    planted.says = lambda view: [guess(0, 0, truth(run, 0, 0))]
    assert looked(run)["easier"] == ["untrained network (round 0 only)"]
    planted.says = lambda view: [guess(0, 1, truth(run, 0, 1))]
    assert looked(run)["easier"] == []


def test_labels_of_several_steps_are_told_step_by_step() -> None:
    training = {"batch": 3, "local_steps": 2}
    cast = Cast.prepare(Scenario.parse({**SCENARIO, "training": training}))
    ids = [PeerId(name) for name in cast.names]
    told = told_labels(cast, ids)(ids[0], 1)
    drawn = cast.dataset.train_y[cast.drawn(0, 1)]
    assert told.tolist() == [*sorted(drawn[:3].tolist()), *sorted(drawn[3:].tolist())]


@dataclass(frozen=True)
class OfPixels(Planted):
    """An attack that can work where pixels have labels."""

    per_pixel: ClassVar[bool] = True


def test_where_pixels_have_labels_an_attack_says_whether_it_can(
    tmp_path: Path, run: Path, planted: type[Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run, its labels made masks: pictures are scored as ever, labels are not."""
    cast, ids = open_run(run)
    masks = np.repeat(cast.dataset.train_y, 64).reshape(-1, 8, 8)
    kinds = {name: np.repeat(getattr(cast.dataset, name), 64).reshape(-1, 8, 8) for name in ("test_y", "public_y")}
    cast = replace(cast, dataset=replace(cast.dataset, train_y=masks, **kinds))
    with pytest.raises(BadInput, match="labels pixels"):
        audit(run, cast, ids, Choice(name="planted"), "peer:1")
    monkeypatch.setitem(ATTACKS._classes, "planted", OfPixels)
    right = truth(run, 0, 0)
    whole = replace(guess(0, 0, right), labels=np.zeros((BATCH, 8, 8), np.int64))
    OfPixels.says = lambda view: [whole]
    row = audit(run, cast, ids, Choice(name="planted"), "peer:1")
    assert (row["psnr_best"], row["labels_right"], row["identified"]) == (60, None, 1.0)
    assert [each["label"] for each in row["guesses"]] == [None] * BATCH
