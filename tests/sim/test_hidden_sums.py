"""What groups that show only sums leave to see: for one member, for a coalition, and over many rounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilmesh.attacks.seen.observed import observe_updates
from veilmesh.attacks.seen.sums import group_sums, remaining
from veilmesh.attacks.view import View, observe
from veilmesh.core import LocalError, seed_number
from veilmesh.peer.transcript import read_transcript
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import own_data
from veilmesh.sim.scenario import Choice, Scenario
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.swarm.schedule import cohorts
from veilmesh.tasks.work import Train

RATE = 0.05
SCENARIO: dict[str, Any] = {
    "world": "virtual", "peers": 4, "rounds": 2, "evaluate_every": 2, "seed": 3, "task": "digits",
    "model": {"name": "mlp", "hidden": [32], "activation": "tanh"}, "transcript": {"keep": "all"},
    "strategy": {"name": "secure-groups", "group": 4}, "training": {"batch": 1, "learning_rate": RATE},
}  # fmt: skip


def ran(folder: Path, **changes: Any) -> Path:
    run_in_virtual_time(Cast.prepare(Scenario.parse({**SCENARIO, **changes})), folder, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("sums") / "run")


def seen(run: Path, places: str) -> tuple[Cast, View]:
    cast, ids = open_run(run)
    place = cast.vantage(places, ids)
    return cast, observe(place, read_transcript(run / "transcript"), cast.public(ids), own_data(cast, ids, place))


def updates(cast: Cast, view: View, round_: int, start: np.ndarray, members: list[int]) -> np.ndarray:
    return np.stack([cast.learner(i).run([Train(round_, start)])[0].update for i in members])


@pytest.mark.parametrize("places", ["peer:0", "peer:1+peer:3"])
def test_what_remains_of_a_sum_is_the_sum_of_the_others_updates(run: Path, places: str) -> None:
    cast, view = seen(run, places)
    others = [i for i, peer in enumerate(view.public.peers) if peer not in view.vantage.controls]
    found = list(remaining(view))
    assert [one.round for one in found] == [0, 1]
    for one in found:
        assert one.members == tuple(view.public.peers[i] for i in others)
        assert one.alike
        truth = updates(cast, view, one.round, one.start, others).sum(axis=0)
        np.testing.assert_allclose(one.total, truth, atol=1e-6)


def test_three_of_four_see_the_fourth(run: Path) -> None:
    cast, ids = open_run(run)
    row = audit(run, cast, ids, Choice(name="analytic"), "peer:0+peer:1+peer:2")
    assert row["psnr_median"] > 40


def test_one_of_four_sees_a_mixture_and_is_scored_on_all_it_is_made_of(run: Path) -> None:
    cast, ids = open_run(run)
    row = audit(run, cast, ids, Choice(name="analytic"), "peer:0")
    assert row["pictures"] == 6  # of three others, in two rounds
    assert row["psnr_median"] < 30
    [first, *_] = observe_updates(seen(run, "peer:0")[1])
    assert len(first.among) == 3


def test_nothing_is_left_to_see_on_the_wire(run: Path) -> None:
    assert group_sums(seen(run, "wire")[1]) == []


def test_where_an_adversary_cannot_make_its_own_part_again_nothing_is_guessed(run: Path) -> None:
    _, view = seen(run, "peer:0")
    assert list(remaining(replace(view, own=None))) == []
    assert list(remaining(replace(view, public=replace(view.public, local_steps=2)))) == []


def test_an_attack_is_not_given_the_data_of_others(run: Path) -> None:
    _, view = seen(run, "peer:0")
    assert view.own is not None
    view.own(view.public.peers[0], 0)
    with pytest.raises(LocalError):
        view.own(view.public.peers[1], 0)


def repetitive(folder: Path, **options: int) -> Path:
    """Twelve peers with one picture each, who say nearly the same in every round."""
    return ran(
        folder,
        peers=12,
        rounds=30,
        task={"name": "digits", "limit": 12},
        strategy={"name": "secure-groups", "group": 6, **options},
        training={"batch": 1, "learning_rate": 0.01},
    )


def test_groups_that_change_give_members_away_who_say_the_same_again_and_again(tmp_path: Path) -> None:
    """One picture a peer: three colluders of twelve have a member in most groups, and solve their sums together."""
    many = repetitive(tmp_path / "run")
    cast, ids = open_run(many)
    places = "peer:0+peer:1+peer:2"
    alone = audit(many, cast, ids, Choice(name="analytic"), places)
    together = audit(many, cast, ids, Choice(name="analytic", across=True), places)
    assert together["guessed"] >= 6
    assert together["gain_median"] > 10
    assert alone["gain_median"] < 3


def test_groups_of_cohorts_give_nobody_away(tmp_path: Path) -> None:
    """The same run and attack: three colluders, each of another cohort of three. Two of one cohort see the third."""
    many = repetitive(tmp_path / "run", cohort=3)
    cast, ids = open_run(many)
    divided = cohorts(seed_number(3, "public"), 12, 3)
    [first, second, third] = [cohort[0] for cohort in divided[:3]]
    apart = f"peer:{first}+peer:{second}+peer:{third}"
    together = audit(many, cast, ids, Choice(name="analytic", across=True), apart)
    assert together["guessed"] == 0
    assert group_sums(seen(many, apart)[1])
    mate, victim = divided[0][1:]
    most = audit(many, cast, ids, Choice(name="analytic", across=True), f"{apart}+peer:{mate}")
    assert {row["victim"] for row in most["guesses"]} == {cast.names[victim]}
