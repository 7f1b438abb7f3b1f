"""Meshes that span libp2p and a broker, as processes: the same models as elsewhere, and what cannot be is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from brokers import TestBroker, broker, needs_mosquitto
from meshes import WAIT, members, rounds_done, up, wait_for
from worlds import assert_same_models, scenario_file

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.store import load_parameters
from veilmesh.sim.feet import in_force, require_ways, standing
from veilmesh.sim.invite import Invite
from veilmesh.sim.scenario import Scenario

GOSSIP: dict[str, Any] = {
    "peers": 5,
    "rounds": 4,
    "evaluate_every": 2,
    "strategy": "gossip",
    "topology": "line",
    "training": {"batch": 4, "local_steps": 1, "learning_rate": 0.1},
}


def spanning(relay: TestBroker, bridge: str = "peer:2", beyond: str = "peer:3-4", **changes: Any) -> dict[str, Any]:
    """The scenario on two transports, with a bridge between; chunks far smaller than a model, so that it takes more."""
    feet = [
        {"members": [bridge], "transport": "bridge"},
        {"members": [beyond], "transport": {"name": "mqtt", "broker": relay.place, "chunk": 4096}},
    ]
    return {**GOSSIP, "feet": feet, **changes}


def finished(tmp_path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run to its end."""
    with up(tmp_path / "both", "--scenario", scenario_file(tmp_path, data)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    return json.loads((tmp_path / "both" / "summary.json").read_text())


@needs_mosquitto
def test_two_islands_whose_bridge_carries_for_them_come_to_the_same_bits(tmp_path: Path) -> None:
    """Everybody speaks to everybody; the record says what protected whom."""
    with broker(tmp_path) as relay:
        data = spanning(relay, topology="complete")
        summary = finished(tmp_path, data)
    assert_same_models(tmp_path / "both", data)
    said = summary["protections"]
    assert (said["libp2p: channel"], said["mqtt: channel"]) == ("noise", "none")
    assert not [what for what in said if what.startswith("bridge")]
    carried, *others = sorted((peer["bytes_sent"] for peer in summary["peers"]), reverse=True)
    assert carried == summary["peers"][2]["bytes_sent"] > 2 * others[0]


@pytest.mark.slow
@needs_mosquitto
def test_a_server_on_a_bridge_has_clients_on_both_sides(tmp_path: Path) -> None:
    with broker(tmp_path) as relay:
        data = spanning(relay, "server", "peer:2-3", peers=4, strategy="fedavg", topology="complete")
        finished(tmp_path, data)
    assert_same_models(tmp_path / "both", data)


@needs_mosquitto
@pytest.mark.slow
def test_a_broker_killed_under_a_line_of_seven_costs_no_round(tmp_path: Path) -> None:
    """Three on each side, and the bridge between them speaks to one of each."""
    with broker(tmp_path, keeps=False) as relay:
        data = spanning(relay, "peer:3", "peer:4-6", peers=7, rounds=30, evaluate_every=30)
        with up(tmp_path / "both", "--scenario", scenario_file(tmp_path, data)) as process:
            wait_for(lambda: rounds_done(tmp_path / "both") >= 4, "a few rounds")
            relay.stop(at_once=True)
            time.sleep(0.3)
            relay.start()
            output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_models(tmp_path / "both", data)


@needs_mosquitto
@pytest.mark.slow
def test_a_bridge_that_dies_is_missed_on_both_sides_and_each_goes_on(tmp_path: Path) -> None:
    timing = {"silence": 3.0, "round": 4.0}
    faults = [{"at": 0.5, "kill": "peer:2"}]
    with broker(tmp_path) as relay:
        data = spanning(relay, topology="complete", rounds=40, evaluate_every=40, timing=timing, faults=faults)
        summary = finished(tmp_path, data)
    ended = [peer["ended"] for peer in summary["peers"]]
    assert [how == "finished" for how in ended] == [True, True, False, True, True]
    bridge = members(tmp_path / "both")[2]["id"]
    events = [json.loads(line) for line in (tmp_path / "both" / "events.jsonl").read_text().splitlines()]
    missed = {event["peer"] for event in events if event["kind"] == "silent" and bridge in event["peers"]}
    assert missed == {0, 1, 3, 4}
    models = [load_parameters(path) for path in sorted((tmp_path / "both" / "checkpoints").glob("peer-*"))]
    assert len(models) == 4


# --- what a scenario may say -----------------------------------------------------------------------------------------


BROKER = {"name": "mqtt", "broker": "127.0.0.1:1"}
NAMES = [f"peer:{n}" for n in range(5)]
LINE = [(n, n + 1) for n in range(4)]


def feet(*given: tuple[str, Any], **changes: Any) -> Scenario:
    said = [{"members": [who], "transport": transport} for who, transport in given]
    return Scenario.parse({**GOSSIP, "feet": said, **changes})


def test_a_bridge_takes_after_those_on_its_sides() -> None:
    own = {"name": "bridge", "mqtt": {"chunk": 2048}}
    scenario = feet(("peer:1-2", own), ("peer:3-4", {**BROKER, "chunk": 4096}), transport={"listen": "127.0.0.2"})
    assert standing(scenario, "peer:0") == {"name": "libp2p", "listen": "127.0.0.2"}
    assert standing(scenario, "peer:4") == {**BROKER, "chunk": 4096}
    table = standing(scenario, "peer:2")
    assert table["libp2p"] == {"listen": "127.0.0.2"}
    assert table["mqtt"] == {"broker": "127.0.0.1:1", "chunk": 2048}


def test_a_scenario_that_was_written_down_reads_the_same() -> None:
    scenario = feet(("peer:2", "bridge"), ("peer:3-4", BROKER))
    assert Scenario.parse(scenario.model_dump(mode="json")) == scenario


def test_a_strangers_invite_has_no_file_of_ours_read_on_any_foot() -> None:
    """Nor does it say where ours are."""
    own = {"broker": "127.0.0.1:1", "password_file": "/a/secret", "username": "me", "ca": "/a/ca"}
    said = {"transport": {"name": "bridge", "mqtt": own}, "feet": [{"members": ["peer:0"], "transport": "bridge"}]}
    contacts = {Identity.from_seed(bytes(32)).peer: "mqtt://127.0.0.1:1/veilmesh/x"}
    hostile = Invite(bytes(16), bytes(32), contacts, {**GOSSIP, **said})
    read = Invite.parse(hostile.to_string()).scenario
    assert read["transport"] == {"name": "bridge", "mqtt": {"broker": "127.0.0.1:1"}}
    assert not read["feet"]


@pytest.mark.parametrize(
    ("said", "changes", "what"),
    [
        ([("peer:9x", "mqtt")], {}, "is no member"),
        ([("peer:4-3", "mqtt")], {}, "counts down"),
        ([("peer:1", BROKER), ("peer:0-2", "bridge")], {}, "says twice where peer:1 stands"),
        ([("peer:1", "memory")], {}, "not of 'memory'"),
        ([("peer:1", BROKER)], {"world": "virtual"}, "virtual world has no transports"),
        ([("peer:1", BROKER)], {"door": {"open": True}, "topology": "ring"}, "leave out door.open"),
        ([], {"transport": "bridge", "door": {"open": True}, "topology": "ring"}, "leave out door.open"),
        ([("peer:1", BROKER)], {"edge": {"rate": "1Mbit"}}, "slow link"),
        ([("peer:1", BROKER)], {"transport": BROKER, "adversary": {"vantage": "broker"}}, "leave out feet"),
    ],
)
def test_what_cannot_be_is_refused(said: list[tuple[str, Any]], changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        feet(*said, **changes)


@pytest.mark.parametrize(
    ("said", "edges", "what"),
    [
        ([("peer:2-4", BROKER)], LINE, "peer:1 .libp2p. and peer:2 .mqtt. are neighbours without"),
        ([("peer:4", "bridge"), ("peer:2-3", BROKER)], LINE, "no bridge is a neighbour of both"),
        (
            [("peer:0", "bridge"), ("peer:2", "bridge"), ("peer:3-4", BROKER)],
            [*LINE, (1, 3)],
            "peer:0, which .* only one",
        ),
        ([("peer:7", BROKER)], LINE, "no 'peer:7' in this run"),
        ([("server", BROKER)], LINE, "no 'server' in this run"),
    ],
)
def test_neighbours_that_cannot_speak_are_refused(
    said: list[tuple[str, Any]], edges: list[tuple[int, int]], what: str
) -> None:
    with pytest.raises(BadInput, match=what):
        require_ways(feet(*said), NAMES, edges)


@pytest.mark.parametrize(
    ("said", "edges"),
    [
        ([("peer:2", "bridge"), ("peer:3-4", BROKER)], LINE),
        ([("peer:2", "bridge"), ("peer:3-4", BROKER)], [(i, j) for j in range(5) for i in range(j)]),
        ([("peer:1-2", "bridge"), ("peer:3-4", BROKER)], [(i, j) for j in range(5) for i in range(j)]),
        ([("peer:0-4", BROKER)], LINE),
        ([], LINE),
    ],
)
def test_neighbours_that_can_are_not(said: list[tuple[str, Any]], edges: list[tuple[int, int]]) -> None:
    require_ways(feet(*said), NAMES, edges)


def test_a_mesh_that_cannot_come_up_is_refused_in_a_sentence(tmp_path: Path) -> None:
    data = {**GOSSIP, "feet": [{"members": ["peer:3-4"], "transport": BROKER}]}
    with up(tmp_path / "both", "--scenario", scenario_file(tmp_path, data)) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 2
    assert "are neighbours without a transport in common" in " ".join(output.split())


def test_what_is_in_force_is_said_once_and_with_its_transport() -> None:
    both = {"signature": "x", "channel": "noise", "mqtt channel": "tls"}
    said = {
        "libp2p": {"signature": "x", "channel": "noise"},
        "bridge": both,
        "mqtt": {"signature": "x", "channel": "none"},
    }
    assert in_force({"libp2p": said["libp2p"]}) == said["libp2p"]
    assert in_force(said) == {
        "signature": "x",
        "libp2p: channel": "noise",
        "mqtt: channel": "none",
        "bridge: mqtt channel": "tls",
    }
