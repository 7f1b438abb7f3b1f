"""Edge devices: what a scenario may ask of them, what a run's record says of them, and real ones on loopback."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from brokers import broker, needs_mosquitto, tls_files
from meshes import alive, family, members, rounds_done, up, wait_for

from veilmesh.core import BadInput
from veilmesh.peer.confinement import can_hold_cores, can_hold_memory
from veilmesh.peer.shaping import Pace
from veilmesh.peer.transports.base import TRANSPORTS
from veilmesh.sim.edge import Edge, Laps, edge_figures
from veilmesh.sim.report import write_report
from veilmesh.sim.scenario import Scenario

held = pytest.mark.skipif(not (can_hold_cores() and can_hold_memory()), reason="this system cannot hold a peer to less")


def parsed(**edge: Any) -> Scenario:
    return Scenario.parse({"edge": edge})


def test_amounts_are_read_with_their_units_and_come_back_the_same() -> None:
    edge = parsed(cores=1, memory="1GiB", rate="1.5 Mbit", delay=0.05).edge
    assert edge == Edge(peers=(0,), cores=1, memory=1 << 30, rate=1.5e6, delay=0.05)
    assert edge.pace == Pace(1.5e6, 0.05)
    again = Scenario.parse(parsed(memory="600MB").model_dump(mode="json"))
    assert again.edge is not None
    assert again.edge.memory == 600_000_000
    assert Edge().pace is None  # a peer that is only measured


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"edge": {"rate": "1Mb"}}, "'1Mb' is no such amount; write a number and one of bit, kbit, Mbit, Gbit"),
        ({"edge": {"memory": "much"}}, "'much' is no such amount; write a number and one of B, kB, MB, GB"),
        ({"edge": {"memory": 0}}, "greater than 0"),
        ({"edge": {"cores": 0}}, "greater than or equal to 1"),
        ({"edge": {"delay": -1}}, "greater than or equal to 0"),
        ({"edge": {"rate": 10}}, "greater than or equal to 1000"),
        ({"edge": {"ram": 1}}, "no field of edge 'ram'"),
        ({"edge": {"peers": [5]}}, "there is no peer:5 to be an edge device among 5 peers"),
        ({"edge": {"cores": 1}, "world": "virtual"}, "which the virtual world has none of; set world to libp2p"),
        ({"edge": {"cores": 1}, "door": {"open": True}}, "leave out edge, or door.open"),
        (
            {"edge": {"delay": 0.1}, "transport": {"announce": "/ip4/192.0.2.1/tcp/1"}},
            "what passes transport.announce is not slowed down",
        ),
        ({"edge": {"delay": 0.1}, "transport": "memory"}, "what passes transport 'memory' is not slowed down"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        Scenario.parse(given)
    assert words in str(refused.value)


def test_rounds_are_timed_from_end_to_end() -> None:
    laps = Laps()
    for at in (1.0, 1.5, 3.5):
        laps.note(0, "trained", at - 0.2)
        laps.note(0, "round", at)
        laps.note(1, "trained", 2 * at)  # the client of a star
    assert laps.of(0) == (1.25, 2.0)
    assert laps.of(1) == (2.5, 4.0)
    assert laps.of(2) == (None, None)


def test_figures_are_of_the_edge_devices_alone() -> None:
    def member(index: int, ended: str = "finished", lap: float | None = 2.0) -> Any:
        return SimpleNamespace(
            name=f"peer:{index}", ended=ended, rounds=3 - index, round_seconds=lap, round_seconds_longest=lap,
            peak_memory_mb=100.0 * (index + 1), bytes_sent=10, bytes_received=20, cpu_seconds=1.0, limits={},
        )  # fmt: skip

    figures = edge_figures(Edge(peers=(0, 2)), [member(0), member(1), member(2, "killed", None)])["edge"]
    assert figures["members"] == ["peer:0", "peer:2"]
    assert (figures["finished"], figures["rounds"]) == (1, 1)
    assert (figures["round_seconds"], figures["peak_memory_mb"]) == (2.0, 300.0)
    assert edge_figures(None, [member(0)]) == {}


# --- real ones -----------------------------------------------------------------------------------------------------

SMALL = (
    "--peers", "3", "--rounds", "3", "--set", "edge.cores=1", "--set", "edge.memory=1GiB", "--set", "edge.rate=1Mbit",
    "--set", "edge.delay=0.05", "--set", "timing.round=60", "--set", "timing.silence=30",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("edge") / "run"
    with up(folder, *SMALL) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return folder, json.loads((folder / "summary.json").read_text()), output


@held
@pytest.mark.slow
def test_the_record_says_what_was_held_and_what_was_used(run: tuple[Path, dict[str, Any], str]) -> None:
    _, summary, output = run
    device, other = summary["peers"][0], summary["peers"][1]
    assert device["ended"] == "finished"
    assert device["limits"].keys() == {"cores", "memory", "link"}
    assert "1 Mbit/s and 50 ms each way" in device["limits"]["link"]
    assert other["limits"] == {}
    assert other["peak_memory_mb"] > 0
    edge = summary["edge"]
    assert edge["members"] == ["peer:0"]
    assert edge["rounds"] == 3
    assert 100 < edge["peak_memory_mb"] < 1074
    assert edge["round_seconds_longest"] >= edge["round_seconds"] > 0.2  # no round is over before two round trips
    assert "peer:0, held to cores 1, memory 1024 MiB" in output.replace("\n", " ")


@held
@pytest.mark.slow
def test_a_round_waits_for_the_bytes_that_its_link_lets_through(run: tuple[Path, dict[str, Any], str]) -> None:
    """Bytes over seconds, both as the run itself counted them: never more than the link's rate."""
    _, summary, _ = run
    device = summary["peers"][0]
    lasted = summary["seconds"]
    assert 8 * device["bytes_sent"] / lasted < 1e6
    assert 8 * device["bytes_received"] / lasted < 1e6
    assert summary["edge"]["bytes_sent"] == device["bytes_sent"] > 2 * 3 * 4 * 4810  # a model a round and neighbour


@held
@pytest.mark.slow
def test_limits_do_not_change_what_is_learned(run: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    with up(tmp_path / "run", "--peers", "3", "--rounds", "3") as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    free = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "edge" not in free
    assert free["model_bits"] == run[1]["model_bits"]


@held
@pytest.mark.slow
def test_the_report_has_a_table_of_it(run: tuple[Path, dict[str, Any], str]) -> None:
    page = write_report(run[0]).read_text()
    assert "What a round takes of an edge device" in page
    assert "RLIMIT_DATA" in page


@held
@pytest.mark.slow
def test_the_kernel_holds_the_peer_and_its_worker_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with up(folder, "--set", "training.batch=1", *SMALL[:3], "100000", *SMALL[4:]) as process:
        wait_for(lambda: rounds_done(folder) >= 2, "the second round")
        everybody = family(process.pid)
        assert len(everybody) == 1 + 3 + 3 + 1  # itself, its peers, a worker each, and the slow link
        device, other = (psutil.Process(m["pid"]) for m in members(folder)[:2])
        every = set(os.sched_getaffinity(0))
        cores = [set(p.cpu_affinity()) for p in device.children()]
        assert set(device.cpu_affinity()) == {min(every)}
        assert sorted(map(len, cores)) == [1, len(every)]  # the worker, and the link, which is no part of the device
        assert set(other.cpu_affinity()) == every
        assert device.rlimit(psutil.RLIMIT_DATA) == (1 << 30, 1 << 30)
        assert other.rlimit(psutil.RLIMIT_DATA)[0] != 1 << 30
        # of the device's processes only the worker has torch; the link is a copy of what the peer was once
        assert not any("torch" in where.path for where in device.memory_maps())
        assert device.memory_info().rss < other.memory_info().rss / 1.3
        device.kill()  # its worker and its link go with it; the others go on
        wait_for(lambda: len(alive(everybody)) == len(everybody) - 3, "three processes to end")
        process.kill()
        process.communicate(timeout=90)
        wait_for(lambda: not alive(everybody), "every process to end")


@held
@pytest.mark.slow
def test_too_little_memory_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with up(tmp_path / "run", "--peers", "3", "--set", "edge.memory=64MiB") as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "edge.memory of 64 MiB is less than a peer and its worker take before they do anything" in " ".join(
        output.split()
    )


@held
@pytest.mark.slow
def test_one_that_runs_out_of_memory_ends_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    network = ("--set", "model.name=mlp", "--set", "model.hidden=[2000,2000]")  # takes some 300 MB more than it has
    with up(folder, "--peers", "3", "--rounds", "2", "--set", "edge.memory=700MB", *network) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    summary = json.loads((folder / "summary.json").read_text())
    device, *others = summary["peers"]
    assert "out of memory" in device["ended"]
    assert "RLIMIT_DATA" in device["limits"]["memory"]
    assert [p["ended"] for p in others] == ["finished"] * 2
    assert summary["edge"]["finished"] == 0


def test_a_transport_that_no_relay_stands_in_is_refused_a_slow_link() -> None:
    edge = Edge(rate=1e6)
    refused = [name for name in TRANSPORTS.names() if edge.misplaced(3, "libp2p", {"name": name}, False)]
    assert refused == [name for name in TRANSPORTS.names() if name not in ("libp2p", "mqtt")]
    assert edge.misplaced(3, "libp2p", {"name": "mqtt", "broker": "127.0.0.1:1883", "tls": True}, False) is None


# --- through a broker ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The same run, through a broker with TLS, whose name is not that of the slow link."""
    folder = tmp_path_factory.mktemp("mqtt")
    with broker(folder, lines=tls_files(folder)) as relay:
        over = (
            "--set",
            "transport.name=mqtt",
            "--set",
            f"transport.broker={relay.place}",
            "--set",
            "transport.tls=true",
        )
        with up(folder / "run", *SMALL, *over, "--set", f"transport.ca={folder}/cert.pem") as process:
            output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    return json.loads((folder / "run" / "summary.json").read_text()), output


@held
@needs_mosquitto
@pytest.mark.slow
def test_a_broker_is_reached_over_the_slow_link_too(through: tuple[dict[str, Any], str]) -> None:
    summary, _ = through
    device, edge = summary["peers"][0], summary["edge"]
    assert "1 Mbit/s and 50 ms each way (a relay between it and its broker)" in device["limits"]["link"]
    assert edge["rounds"] == 3
    assert 100 < edge["peak_memory_mb"] < 600
    assert summary["protections"]["channel"] == "tls"
    assert edge["round_seconds_longest"] >= edge["round_seconds"] > 0.1  # a model there, and one back
    assert 8 * device["bytes_sent"] / summary["seconds"] < 1e6
    assert device["bytes_sent"] > 2 * 3 * 4 * 4810


@held
@needs_mosquitto
@pytest.mark.slow
def test_it_comes_to_the_same_model_as_over_libp2p(
    run: tuple[Path, dict[str, Any], str], through: tuple[dict[str, Any], str]
) -> None:
    assert through[0]["model_bits"] == run[1]["model_bits"]


@needs_mosquitto
@pytest.mark.slow
def test_a_broker_that_is_not_there_is_called_by_its_own_name(tmp_path: Path) -> None:
    over = ("--set", "transport.name=mqtt", "--set", "transport.broker=127.0.0.1:9", "--set", "edge.delay=0.01")
    with up(tmp_path / "run", "--peers", "3", *over) as process:
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "at 127.0.0.1:9" in " ".join(output.split())
