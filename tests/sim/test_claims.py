"""Claims: the whole of their little language, what it comes to, and that nothing in it is ever executed."""

from typing import Any

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput
from veilmesh.sim.claims import Claim, Verdict, judge


def cell(axes: dict[str, Any], attacks: tuple[dict[str, Any], ...] = (), **figures: Any) -> dict[str, Any]:
    return {"key": "k", "axes": axes, "summary": {**figures, "attacks": list(attacks)}}


def attack(name: str, psnr: float | None, vantage: str = "peer:3", **figures: Any) -> dict[str, Any]:
    return {"attack": name, "vantage": vantage, "psnr_best": psnr, **figures}


LABELS = {"attack": "labels", "vantage": "peer:3", "labels_right": 1.0}  # of pictures it says nothing

CELLS = [
    cell(
        {"arm": "swarm", "task": "faces"},
        (attack("cosine", 30.0, floors={"nearest": 12.5}, success={"20": 0.75}), LABELS),
        accuracy=0.9, finished=5, failed=None,
    ),
    cell({"arm": "star", "task": "faces"}, (attack("cosine", 29.5, "server"),), accuracy=0.8, finished=4),
    cell({"arm": "swarm", "task": "digits"}, (attack("analytic", 60.0),), accuracy=1.0, finished=5),
]  # fmt: skip

WIDTHS = [cell({"model.width": width}, seed=width, psnr=psnr) for width, psnr in ((16, 20.0), (4, 5.0), (8, 11.0))]


def check(text: str, cells: Any = CELLS) -> Verdict:
    return judge(Claim("it is so", text, "somebody 2020"), cells)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("1 < 2", True), ("1 > 2", False), ("2 >= 2", True), ("2 <= 1", False), ("2 == 2", True),
        ("1 + 2 * 3 - 4 / 2 == 5", True), ("-3 < -2", True), ("abs(1 - 3) == 2", True), ("abs(-2.5) == 2.5", True),
        ("best(accuracy) == 1", True), ("worst(accuracy) == 0.8", True), ("mean(accuracy) == 0.9", True),
        ("median(accuracy) == 0.9", True), ("spread(finished) == 1", True), ("count(accuracy) == 3", True),
        ("best(accuracy, arm='star') == 0.8", True), ("best(accuracy, arm='swarm', task='faces') == 0.9", True),
        ("best(psnr_best) == 60", True), ("count(psnr_best) == 3", True), ("worst(psnr_best) == 29.5", True),
        ("best(psnr_best, attack='cosine') == 30", True), ("best(psnr_best, vantage='server') == 29.5", True),
        ("best(psnr_best, attack='cosine', vantage='peer:3', task='faces') == 30", True),
        ("best(floors.nearest) == 12.5", True), ("best(success['20']) == 0.75", True),
        ("best(psnr_best, arm='swarm', task='faces') - best(psnr_best, arm='star') <= 1", True),
        ("best(psnr_best, arm='star') - best(psnr_best, arm='swarm', task='faces') > 0", False),
        ("best(accuracy, **{'arm': 'star'}) == 0.8", True), ("low(accuracy) < mean(accuracy)", True),
        ("high(accuracy) > mean(accuracy)", True), ("abs(high(finished) - mean(finished) - 1.434) < 1e-3", True),
        ("best(accuracy) / worst(accuracy) < 1.3", True),
    ],
)  # fmt: skip
def test_comparisons(text: str, holds: bool) -> None:
    assert check(text).holds is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("increasing(psnr, by='model.width')", True), ("decreasing(psnr, by='model.width')", False),
        ("increasing(psnr, by='model.width', seed=4)", None), ("increasing(nothing, by='model.width')", None),
        ("increasing(psnr, by='nothing')", None),
        ("best(psnr, **{'model.width': 8}) == 11", True),
        ("apart(psnr, by='model.width') == 15", True), ("2 * apart(psnr, by='model.width') < 30", False),
        ("apart(psnr, by='model.width', seed=4) < 5", None),
    ],
)  # fmt: skip
def test_trends(text: str, holds: bool | None) -> None:
    assert check(text, WIDTHS).holds is holds


def test_a_trend_that_stands_still_does_not_hold() -> None:
    cells = [cell({"n": n}, psnr=7.0) for n in (1, 2)]
    assert check("increasing(psnr, by='n')", cells).holds is False
    assert check("decreasing(psnr, by='n')", cells).holds is False


def test_a_trend_is_of_the_mean_at_every_value() -> None:
    cells = [cell({"n": n, "seed": s}, psnr=n * 10 + s) for n in (1, 2) for s in (0, 20)]
    verdict = check("increasing(psnr, by='n')", cells)
    assert verdict.holds
    assert verdict.got == "1: 20, 2: 30"
    assert verdict.wanted == "increasing with n"


def test_apart_is_of_the_mean_at_every_value_and_not_of_single_cells() -> None:
    cells = [cell({"n": n, "seed": s}, psnr=n * 10 + s) for n in (1, 2) for s in (0, 20)]
    assert check("apart(psnr, by='n') == 10", cells).holds is True
    assert check("spread(psnr) == 30", cells).holds is True


def test_a_trend_over_names_goes_in_the_studys_order() -> None:
    cells = [cell({"arm": arm}, psnr=psnr) for arm, psnr in (("zero", 0.0), ("a little", 1.0), ("much", 2.0))]
    assert check("increasing(psnr, by='arm')", cells).holds is True


def test_a_trend_over_tables_is_no_accident() -> None:
    cells = [cell({"codec": {"name": "top-k", "keep": keep}}, psnr=keep) for keep in (0.1, 0.2)]
    assert check("increasing(psnr, by='codec')", cells).holds is True


def test_a_trend_with_a_hole_in_it_is_not_run() -> None:
    cells = [*WIDTHS, cell({"model.width": 32}, psnr=None)]
    verdict = check("increasing(psnr, by='model.width')", cells)
    assert verdict.holds is None
    assert verdict.got == "not run: 32 has no psnr"


@pytest.mark.parametrize("term", ["best", "worst", "mean", "median", "spread", "count", "low", "high"])
def test_a_run_that_lacks_the_figure_is_not_passed_over(term: str) -> None:
    """Three seeds of which one fell apart: what the other two say is not what was claimed."""
    cells = [cell({"seed": seed}, accuracy=value) for seed, value in ((0, 0.95), (1, None), (2, 0.96))]
    verdict = check(f"{term}(accuracy) >= 0", cells)
    assert verdict.holds is None
    assert verdict.got == "not run: 1 has no accuracy"


def test_an_attack_that_saw_nothing_is_not_passed_over() -> None:
    cells = [cell({"arm": "swarm"}, (attack("cosine", 30.0), attack("cosine", None)))]
    assert check("best(psnr_best) <= 31", cells).holds is None
    assert check("best(psnr_best, attack='cosine') <= 31", cells).holds is None


@pytest.mark.parametrize("term", ["best", "worst", "mean", "median", "spread", "count", "low", "high"])
@pytest.mark.parametrize("sign", [">=", "<=", "<", ">", "=="])
@pytest.mark.parametrize("at", [0, 1])
def test_what_is_not_a_number_never_holds(term: str, sign: str, at: int) -> None:
    values = [1.0, 1.0]
    values[at] = float("nan")
    cells = [cell({"seed": seed}, psnr=value) for seed, value in enumerate(values)]
    assert check(f"{term}(psnr) {sign} 1", cells).holds is False
    assert check(f"abs({term}(psnr) - 1) {sign} 0", cells).holds is False
    assert check("increasing(psnr, by='seed')", cells).holds is False


def test_bounds_are_of_the_mean_over_cells_and_a_cell_counts_once() -> None:
    """Two attacks on one run share its seed: they are no two runs."""
    pairs = [(1.0, 3.0), (3.0, 3.0), (4.0, 4.0)]
    cells = [cell({"seed": s}, (attack("a", x), attack("b", y))) for s, (x, y) in enumerate(pairs)]
    low, high = (float(check(f"{end}(psnr_best) < 0", cells).got) for end in ("low", "high"))
    assert (low, high) == pytest.approx((3 - 4.302653 / 3**0.5, 3 + 4.302653 / 3**0.5), abs=2e-3)


def test_one_cell_has_no_bounds() -> None:
    verdict = check("low(accuracy, arm='star') > 0.5")
    assert verdict.holds is None
    assert verdict.got == "not run: low of accuracy needs two cells or more, and there are 1"


def test_a_claim_says_how_it_chooses_cells() -> None:
    claim = Claim(
        "x", "best(psnr, arm='swarm', **{'model.width': 8}) - worst(psnr) >= abs(mean(psnr, attack='cosine'))"
    )
    assert claim.places() == [{"arm": "swarm", "model.width": 8}, {"attack": "cosine"}]


def test_a_verdict_says_what_was_wanted_and_what_came_out() -> None:
    verdict = check("best(accuracy, arm='star') >= 0.9")
    assert verdict == Verdict("it is so", "somebody 2020", ">= 0.9", "0.8", False)


@pytest.mark.parametrize(
    "text",
    [
        "best(nothing) > 1", "best(accuracy, arm='other') > 1", "best(accuracy, other='swarm') > 1",
        "best(psnr_best, attack='other') > 1", "best(failed) > 1", "best(floors.farthest) > 1",
        "best(accuracy.of.what) > 1", "best(psnr_best, attack='labels') > 1", "1 < best(nothing)",
        "best(arm) > 0", "low(accuracy, arm='star') > 0", "high(psnr_best, task='digits') > 0", "low(nothing) < 1",
    ],
)  # fmt: skip
def test_a_figure_that_nothing_has_is_not_run(text: str) -> None:
    verdict = check(text)
    assert verdict.holds is None
    assert verdict.got.startswith("not run: ")
    assert verdict.wanted == text


def test_dividing_by_zero_is_not_run() -> None:
    assert check("1 / (best(accuracy) - 1) > 0").holds is None


def test_no_cells_at_all_are_not_run() -> None:
    assert check("best(accuracy) > 0", []).holds is None
    assert check("increasing(accuracy, by='n')", []).holds is None


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "best(accuracy)", "best(accuracy) >", "a b", "x = 3", "1 < 2 < 3", "best(accuracy) != 1",
        "1 in best(accuracy)", "not 1 < 2", "1 < 2 and 2 < 3", "accuracy > 1", "'a' < 'b'", "1 ** 2 > 0", "7 % 2 > 0",
        "7 // 2 > 0", "+1 > 0", "~1 < 0", "1j < 2", "None < 1", "[1] < 2", "(lambda: 1)() > 0", "f'{1}' > 0",
        "__import__('os')", "__import__('os') > 1", "__import__('os').getpid() > 0", "best(__import__('os')) > 0",
        "best(accuracy, arm=__import__('os')) > 0", "best(accuracy, **__import__('os')) > 0", "best(accuracy)() > 0",
        "best(accuracy, arm=swarm) > 0", "best(accuracy, **{'arm': swarm}) > 0", "best(accuracy, **3) > 0",
        "best(accuracy, finished) > 0", "best() > 0", "best(*accuracy) > 0", "best(1) > 0", "best('accuracy') > 0",
        "best(floors[0]) > 0", "best(floors[x]) > 0", "abs() > 0", "abs(1, 2) > 0", "abs(x=1) > 0", "abs(accuracy) > 0",
        "max(accuracy) > 0", "eval('1') > 0", "print(1) < 2", "getattr(accuracy, 'x') > 0",
        "low(1) > 0", "high() > 0", "low(accuracy, finished) > 0",
        "apart(accuracy) > 0", "apart(accuracy, by='arm')", "apart(1, by='arm') > 0", "apart(by='arm') > 0",
        "increasing(accuracy)", "increasing(by='arm')", "increasing(accuracy, finished, by='arm')",
        "increasing(accuracy, by=arm)", "increasing(1, by='arm')", "increasing(accuracy, by='arm') > 0",
        "increasing(accuracy, by='arm') == increasing(finished, by='arm')", "rising(accuracy, by='arm')",
        "(1 < 2) < 3", "best(accuracy) > (x := 3)", "\0", "1 < \0", "\ud800 < 1", "9" * 5000 + " > 1",
    ],
)  # fmt: skip
def test_what_is_not_of_the_language_is_refused_before_anything_is_run(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Claim("it is so", text).tree()
    assert str(caught.value).endswith(".")
    with pytest.raises(BadInput):
        check(text)


def test_nothing_is_executed(tmp_path) -> None:
    mark = tmp_path / "mark"
    for term in (f"open({str(mark)!r}, 'w')", f"__import__('pathlib').Path({str(mark)!r}).touch()"):
        for text in (
            f"{term} > 0",
            f"best({term}) > 0",
            f"best(accuracy, arm={term}) > 0",
            f"increasing({term}, by='x')",
        ):
            with pytest.raises(BadInput):
                check(text)
    assert not mark.exists()


WORDS = [
    "best",
    "increasing",
    "(",
    ")",
    "accuracy",
    ",",
    "by",
    "=",
    "'arm'",
    "<",
    ">=",
    "1",
    "-",
    "/",
    ".",
    "**",
    "{",
    "}",
]


@settings(max_examples=examples(150), deadline=None)
@given(st.text(max_size=20) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join))
@example("best (accuracy, **{}) < 1")
def test_any_text_is_a_verdict_or_a_sentence(text: str) -> None:
    try:
        verdict = check(text)
    except BadInput:
        return
    assert verdict.holds in (True, False, None)
