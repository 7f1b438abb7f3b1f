"""A study as a table and as a drawing: what is in them, and what is refused."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest

from veilmesh.core import BadInput
from veilmesh.sim.report.trade_off import drawing, spots, table, write_trade_off


def _cell(seed, message, defence, accuracy, *attacks):
    rows = [
        {"attack": "adaptive", "title": title, "vantage": "peer:0", "pictures": 2, "psnr_mean": psnr,
         "gain_mean": psnr - 12, "floors": {"grey": 9.0, "mean": 10.0, "nearest": 12.0}, "floor_blind": 8.0}
        for title, psnr in attacks
    ]  # fmt: skip
    axes = {"seed": seed, "message": message, "defence": defence}
    return {"key": "k", "axes": axes, "summary": {"accuracy": accuracy, "bytes_per_peer_round": 100, "attacks": rows}}


@pytest.fixture
def cells():
    return [
        _cell(1, "step", "none", 0.9, ("naive", 40.0), ("adaptive", 36.0)),
        _cell(2, "step", "none", 0.8, ("naive", 42.0), ("adaptive", 38.0)),
        _cell(1, "step", "drop <85 %>", 0.7, ("naive", 20.0), ("adaptive", 24.0)),
        _cell(1, "epoch", "none", 0.95),
    ]


def test_the_table_has_a_row_for_every_attack_and_one_for_a_cell_without(cells):
    rows = list(csv.DictReader(io.StringIO(table(cells))))
    assert len(rows) == 7
    assert rows[0]["seed"] == "1"
    assert rows[0]["defence"] == "none"
    assert float(rows[0]["psnr_mean"]) == 40
    assert float(rows[0]["floor_nearest"]) == 12
    assert rows[-1]["attack"] == ""
    assert rows[-1]["accuracy"] == "0.95"


def test_a_mark_is_the_best_attacker_on_the_mean_over_cells(cells):
    none, dropped = spots(cells, "defence", "message")
    assert (none.series, none.point, none.title) == ("step", "none", "naive")
    assert none.accuracy == pytest.approx((0.85, 0.8, 0.9))
    assert none.psnr == pytest.approx((41, 40, 42))
    assert none.floor == pytest.approx(12)
    assert dropped.title == "adaptive"


def test_an_attack_on_one_cell_alone_is_not_taken_for_the_mean_of_all(cells):
    cells[0]["summary"]["attacks"].append({**cells[0]["summary"]["attacks"][0], "title": "rare", "psnr_mean": 60.0})
    assert spots(cells, "defence", "message")[0].title == "naive"


def test_the_drawing_is_a_picture_of_its_own_with_every_name_in_it(cells):
    root = ElementTree.fromstring(drawing(spots(cells, "defence", "message"), "a <title>"))
    assert root.tag.endswith("svg")
    text = " ".join(root.itertext())
    assert "drop <85 %>" in text
    assert "step" in text


def test_what_is_not_there_is_refused_in_a_sentence(cells, tmp_path):
    with pytest.raises(BadInput, match="axis"):
        spots(cells, "defense", "message")
    with pytest.raises(BadInput, match="no drawing"):
        drawing(spots(cells[3:], "defence", "message"), "")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(BadInput, match="not the folder of a study"):
        write_trade_off(tmp_path, "defence", "message")


def test_both_are_written_beside_the_study(cells, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"study": {"title": "t"}, "cells": cells, "claims": []}))
    first, second = write_trade_off(tmp_path, "defence", "message")
    assert first.read_text().startswith("seed,message,defence,accuracy")
    assert second.read_text().startswith("<svg")
