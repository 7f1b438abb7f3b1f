"""Slow peers, killed ones and paused ones: exact in virtual time, real where there are real processes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from meshes import WAIT, alive, family, members, up, wait_for

from veilmesh.core import BadInput
from veilmesh.peer.machine import (
    Effect,
    Event,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    Work,
    WorkDone,
)
from veilmesh.sim.cast import Cast
from veilmesh.sim.faults import Action, Fault, actions
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time

A, B = PeerId("a"), PeerId("b")


@dataclass
class Ticker:
    """Works without a break, greets everybody after each piece, and remembers what it was given and when."""

    others: frozenset[PeerId]
    until: float = 10.0
    log: list[tuple[float, Event]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.log.append((now, event))
        match event:
            case Started():
                return [Work("w", 0), SetTimer("end", self.until), SetTimer("two", 2.0)]
            case WorkDone():
                return [*(Send(p, b"done") for p in sorted(self.others)), Work("w", 0)]
            case TimerFired("end"):
                return [Stop("whole")]
        return []

    def times(self, kind: type) -> list[float]:
        return [round(t, 6) for t, e in self.log if isinstance(e, kind)]


def network(faults: Sequence[tuple[PeerId, Fault]] = (), slow: float = 1.0) -> dict[PeerId, Player]:
    def execute(tasks: Sequence[object]) -> list[object]:
        return list(tasks)

    ids = frozenset({A, B})
    players = {p: Player(Ticker(ids - {p}), execute, ids - {p}) for p in sorted(ids)}
    players[B].slow = slow
    VirtualNetwork(players, latency=0.25, work_time=1.0, faults=faults, grace=0.5, silence=4.0).run(100.0)
    return players


def ticker(player: Player) -> Ticker:
    assert isinstance(player.machine, Ticker)
    return player.machine


# --- virtual time --------------------------------------------------------------------------------------------------


def test_a_slow_peers_work_takes_so_many_times_as_long() -> None:
    players = network(slow=2.5)
    assert ticker(players[A]).times(WorkDone) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert ticker(players[B]).times(WorkDone) == [2.5, 5.0, 7.5]
    assert ticker(players[A]).times(Received) == [2.75, 5.25, 7.75]


def test_a_killed_peer_stops_and_its_neighbours_notice_after_the_grace() -> None:
    players = network([(B, Fault(at=2.5, kill="peer:1"))])
    assert ticker(players[B]).log[-1][0] == 2.25
    assert (players[B].killed, players[B].result) == (True, None)
    assert [(t, e) for t, e in ticker(players[A]).log if isinstance(e, PeersChanged)] == [
        (3.0, PeersChanged(frozenset()))
    ]
    assert ticker(players[A]).times(Received) == [1.25, 2.25]
    assert players[A].result == "whole"
    assert (players[A].messages_sent, players[B].messages_received) == (9, 2)  # what is said to the dead is not heard


def test_a_paused_peer_takes_nothing_and_then_everything_in_order() -> None:
    players = network([(B, Fault(at=1.5, pause="peer:1", seconds=2))])
    paused = ticker(players[B])
    assert [type(e).__name__ for t, e in paused.log if 1.5 < t <= 3.5] == ["TimerFired", "Received", "Received"]
    assert {t for t, _ in paused.log if 1.5 < t <= 3.5} == {3.5}
    assert paused.times(WorkDone) == [1, 4, 5, 6, 7, 8, 9]  # its work stood still as well, half done
    assert not ticker(players[A]).times(PeersChanged)
    assert players[B].result == "whole"


def test_a_long_silence_is_taken_for_death_until_it_ends() -> None:
    players = network([(B, Fault(at=1.5, pause="peer:1", seconds=6))])
    changes = [(t, e.present) for t, e in ticker(players[A]).log if isinstance(e, PeersChanged)]
    assert changes == [(5.5, frozenset()), (7.75, frozenset({B}))]


def test_what_befalls_a_peer_that_has_stopped_does_nothing() -> None:
    late = [(B, Fault(at=50, kill="peer:1")), (B, Fault(at=60, pause="peer:1", seconds=1))]
    assert [ticker(p).log for p in network(late).values()] == [ticker(p).log for p in network().values()]


def test_pauses_that_overlap_end_with_the_last() -> None:
    faults = [Fault(at=t, pause="peer:2", seconds=s) for t, s in [(1, 3), (2, 5), (9, 1)]]
    assert actions(faults) == [
        Action(1, 2, "pause", 3), Action(2, 2, "pause", 5), Action(7, 2, "go on"),
        Action(9, 2, "pause", 1), Action(10, 2, "go on"),
    ]  # fmt: skip


def scenario(**changes: Any) -> Scenario:
    return Scenario.parse({
        "world": "virtual", "peers": 4, "rounds": 40, "task": "digits", "strategy": "gossip",
        "model": {"name": "mlp", "hidden": [8]}, **changes,
    })  # fmt: skip


def played(folder: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = run_in_virtual_time(Cast.prepare(scenario(**changes)), folder, lambda *heard: None)
    return summary, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_whose_peer_is_killed_goes_on_without_it_and_says_so(tmp_path: Path) -> None:
    summary, events = played(tmp_path, faults=[{"at": 0.1, "kill": "peer:2"}], timing={"grace": 0})
    assert [p["ended"] for p in summary["peers"]] == ["finished", "finished", "killed", "finished"]
    assert 0 < summary["peers"][2]["rounds"] < 40
    assert summary["finished"] == 3
    assert [(e["t"], e["peer"], e["what"]) for e in events if e["kind"] == "fault"] == [(0.1, 2, "kill")]
    assert not (tmp_path / "checkpoints" / "peer-2.safetensors").exists()
    assert [p for p in (tmp_path / "checkpoints").iterdir() if p.suffix == ".safetensors"]


def test_a_pause_holds_up_those_who_wait_for_it_and_changes_no_model(tmp_path: Path) -> None:
    plain, _ = played(tmp_path / "plain")
    paused, events = played(tmp_path / "paused", faults=[{"at": 0.1, "pause": "peer:1", "seconds": 3}])
    assert [p["accuracy"] for p in paused["peers"]] == [p["accuracy"] for p in plain["peers"]]
    assert max(e["t"] for e in events) > 3.1
    assert [(e["what"], e["seconds"]) for e in events if e["kind"] == "fault"] == [("pause", 3)]


def test_times_are_the_scenarios(tmp_path: Path) -> None:
    _, events = played(tmp_path, rounds=3, links={"latency": 0.5, "step": 0.25, "slow": {"peer:3": 4}})
    trained = [(e["t"], e["peer"]) for e in events if e["kind"] == "trained"]
    assert trained[:4] == [(0.25, 0), (0.25, 1), (0.25, 2), (1.0, 3)]
    assert trained[4:8] == [(1.75, 0), (1.75, 1), (1.75, 2), (1.75, 3)] or trained[4:7] == [
        (1.75, 0), (1.75, 1), (1.75, 2),
    ]  # fmt: skip


# --- what cannot be had --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"faults": [{"at": 1, "kill": "peer:4"}]}, "no peer:4 among 4 peers"),
        ({"faults": [{"at": 1, "kill": "server"}]}, "write peer:N"),
        ({"faults": [{"at": 1, "pause": "peer:1"}]}, "give its seconds"),
        ({"faults": [{"at": 1, "kill": "peer:1", "seconds": 2}]}, "leave out seconds"),
        ({"faults": [{"at": 1}]}, "exactly one"),
        ({"faults": [{"at": 1, "kill": "peer:1", "pause": "peer:1"}]}, "exactly one"),
        ({"faults": [{"kill": "peer:1"}]}, "at is missing"),
        ({"faults": [{"at": -1, "kill": "peer:1"}]}, "faults.0.at"),
        ({"faults": [{"at": 1, "pause": "peer:1", "seconds": 0}]}, "seconds"),
        ({"faults": [{"at": 1, "kil": "peer:1"}]}, "'kill'"),
        ({"links": {"slow": {"peer:9": 2}}}, "no peer:9"),
        ({"links": {"slow": {"peer:1": 0.5}}}, "links.slow"),
        ({"links": {"latency": -1}}, "links.latency"),
        ({"links": {"speed": 1}}, "slow"),
        ({"world": "memory", "faults": [{"at": 1, "kill": "peer:1"}]}, "set world to libp2p or virtual"),
        ({"world": "memory", "links": {"slow": {"peer:1": 2}}}, "set world to libp2p or virtual"),
    ],
)
def test_an_impossible_fault_is_refused_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(**changes)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_faults_survive_their_own_record() -> None:
    whole = scenario(
        links={"latency": 0.002, "slow": {"peer:1": 3}},
        faults=[{"at": 1, "kill": "peer:1"}, {"at": 2, "pause": "peer:0", "seconds": 1}],
    )
    assert Scenario.parse(whole.model_dump(mode="json")) == whole


# --- real processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_processes_are_killed_paused_and_slow(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = {
        "peers": 4, "rounds": 150, "strategy": "gossip", "training": {"batch": 1}, "timing": {"silence": 8},
        "links": {"slow": {"peer:3": 3}},
        "faults": [{"at": 0.8, "kill": "peer:2"}, {"at": 0.8, "pause": "peer:1", "seconds": 2}],
    }  # fmt: skip
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": data}))
    with up(folder, "--scenario", str(path)) as process:
        wait_for(lambda: members(folder), "the mesh")
        everybody = family(process.pid)
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    peers = json.loads((folder / "summary.json").read_text())["peers"]
    assert [p["ended"] for p in peers] == ["finished", "finished", "killed (SIGKILL)", "finished"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    faults = {e["what"]: e for e in events if e["kind"] == "fault"}
    assert {what: e["peer"] for what, e in faults.items()} == {"kill": 2, "pause": 1}
    begin = faults["pause"]["t"]
    still = [e for e in events if e["peer"] == 1 and begin + 0.05 < e["t"] < begin + 1.9]
    assert not still  # it said nothing at all while it stood still
    assert any(e["peer"] == 1 and e["t"] > begin + 1.9 for e in events)
    wait_for(lambda: not alive(everybody), "every process to end")


def test_a_mesh_that_is_ended_during_a_pause_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    data = {
        "peers": 3, "rounds": 100_000, "training": {"batch": 1},
        "faults": [{"at": 0.5, "pause": "peer:1", "seconds": 600}],
    }  # fmt: skip
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": data}))
    with up(folder, "--scenario", str(path)) as process:
        wait_for(lambda: '"fault"' in _text(folder / "events.jsonl"), "the pause")
        everybody = family(process.pid)
        process.terminate()
        process.communicate(timeout=WAIT)
        wait_for(lambda: not alive(everybody), "every process to end")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
