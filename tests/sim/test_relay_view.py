"""A run whose adversary is a relay: what it learned stands in the record and the report, and it opened nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from veilmesh.attacks.view import observe
from veilmesh.core import BadInput
from veilmesh.crypto.frame import read
from veilmesh.peer.transcript import read_transcript
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.report import write_report
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Choice, Scenario

SCENARIO: dict[str, Any] = {
    "world": "memory", "peers": 4, "rounds": 6, "task": "digits", "topology": "ring", "codec": "8-bit-zstd",
    "adversary": {"vantage": "relay"},
}  # fmt: skip


def ran(folder: Path, **changes: Any) -> dict[str, Any]:
    scenario = Scenario.parse(SCENARIO | changes)
    return run_scenario(Cast.prepare(scenario), folder / "run", lambda event: None)


def test_a_relay_learns_sizes_and_times_and_the_report_says_so(tmp_path):
    told = ran(tmp_path)["traffic"]
    assert len(told["participants"]) == 4
    assert len(told["links"]) == 8
    assert told["frames"] == 4 * 2 * 6
    assert told["codecs"] == ["8-bit-zstd"]
    assert set(told["lengths"]) == {"none", "padme", "power-of-two"}
    assert told["lengths"]["power-of-two"]["entropy"] <= told["lengths"]["none"]["entropy"]
    page = write_report(tmp_path / "run").read_text()
    assert "What a relay learns" in page
    assert "8-bit-zstd" in page


def test_what_the_node_says_for_its_machine_is_sealed_under_joint_keys(tmp_path):
    """Every frame of the protocol acknowledges: none is of the kind that a sealing key alone would open later."""
    ran(tmp_path)
    records = [r for r in read_transcript(tmp_path / "run" / "transcript") if r.frame is not None]
    assert records
    assert all(read(r.frame).ack != bytes(8) for r in records)


def test_a_relay_of_one_peer_sees_that_peers_links_and_no_body(tmp_path):
    ran(tmp_path, adversary={"vantage": "relay:1"})
    cast, ids = open_run(tmp_path / "run")
    place = cast.vantage("relay:1", ids)
    assert len(place.carries) == 2
    view = observe(place, read_transcript(tmp_path / "run" / "transcript"), cast.public(ids))
    assert view.records
    assert all(ids[1] in (r.sender, r.to) and r.body is None and r.frame for r in view.records)
    outcome = audit(tmp_path / "run", cast, ids, Choice(name="label-recovery"), "relay:1")
    assert outcome["guesses_made"] == 0


@pytest.mark.parametrize("world", ["memory", "virtual"])
def test_padding_is_recorded_counted_and_leaves_fewer_lengths(tmp_path, world):
    plain = ran(tmp_path / "plain", world=world)
    padded = ran(tmp_path / "padded", world=world, envelope={"padding": "padme"})
    assert (plain["protections"]["padding"], padded["protections"]["padding"]) == ("none", "padme")
    assert padded["bytes_per_peer_round"] > plain["bytes_per_peer_round"]
    assert padded["accuracy"] == plain["accuracy"]
    assert set(padded["traffic"]["lengths"]) == {"padme"}
    assert padded["traffic"]["lengths"]["padme"]["entropy"] < plain["traffic"]["lengths"]["none"]["entropy"]


def test_what_was_forecast_for_padding_is_what_it_costs(tmp_path):
    plain, padded = ran(tmp_path / "a"), ran(tmp_path / "b", envelope={"padding": "power-of-two"})
    assert plain["traffic"]["lengths"]["power-of-two"] == padded["traffic"]["lengths"]["power-of-two"]


@pytest.mark.parametrize("vantage", ["relay:4", "relays", "relay:", "relay:x"])
def test_a_relay_that_is_nowhere_is_refused(vantage):
    with pytest.raises(BadInput):
        Scenario.parse(SCENARIO | {"adversary": {"vantage": vantage}})


def test_an_unknown_padding_is_refused():
    with pytest.raises(BadInput, match="padme"):
        Scenario.parse(SCENARIO | {"envelope": {"padding": "random"}})


def test_a_run_without_a_relay_says_nothing_of_one(tmp_path):
    summary = ran(tmp_path, adversary={"vantage": "peer:1"}, world="virtual")
    assert "traffic" not in summary
    assert "What a relay learns" not in write_report(tmp_path / "run").read_text()
    assert "traffic" not in json.loads((tmp_path / "run" / "summary.json").read_text())
