"""How inferred labels of single examples are scored, and who is scored at all."""

import numpy as np
import pytest

from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.figures import ordered_figures
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Choice, Scenario


def test_order_counts_and_the_floor_is_the_usual_class():
    truth, guess = np.array([0, 1, 1, 0]), np.array([1, 0, 1, 0])
    found = ordered_figures([(truth, guess)], [(None, None)], np.array([1, 1, 0]))
    assert found["labels_right"] == 0.5
    assert found["labels_floor"] == 0.5
    assert found["labels_low"] < 0.5 < found["labels_high"]
    assert found["leak_auc"] is None


def test_leak_auc_is_the_best_layers_median_over_batches_with_both_classes():
    truth = np.array([0, 1, 0, 1, 1, 1])
    scores = np.array([[0.0, 1, 0, 1, 9, 9], [1.0, 0, 1, 0, 9, 9]])
    found = ordered_figures([(truth, truth)], [(scores, [2, 2, 2])], truth)
    assert found["leak_auc"] == 1.0
    assert ordered_figures([(truth, truth)], [(scores[1], [2, 2, 2])], truth)["leak_auc"] == 0.0


def test_no_guess_no_figure():
    assert ordered_figures([], [], np.array([0])) == {"labels_right": None}


@pytest.fixture(params=[("u-shaped", "body"), ({"name": "vanilla", "labels": "held"}, "peer:0")], ids=["u", "held"])
def run(request, tmp_path):
    strategy, vantage = request.param
    scenario = Scenario.parse({
        "world": "virtual", "peers": 1, "rounds": 4, "evaluate_every": 4, "strategy": strategy,
        "task": {"name": "digits", "limit": 100}, "training": {"batch": 10, "local_steps": 2},
        "transcript": {"keep": "all"},
    })  # fmt: skip
    run_scenario(Cast.prepare(scenario), tmp_path, lambda _: None)
    return tmp_path, vantage


def test_labels_are_inferred_and_scored_from_a_run(run):
    folder, vantage = run
    cast, ids = open_run(folder)
    found = audit(folder, cast, ids, Choice(name="split-labels"), vantage)
    assert found["guesses_made"] == 4
    assert found["labels_right"] == 1.0
    assert found["labels_floor"] < 0.5


def test_pictures_of_ones_own_are_no_guess(run):
    """Whoever lacks the labels of its own pictures still has the pictures."""
    folder, vantage = run
    cast, ids = open_run(folder)
    place = cast.vantage(vantage, ids)
    assert cast.blind(ids, place) == (place.controls if vantage == "peer:0" else frozenset())
