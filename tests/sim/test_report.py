"""The report of a run and of a study: what stands in it, what it refuses, and what it does not let through."""

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_folders import run_folder, study_folder, write
from rich.console import Console

from veilmesh.core import BadInput
from veilmesh.sim.report import claims_table, summary_table, write_report
from veilmesh.sim.report.charts import line_chart
from veilmesh.sim.report.curves import MOST_POINTS, Point, Series, loss
from veilmesh.sim.report.gallery import chosen
from veilmesh.sim.report.load import cleaned, inside, read_report
from veilmesh.sim.report.mesh import mesh_drawing
from veilmesh.sim.report.model import Adversary, Attacked, Guessed, Metric, Peer, Run, Summary
from veilmesh.sim.report.numbers import amount, described, duration
from veilmesh.sim.report.pictures import embedded
from veilmesh.sim.report.rows import position
from veilmesh.sim.report.scales import ticks
from veilmesh.sim.report.sections import endings, refusals
from veilmesh.sim.report.sections import settings as settings_of
from veilmesh.sim.report.table import scores_table

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&\u202eevil\x00'


class Page(HTMLParser):
    """The elements of a page, its text, and the exact figures it holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> set[float]:
        return {float(data["value"] or "nan") for data in self.all("data")}


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_study_shows_its_claims_with_what_was_wanted_and_got(tmp_path: Path) -> None:
    page = page_of(study_folder(tmp_path))
    assert "claims: 1 hold, 1 fail, 1 not run" in page.text
    assert [claim["class"] for claim in page.all("li") if "claim" in (claim.get("class") or "")] == [
        "claim holds",
        "claim fails",
        "claim not-run",
    ]
    assert "wanted >= 10 dB got 18.2 dB Geiping et al. 2020" in page.text
    assert "quick form" in page.text


def test_the_figures_in_the_page_are_those_of_the_json(tmp_path: Path) -> None:
    page = page_of(study_folder(tmp_path))
    cells = json.loads((tmp_path / "summary.json").read_text())["cells"]
    for summary in (cell["summary"] for cell in cells):
        for name in ("accuracy", "bytes_per_peer_round", "seconds"):
            assert summary[name] in page.figures
        for attack in summary["attacks"]:
            for name in (
                "psnr_best",
                "psnr_median",
                "ssim_best",
                "ssim_median",
                "floor_best",
                "gain_best",
                "gain_median",
            ):
                assert attack[name] in page.figures
            assert set(attack["floors"].values()) <= page.figures


def test_the_page_is_one_file_that_refers_to_nothing_outside(tmp_path: Path) -> None:
    text = write_report(study_folder(tmp_path)).read_text(encoding="utf-8")
    page = Page(text)
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link and link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert not page.all("iframe")


def test_pictures_have_alternative_texts_and_tables_captions(tmp_path: Path) -> None:
    page = page_of(study_folder(tmp_path))
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    drawings = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert drawings
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    study_folder(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_a_single_run_needs_no_study(tmp_path: Path) -> None:
    run_folder(tmp_path, "star", "digits")
    page = page_of(tmp_path)
    assert "star on digits" in page.text
    assert "the server" in page.text
    assert "Verdicts" not in page.text
    assert len(page.all("img")) == 4 * 3 + 5 * 2  # four large triples, and every guess beside its truth


@pytest.mark.parametrize(
    "missing", ["attacks", "peers", "edges", "adversary", "protections", "codec", "accuracy", "task", "title"]
)
def test_any_part_of_a_summary_may_be_missing(tmp_path: Path, missing: str) -> None:
    summary = run_folder(tmp_path)
    del summary[missing]
    write(tmp_path / "summary.json", summary)
    assert page_of(tmp_path).all("h1")


def test_an_empty_summary_is_still_a_page(tmp_path: Path) -> None:
    write(tmp_path / "summary.json", {})
    page = page_of(tmp_path)
    assert tmp_path.name in page.text
    assert not page.all("img")


def test_nulls_and_missing_files_are_shown_as_nothing(tmp_path: Path) -> None:
    summary = run_folder(tmp_path)
    for attack in summary["attacks"]:
        attack.update(psnr_best=None, gain_best=float("nan"), guesses=attack["guesses"][:2])
        attack["guesses"][0].update(psnr=None, truth="pictures/gone.png")
    write(tmp_path / "summary.json", summary)
    (tmp_path / "metrics.jsonl").unlink()
    page = page_of(tmp_path)
    assert "not kept" in page.text
    assert "Learning curves" not in page.text


def test_a_cell_without_a_result_says_so(tmp_path: Path) -> None:
    study_folder(tmp_path)
    study = json.loads((tmp_path / "summary.json").read_text())
    study["cells"].append({"key": "late", "axes": {"arm": "late", "task": "faces"}, "summary": None})
    study["cells"].append({"key": "../../etc", "axes": {"arm": "odd", "task": "faces"}})
    write(tmp_path / "summary.json", study)
    assert "late · faces left no result." in page_of(tmp_path).text


def test_a_cell_whose_summary_is_only_in_its_folder_is_read_from_there(tmp_path: Path) -> None:
    study_folder(tmp_path)
    study = json.loads((tmp_path / "summary.json").read_text())
    figures = page_of(tmp_path).figures
    for cell in study["cells"]:
        del cell["summary"]
    write(tmp_path / "summary.json", study)
    assert page_of(tmp_path).figures == figures


def test_a_cut_off_line_is_skipped_and_counted(tmp_path: Path) -> None:
    run_folder(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"t": 3.0, "peer": 1, "rou')
    assert "1 line of metrics or events could not be read" in page_of(tmp_path).text


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"x"', '{"peers": 3}', '{"accuracy": "high"}', '{"cells": [{"axes": 1}]}', "[" * 100_000]
)
def test_a_broken_summary_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(BadInput, match=r"summary\.json") as refused:
        write_report(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no summary.json"):
        write_report(tmp_path / "nowhere")


def poisoned(value: Any) -> Any:
    """The same JSON with every string in it replaced by a hostile one, names of files, worlds and axes included."""
    if isinstance(value, dict):
        changed = {key: poisoned(item) for key, item in value.items()}
        numbers = all(isinstance(item, int | float) for item in value.values())
        return {EVIL: 1 if numbers else EVIL, **changed}  # hostile names too: of axes, protections, refusals, floors
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    study_folder(tmp_path)
    honest = page_of(tmp_path)
    for place in tmp_path.rglob("*.json"):
        write(place, poisoned(json.loads(place.read_text())))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "alert(1)" in page.text
    assert "<script>alert" not in text
    assert len(page.all("script")) == len(honest.all("script")) == 1
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert "\u202e" not in text
    assert "\x00" not in text


def test_a_picture_outside_the_run_is_never_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", "\x00", "a" * 5000):
        assert inside(run, name) is None
        assert embedded(run, name) is None


def test_pictures_that_are_none_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert embedded(tmp_path, "text.png") is None
    assert embedded(tmp_path, "cut.png") is None
    shrunk = embedded(tmp_path, "large.png")
    assert shrunk is not None
    assert (shrunk.width, shrunk.height) == (512, 256)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
@settings(max_examples=examples(30), deadline=None)
def test_cleaning_leaves_no_null_in_a_mapping_and_nothing_unprintable(value: object) -> None:
    def check(part: object) -> None:
        if isinstance(part, dict):
            assert all(key.isprintable() and item is not None for key, item in part.items())
            [check(item) for item in part.values()]
        elif isinstance(part, list):
            [check(item) for item in part]
        elif isinstance(part, str):
            assert part.isprintable()

    check(cleaned(value))
    assert cleaned(cleaned(value)) == cleaned(value)


def test_best_median_worst_and_the_attackers_own_pick() -> None:
    guesses = [Guessed(psnr=psnr, loss=abs(psnr - 20.0)) for psnr in (12.0, 31.0, 20.0, 25.0, 15.0)]
    picked = [(labels, guess.psnr) for labels, guess in chosen(guesses)]
    assert picked == [
        (("Best of 5",), 31.0),
        (("Median of 5", "Lowest attacker loss"), 20.0),
        (("Worst of 5",), 12.0),
    ]


def test_tied_losses_are_no_pick_and_two_guesses_have_no_median() -> None:
    assert [labels for labels, _ in chosen([Guessed(psnr=1.0, loss=0.0), Guessed(psnr=2.0, loss=0.0)])] == [
        ("Best of 2",),
        ("Worst of 2",),
    ]
    assert [labels for labels, _ in chosen([Guessed(psnr=1.0, loss=0.0)])] == [("The only one",)]
    assert chosen([]) == []


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_what_they_measure(low: float, span: float) -> None:
    high = low + span
    marks = ticks(low, high)
    tolerance = 1e-6 * max(1.0, abs(low), abs(high))
    assert marks[0] <= low + tolerance
    assert marks[-1] >= high - tolerance
    assert 2 <= len(marks) <= 8
    assert marks == sorted(marks)


def test_ticks_of_a_single_value_and_of_rounds() -> None:
    assert len(ticks(0.9, 0.9)) >= 2
    assert ticks(0, 3, 6, whole=True) == [0, 1, 2, 3]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    metrics = tuple(Metric(peer, at, loss=float(at)) for at in range(1000) for peer in range(2))
    series = loss(Run("run", "run", Path(), None, metrics))
    assert series is not None
    assert len(series.points) <= MOST_POINTS
    assert series.points[-1].x == 999
    assert series.every == 7


def test_a_chart_of_one_point_and_its_legend() -> None:
    chart = line_chart("Test accuracy", [Series("<b>", (Point(3, 0.5, 0.4, 0.6),))], shares=True)
    assert "&lt;b&gt;" in chart.legend
    assert "50.0" in chart.legend
    assert "nan" not in chart.svg.lower()


def test_the_mesh_marks_the_malicious_the_server_and_the_lost() -> None:
    peers = (Peer(0, "peer:0", ended="killed"), Peer(1, "peer:1"), Peer(2, "hub", role="server"))
    drawing = mesh_drawing("star", Summary(peers=peers, edges=((0, 2), (1, 2)), adversary=Adversary("hub", (2,), True)))
    assert drawing is not None
    assert 'class="peer server malicious" data-peer="2"' in drawing
    assert 'class="peer lost" data-peer="0"' in drawing
    assert drawing.count('class="edge heard"') == 2
    assert "malicious: hub" in drawing
    assert "every link is tapped" in drawing


def test_a_mesh_known_only_by_its_edges_and_one_not_known_at_all() -> None:
    drawing = mesh_drawing("run", Summary(edges=((0, 1), (1, 2))))
    assert drawing is not None
    assert drawing.count("data-peer") == 3
    assert mesh_drawing("run", Summary()) is None


def test_positions_in_words() -> None:
    peers = (Peer(0, "peer:0"), Peer(1, "peer:1"), Peer(2, "server", role="server"))
    edges = ((0, 1), (0, 2), (1, 2))
    assert (
        position(Summary(peers=peers, edges=edges, adversary=Adversary("peer:1", (1,))), None)
        == "peer:1, neighbour of 2"
    )
    assert position(Summary(peers=peers, edges=edges, adversary=Adversary("server", (2,))), None) == "the server"
    assert position(Summary(adversary=Adversary("wire", (), True)), None) == "wire, tapping every link"
    assert position(Summary(), None) == ""
    several = Attacked("analytic", vantage="peer:0+peer:1+peer:2+peer:3")
    assert position(Summary(peers=peers, edges=edges), several) == "4 who collude: peer:0, ..., peer:3"
    tapped = Summary(peers=peers, edges=edges, adversary=Adversary("peer:1", (1,)))
    assert position(tapped, Attacked("analytic", vantage="wire")) == "wire, tapping every link"


def test_refusals_endings_and_settings(tmp_path: Path) -> None:
    report = read_report(study_folder(tmp_path))
    table, clean = refusals(report.runs)
    assert table is not None
    assert table.head == ("Run", "bad-seal", "replay", "total")
    assert table.rows[0] == ("swarm · faces", "2", "1", "3")
    assert clean == ("star · faces", "star · digits")
    assert endings(report.runs[0]) == "4 finished; 1 killed (peer:4)"
    differ, common = settings_of(report.runs)
    assert differ is not None
    assert [row[0] for row in differ.rows] == ["task.name", "strategy.name"]
    assert common is not None
    assert ("peers", "5") in common.rows


def test_figures_as_people_read_them() -> None:
    assert [amount(value).replace("\u202f", " ") for value in (0, 999, 999.6, 48211.4, 1e13)] == [
        "0 B",
        "999 B",
        "1 kB",
        "48.2 kB",
        "10 TB",
    ]
    assert duration(214.5).replace("\u202f", " ") == "3 min 34 s"
    assert described({"name": "topk", "ratio": 0.1}) == "topk (ratio 0.1)"
    assert described(None) == "–"


def shown(table: object) -> str:
    out = StringIO()
    Console(width=220, file=out).print(table)
    return out.getvalue()


def test_the_table_for_the_terminal_has_the_same_figures(tmp_path: Path) -> None:
    study = json.loads((study_folder(tmp_path) / "summary.json").read_text())
    text = shown(summary_table(study["cells"]))
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if "star · faces" in line)
    line = lines[place] + lines[place + 1]  # the run and its cost, then the attack on it
    for words in ("the server", "cosine-inversion", "31.9", "14.0", "+17.9", "0.93", "94.7", "48.2"):
        assert words in line
    runs = shown(summary_table([cell["summary"] for cell in study["cells"]]))
    assert "star on faces" in runs


def test_runs_of_the_same_name_keep_their_own_figures(tmp_path: Path) -> None:
    both = [{"title": "run", "accuracy": 0.5}, None, {"title": "run", "accuracy": 0.25}]
    assert all(words in shown(summary_table(both)) for words in ("50.0", "25.0"))
    cells = [{"key": f"k{i}", "axes": {"arm": "a"}, "summary": {"accuracy": 0.5 + i / 8}} for i in range(2)]
    write(tmp_path / "summary.json", {"cells": cells})
    page = page_of(tmp_path)
    assert {0.5, 0.625} <= page.figures
    assert "a (k1)" in page.text


def test_the_terminal_tables_never_read_markup() -> None:
    text = shown(summary_table([{"title": "[red]x[/red]", "attacks": [{"attack": "[/nonsense]"}]}]))
    assert "[red]x[/red]" in text
    assert "[/nonsense]" in text
    claims = shown(claims_table([{"says": "[bold]y", "wanted": 1, "got": 2.5, "holds": False}]))
    assert "[bold]y" in claims
    assert "FAILS" in claims
    assert "claims: 0 hold, 1 fail, 0 not run" in claims


HONEST = {
    "psnr_mean": 21.25, "psnr_low": 17.75, "psnr_high": 24.5, "gain_mean": -1.5, "gain_low": -3.25, "gain_high": 0.25,
    "floor_blind": 9.125, "psnr_shifted_median": 22.375, "success": {"20": 0.8, "25": 0.6, "30": 0.4},
    "success_floor": {"20": 0.1, "25": 0.0, "30": 0.0}, "identified": 0.75, "identified_floor": 0.0625, "gallery": 1000,
    "easier": ["labels told", "untrained network (round 0 only)"],
}  # fmt: skip


def honest_folder(folder: Path) -> Path:
    """A run whose first attack has all its figures; the second is an older one's, which has not."""
    summary = run_folder(folder)
    summary["attacks"][0].update(HONEST)
    write(folder / "summary.json", summary)
    return folder


def test_the_page_shows_floors_and_intervals_beside_every_figure(tmp_path: Path) -> None:
    page = page_of(honest_folder(tmp_path))
    assert {21.25, -1.5, 9.125, 22.375, 0.75} <= page.figures
    for words in ("17.8 to 24.5", "\N{MINUS SIGN}3.2 to +0.2", "80 / 60 / 40", "10 / 0 / 0", "of 1000"):
        assert words in page.text


def test_what_made_an_attack_easier_stands_beside_its_name(tmp_path: Path) -> None:
    page = page_of(honest_folder(tmp_path))
    assert "cosine-inversion easier: labels told; untrained network (round 0 only)" in page.text
    summary = json.loads((tmp_path / "summary.json").read_text())
    text = " ".join(shown(summary_table([summary])).split())
    assert "cosine-inversion [1][2]" in text
    assert "[1] labels told, [2] untrained network (round 0 only)" in text
    honest = run_folder(tmp_path / "other")
    assert "easier:" not in page_of(tmp_path / "other").text
    assert "Easier" not in shown(summary_table([honest]))


def test_the_terminal_has_the_means_with_their_intervals(tmp_path: Path) -> None:
    summary = json.loads((honest_folder(tmp_path) / "summary.json").read_text())
    table = scores_table([summary])
    assert table is not None
    text = shown(table)
    for words in ("21.2", "17.8 to 24.5", "9.1", "\N{MINUS SIGN}3.2 to +0.2", "80 / 60 / 40", "75", "cosine-inversion"):
        assert words in text
    assert "analytic" not in text
    summary["attacks"] = summary["attacks"][1:]
    assert scores_table([summary]) is None


def test_hostile_settings_stay_text(tmp_path: Path) -> None:
    summary = json.loads((honest_folder(tmp_path) / "summary.json").read_text())
    summary["attacks"][0]["easier"] = [EVIL, "[red]x[/nonsense]"]
    write(tmp_path / "summary.json", summary)
    assert "<script>alert" not in write_report(tmp_path).read_text(encoding="utf-8")
    assert "[red]x[/nonsense]" in " ".join(shown(summary_table([summary])).split())
