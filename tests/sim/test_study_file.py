"""Study files: what they expand to, what they refuse before anything is run, and what makes a cell the same cell."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from veilmesh.core import BadInput
from veilmesh.sim.study import Study, find_studies

HEAD = {"study": {"title": "A study"}, "scenario": {"world": "virtual", "adversary": {"vantage": "peer:0"}}}


def study(tmp_path: Path, **parts: Any) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps({**HEAD, **parts}))
    return Study.read(path)


def refusal(tmp_path: Path, **parts: Any) -> str:
    """Refused when it is read, or when its cells are asked for: before anything is run, either way."""
    with pytest.raises(BadInput) as caught:
        study(tmp_path, **parts).cells()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- axes ----------------------------------------------------------------------------------------------------------


def test_a_study_without_axes_is_one_cell(tmp_path: Path) -> None:
    [cell] = study(tmp_path).cells()
    assert cell.axes == {}
    assert cell.name == "the run"
    assert cell.scenario.world == "virtual"


def test_axes_are_multiplied_in_the_files_order(tmp_path: Path) -> None:
    cells = study(tmp_path, axes={"peers": [2, 3], "codec": ["dense", "8-bit"]}).cells()
    assert [(c.scenario.peers, c.scenario.codec.name) for c in cells] == [
        (2, "dense"), (2, "8-bit"), (3, "dense"), (3, "8-bit"),
    ]  # fmt: skip
    assert cells[1].axes == {"peers": 2, "codec": "8-bit"}
    assert cells[1].name == "2, 8-bit"


def test_named_arms_move_several_fields_together(tmp_path: Path) -> None:
    arms = {
        "swarm": {"strategy": "gossip", "rounds": 9},
        "star": {"strategy": "fedsgd", "adversary.vantage": "server"},
    }
    swarm, star = study(tmp_path, axes={"arm": arms}).cells()
    assert (swarm.axes, swarm.scenario.strategy.name, swarm.scenario.rounds) == ({"arm": "swarm"}, "gossip", 9)
    assert (star.axes, star.scenario.strategy.name, star.scenario.adversary.vantage) == (
        {"arm": "star"}, "fedsgd", "server",
    )  # fmt: skip


def test_an_option_on_one_axis_outlives_a_name_on_another(tmp_path: Path) -> None:
    cells = study(tmp_path, axes={"codec.keep": [0.1, 0.2], "codec.name": ["top-k"]}).cells()
    assert [c.scenario.codec.options for c in cells] == [{"keep": 0.1}, {"keep": 0.2}]


def test_a_table_can_be_a_value(tmp_path: Path) -> None:
    cells = study(tmp_path, axes={"codec": ["dense", {"name": "top-k", "keep": 0.5}]}).cells()
    assert [c.scenario.codec.options for c in cells] == [{}, {"keep": 0.5}]
    assert len({c.key for c in cells}) == 2


def test_cells_are_titled_by_their_place_unless_they_have_a_title(tmp_path: Path) -> None:
    assert [c.scenario.title for c in study(tmp_path, axes={"peers": [2, 3]}).cells()] == ["2", "3"]
    named = {**HEAD["scenario"], "title": "mine"}
    assert [c.scenario.title for c in study(tmp_path, scenario=named, axes={"peers": [2]}).cells()] == ["mine"]


# --- the quick form ------------------------------------------------------------------------------------------------


def test_the_quick_form_is_smaller_and_nothing_else(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        axes={"peers": [4, 8], "codec": ["dense"]},
        quick={"scenario": {"rounds": 2}, "axes": {"peers": [4]}},
    )
    assert [(c.scenario.peers, c.scenario.rounds) for c in found.cells()] == [(4, 100), (8, 100)]
    [quick] = found.cells(quick=True)
    assert (quick.scenario.peers, quick.scenario.rounds, quick.axes) == (4, 2, {"peers": 4, "codec": "dense"})


def test_the_quick_form_says_its_size(tmp_path: Path) -> None:
    arms = {"a": {"rounds": 9}, "b": {"rounds": 20}}
    found = study(
        tmp_path, axes={"peers": [4, 8], "arm": arms}, quick={"scenario": {"rounds": 2}, "axes": {"peers": [4]}}
    )
    assert found.size() == "2 runs (of 4), peers 4 (of 4, 8)"  # the arms say their own rounds
    assert study(tmp_path).size() == "1 runs, nothing smaller"
    smaller = study(tmp_path, quick={"scenario": {"rounds": 2}})
    assert smaller.size() == "1 runs, rounds 2 (of 100)"


def test_a_place_that_only_one_form_has_may_be_named(tmp_path: Path) -> None:
    claims = [{"says": "x", "check": f"best(accuracy, peers={n}) > 0"} for n in (4, 8)]
    attacks = [{"name": "analytic", "where": {"peers": [4, 8]}}]
    found = study(tmp_path, axes={"peers": [8]}, quick={"axes": {"peers": [4]}}, claims=claims, attacks=attacks)
    assert [len(found.cells(quick)[0].attacks) for quick in (False, True)] == [1, 1]


# --- with --set ----------------------------------------------------------------------------------------------------


def test_what_is_set_is_set_in_every_cell_of_both_forms(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        scenario={**HEAD["scenario"], "task": {"name": "photos", "side": 128}, "rounds": 9},
        axes={"peers": [2, 3], "task.limit": [50]},
        quick={"scenario": {"rounds": 2, "task": {"name": "photos", "side": 64}}},
    ).changing({"task.path": "there", "task.name": "cifar10", "rounds": 4})
    for quick in (False, True):
        cells = found.cells(quick)
        assert [(c.scenario.peers, c.scenario.rounds, c.scenario.task.name) for c in cells] == [
            (2, 4, "cifar10"), (3, 4, "cifar10"),
        ]  # fmt: skip
        assert all(c.scenario.task.options == {"path": "there", "limit": 50} for c in cells)
    assert found.changed == {"task.path": "there", "task.name": "cifar10", "rounds": 4}
    assert found.changing({"rounds": 5}).changed == {"task.path": "there", "task.name": "cifar10", "rounds": 5}


@pytest.mark.parametrize(
    ("axes", "change"),
    [
        ({"peers": [2]}, "peers"),
        ({"task": ["digits"]}, "task.name"),
        ({"task": ["digits"]}, "task.limit"),
        ({"task.name": ["digits"]}, "task.limit"),
        ({"training.batch": [2]}, "training"),
        ({"arm": {"a": {"model.width": 8}, "b": {}}}, "model.width"),
    ],
)
def test_what_an_axis_says_cannot_be_set(tmp_path: Path, axes: dict[str, Any], change: str) -> None:
    for parts in ({"axes": axes}, {"quick": {"axes": axes}}):
        with pytest.raises(BadInput, match="cannot be set"):
            study(tmp_path, **parts).changing({change: 3})


def test_nothing_set_changes_nothing(tmp_path: Path) -> None:
    found = study(tmp_path, axes={"peers": [2, 3]})
    assert [c.key for c in found.changing({}).cells()] == [c.key for c in found.cells()]
    assert found.changing({}).changed == {}


# --- attacks -------------------------------------------------------------------------------------------------------


def test_where_chooses_the_cells_of_an_attack(tmp_path: Path) -> None:
    attacks = [
        {"name": "label-recovery"},
        {"name": "analytic", "where": {"peers": [2]}},
        {"name": "cosine-inversion", "iterations": 7, "vantage": "wire", "where": {"peers": 3, "codec": "dense"}},
    ]
    kept = {"scenario": {**HEAD["scenario"], "transcript": {"keep": "all"}}}
    cells = study(tmp_path, axes={"peers": [2, 3], "codec": ["dense", "8-bit"]}, attacks=attacks, **kept).cells()
    assert [[a.attack.name for a in c.attacks] for c in cells] == [
        ["label-recovery", "analytic"], ["label-recovery", "analytic"], ["label-recovery", "cosine-inversion"],
        ["label-recovery"],
    ]  # fmt: skip
    last = cells[2].attacks[1]
    assert (last.attack.options, last.vantage) == ({"iterations": 7}, "wire")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"name": "nosuch"}, "'nosuch'"),
        ({"name": "analytic", "nosuch": 1}, "'nosuch'"),
        ({"name": "analytic", "targets": "many"}, "targets"),
        ({"name": "analytic", "where": {"nosuch": 1}}, "'nosuch'"),
        ({"name": "analytic", "where": {"peers": 3}}, "'3'"),
        ({"name": "analytic", "where": {"peers": [2, 3]}}, "'3'"),
        ({"name": "analytic", "vantage": "peer:1"}, "would not be kept"),
        ({"name": "analytic", "vantage": "wire"}, "would not be kept"),
        ({"where": {}}, "name"),
        ({"name": "analytic", "where": 3}, "where"),
    ],
)
def test_an_attack_that_cannot_be_made_is_refused(tmp_path: Path, attack: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, axes={"peers": [2]}, attacks=[attack])


def test_an_attack_needs_a_vantage(tmp_path: Path) -> None:
    bare = {"world": "virtual"}
    assert "vantage" in refusal(tmp_path, scenario=bare, attacks=[{"name": "analytic"}])
    kept = {**bare, "transcript": {"keep": "all"}}
    [cell] = study(tmp_path, scenario=kept, attacks=[{"name": "analytic", "vantage": "wire"}]).cells()
    assert cell.attacks[0].vantage == "wire"


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"axes": {"peers": []}}, "no values"),
        ({"axes": {"arm": {}}}, "no values"),
        ({"axes": {"nosuch": [1]}}, "'nosuch'"),
        ({"axes": {"training.lr": [1]}}, "learning_rate"),
        ({"axes": {"peers": [0]}}, "peers"),
        ({"axes": {"peers": 3}}, "axes"),
        ({"axes": {"peers.x": [3]}, "scenario": {"peers": 3}}, "peers.x"),
        ({"axes": {"arm": {"a": 3}}}, "axes"),
        ({"axes": {"arm": {"a": {"nosuch": 1}}}}, "'nosuch'"),
        ({"scenario": {"nosuch": 1}}, "'nosuch'"),
        ({"study": {}}, "title"),
        ({"study": {"title": "x", "nosuch": 1}}, "nosuch"),
        ({"nosuch": {}}, "nosuch"),
        ({"claims": [{"says": "x"}]}, "check"),
        ({"claims": [{"says": "x", "check": "best(accuracy)"}]}, "comparison"),
        ({"claims": [{"says": "x", "check": "best(accuracy) >"}]}, "cannot be read"),
        ({"claims": [{"says": "x", "check": "rising(accuracy) > 1"}]}, "rising"),
        ({"quick": {"nosuch": 1}}, "nosuch"),
        ({"claims": [{"says": "x", "check": "best(accuracy, arm='swarm') > 1"}]}, "'arm'"),
        ({"axes": {"peers": [2]}, "claims": [{"says": "x", "check": "best(accuracy, peers=3) > 1"}]}, "'3'"),
        ({"claims": [{"says": "x", "check": "increasing(accuracy, by='peers')"}]}, "'peers'"),
        ({"claims": [{"says": "x", "check": "best(psnr_best, attack='analytic') > 1"}]}, "'analytic'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_run(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, **parts)


def test_a_file_that_is_missing_or_broken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('[study]\ntitle = "open')
    for name, words in {"broken.toml": "TOML", "nothing.toml": "no file"}.items():
        with pytest.raises(BadInput, match=words):
            Study.read(tmp_path / name)


OURS = sorted((Path(__file__).parents[2] / "studies").rglob("*.toml"))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_study_that_comes_with_the_program_can_be_run_as_far_as_reading_it_shows(path: Path) -> None:
    study = Study.read(path)
    assert study.claims
    quick = study.cells(quick=True)
    assert 0 < len(quick) <= len(study.cells())


def test_studies_are_found_in_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no study"):
        find_studies(tmp_path)
    with pytest.raises(BadInput, match="There is no study"):
        find_studies(tmp_path / "nothing.toml")
    (tmp_path / "deep").mkdir()
    for name in ("b.toml", "deep/a.toml"):
        (tmp_path / name).write_text("")
    assert [p.name for p in find_studies(tmp_path)] == ["b.toml", "a.toml"]
    assert find_studies(tmp_path / "b.toml") == [tmp_path / "b.toml"]


# --- keys ----------------------------------------------------------------------------------------------------------


def key(tmp_path: Path, **parts: Any) -> str:
    [cell] = study(tmp_path, **parts).cells()
    return cell.key


def test_a_cell_keeps_its_key(tmp_path: Path) -> None:
    parts = {"axes": {"codec": [{"name": "top-k", "keep": 0.25}]}, "attacks": [{"name": "analytic"}]}
    assert key(tmp_path, **parts) == key(tmp_path, **parts)
    written_otherwise = {**parts, "scenario": dict(reversed(HEAD["scenario"].items()))}
    assert key(tmp_path, **parts) == key(tmp_path, **written_otherwise)


def test_claims_and_titles_of_the_study_do_not_change_a_key(tmp_path: Path) -> None:
    claims = [{"says": "x", "check": "best(accuracy) > 0"}]
    assert key(tmp_path) == key(tmp_path, claims=claims, study={"title": "Another"})


@pytest.mark.parametrize(
    "parts",
    [
        {"scenario": {**HEAD["scenario"], "seed": 1}},
        {"scenario": {**HEAD["scenario"], "guards": ["clip"]}},
        {"scenario": {**HEAD["scenario"], "adversary": {"vantage": "peer:1"}}},
        {"scenario": {**HEAD["scenario"], "task": {"name": "digits", "seed": 3}}},
        {"attacks": [{"name": "analytic"}]},
        {"attacks": [{"name": "analytic", "targets": 3}]},
        {"attacks": [{"name": "analytic", "vantage": "peer:0"}]},
    ],
)
def test_whatever_a_result_depends_on_changes_the_key(tmp_path: Path, parts: dict[str, Any]) -> None:
    assert key(tmp_path, **parts) != key(tmp_path)


def test_other_files_under_the_same_path_change_the_key(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(b"one")
    parts = {"scenario": {**HEAD["scenario"], "task": {"name": "image-folder", "path": str(data)}}}
    before = key(tmp_path, **parts)
    assert key(tmp_path, **parts) == before
    (data / "a.png").write_bytes(b"another")
    changed = key(tmp_path, **parts)
    (data / "b.png").write_bytes(b"more")
    assert len({before, changed, key(tmp_path, **parts)}) == 3


def test_keys_are_names_of_folders(tmp_path: Path) -> None:
    [cell] = study(tmp_path, axes={"title": ["../../etc: a/b\\c é" + "x" * 200]}).cells()
    assert len(cell.key) < 100
    assert "/" not in cell.key
    assert "\\" not in cell.key
    assert "\0" not in cell.key
