"""Split mode on the report: stages, seats in the drawing, bytes of everybody, alarms and who was replaced."""

import re
from pathlib import Path

import pytest
from split_runs import DEEP, Played, played

from veilmesh.cli.outcome import say
from veilmesh.sim.report import write_report
from veilmesh.sim.report.load import read_report
from veilmesh.sim.report.mesh import mesh_drawing, mesh_kinds
from veilmesh.sim.report.model import Attacked, Summary
from veilmesh.sim.report.rows import position

CHAIN = {"strategy": {"name": "chain", "middles": 2, "standbys": 1}, "model": DEEP}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """A chain whose second middle peer dies and is replaced; two members collude, and a guard is easily scared."""
    scrutiny = {"name": "gradient-scrutiny", "every": 4, "threshold": 0.99, "patience": 1000}
    return played(
        tmp_path_factory.mktemp("chain"), **CHAIN, split__guards=[scrutiny], adversary__vantage="middle:1+tail",
        faults=[{"at": 0.05, "kill": "middle:2"}], timing__round=2,
    )  # fmt: skip


def summary_of(run: Played) -> Summary:
    found = read_report(run.folder).runs[0].summary
    assert found is not None
    return found


def page(run: Played) -> str:
    return re.sub(r"\s+", " ", write_report(run.folder).read_text(encoding="utf-8"))


def test_stages_say_who_plays_them_and_who_has_what(chain: Played) -> None:
    text = page(chain)
    assert "Where the network is cut, and who plays what" in text
    rows = re.findall(r"<td>(\d)</td><td>(peer:0|middle:\d|tail)</td>", text)
    assert rows == [("0", "peer:0"), ("1", "middle:1"), ("2", "middle:2"), ("3", "tail")]
    assert "<td>pictures, labels</td>" in text
    assert "<td>labels, as they are sent</td>" in text


def test_a_run_of_swarm_mode_has_no_such_section(tmp_path: Path) -> None:
    text = page(played(tmp_path, strategy="gossip", peers=3, model={"name": "mlp"}))
    assert 'id="stages"' not in text
    assert "by all</small>" not in text


def test_alarms_and_replacements_stand_on_the_page(chain: Played) -> None:
    text = page(chain)
    assert "standby:1 plays stage 2, since middle:2 is gone" in text
    assert chain.noted("alarm")
    step = chain.noted("alarm")[0]["step"]
    assert f"<td>alarm</td><td>{len(chain.noted('alarm'))}</td><td>step {step}</td>" in text


def test_guards_and_codecs_at_the_cuts_are_in_force(chain: Played) -> None:
    text = page(chain)
    assert "guards at the cuts" in text
    assert "gradient-scrutiny (" in text
    assert "dense, gradients dense" in text


def test_the_drawing_tells_roles_apart(chain: Played) -> None:
    summary = summary_of(chain)
    drawing = str(mesh_drawing("chain", summary))
    assert drawing.count("<polygon") == 4 + 2  # three stages, a standby, and rings around two of them
    assert drawing.count("peer stage") == 3
    assert "stage 1, malicious" in drawing
    assert "stage 2, killed" in drawing
    assert "stands by" in drawing
    places = re.findall(r"<(?:circle|polygon)[^>]*class=\"body\"[^>]*>", drawing)
    assert len(set(places)) == 5
    assert [words for _, _, words in mesh_kinds([summary])] == [
        "peer; in split mode a data owner", "plays a stage", "stands by", "malicious", "did not finish", "link",
        "link that ends at the malicious one",
    ]  # fmt: skip


def test_several_data_owners_stand_around_their_tail(tmp_path: Path) -> None:
    summary = summary_of(played(tmp_path, strategy="splitfed", peers=3, adversary__vantage="tail"))
    drawing = str(mesh_drawing("splitfed", summary))
    assert drawing.count("<circle") == 3
    assert "stage 1, malicious" in drawing
    assert "stage 0" not in drawing  # of several data owners that goes without saying


def test_where_an_attacker_sat_is_said_by_its_stage(tmp_path: Path) -> None:
    summary = summary_of(played(tmp_path, strategy="u-shaped", model=DEEP, adversary__vantage="body"))
    assert position(summary, None) == "body, stage 1"
    assert position(summary, Attacked(vantage="peer:0")) == "peer:0, stages 0 and 2"
    assert position(summary, Attacked(vantage="peer:0+body")) == "2 who collude: peer:0, body"


def test_what_came_of_a_run_counts_everybodys_bytes(chain: Played, capfd: pytest.CaptureFixture[str]) -> None:
    say(chain.summary, None, chain.folder)
    words = " ".join(capfd.readouterr().out.split())
    assert "a data owner and round" in words
    assert "by all members" in words
    assert "middle:2, after" in words
    assert "cut: peer:0: Normalise" in words
    assert "labels are sent to the last stage" in words
