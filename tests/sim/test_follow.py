"""Watching a run from outside: its figures for Prometheus, its curves for TensorBoard, its notes as a log."""

import json
import struct
import urllib.request
from pathlib import Path

import pytest

from veilmesh.core import BadInput
from veilmesh.sim.cast import Cast
from veilmesh.sim.follow import Tail
from veilmesh.sim.prometheus import serve
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Scenario


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    scenario = Scenario.parse({"world": "virtual", "peers": 3, "rounds": 6, "evaluate_every": 3})
    run_scenario(Cast.prepare(scenario), folder, lambda event: None)
    return folder


def scraped(port: int) -> dict[str, float]:
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_prometheus_is_served_what_the_run_wrote(run: Path) -> None:
    port, end = serve(run, 0, "127.0.0.1")
    try:
        figures = scraped(port)
        assert figures == scraped(port)  # asking again counts nothing twice
    finally:
        end()
    summary = json.loads((run / "summary.json").read_text())
    for peer in summary["peers"]:
        assert figures[f'veilmesh_round{{peer="{peer["name"]}"}}'] == 6
        assert figures[f'veilmesh_group{{peer="{peer["name"]}"}}'] == 3
        assert figures[f'veilmesh_accuracy{{peer="{peer["name"]}"}}'] == pytest.approx(peer["accuracy"])
        assert figures[f'veilmesh_notes_total{{kind="trained",peer="{peer["name"]}"}}'] == 6
        assert 0 < figures[f'veilmesh_bytes_sent_total{{peer="{peer["name"]}"}}'] <= peer["bytes_sent"]
    assert figures["veilmesh_run_ended"] == 1


def test_a_taken_port_and_a_missing_run_are_said_in_a_sentence(run: Path, tmp_path: Path) -> None:
    port, end = serve(run, 0, "127.0.0.1")
    try:
        with pytest.raises(BadInput, match="cannot be listened on"):
            serve(run, port, "127.0.0.1")
    finally:
        end()
    with pytest.raises(BadInput, match=r"run\.json"):
        serve(tmp_path, 0, "127.0.0.1")


def test_a_tail_gives_whole_lines_once_and_begins_anew_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    tail = Tail(path)
    assert list(tail.new()) == []
    path.write_text('{"a": 1}\n{"a": 2')
    assert list(tail.new()) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\nbroken\n[3]\n')
    assert list(tail.new()) == [{"a": 2}]
    assert not tail.restarted
    path.write_text('{"a": 9}\n')
    assert list(tail.new()) == [{"a": 9}]
    assert tail.restarted


def records(path: Path) -> list[bytes]:
    """The records of a TensorBoard file: length, its checksum, data, its checksum."""
    raw, found = path.read_bytes(), []
    while raw:
        (size,) = struct.unpack_from("<Q", raw)
        found.append(raw[12 : 12 + size])
        raw = raw[16 + size :]
    return found


def test_tensorboard_files_hold_every_curve(run: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    from veilmesh.sim.tensorboard import write_tensorboard

    for _ in range(2):  # the second time it replaces what the first wrote
        place = write_tensorboard(run)
    for name in ("peer-0", "peer-1", "peer-2"):
        [file] = (place / name).glob("events.out.*")
        events = [Event.FromString(record) for record in records(file)]
        points = [(v.tag, event.step, v.simple_value) for event in events for v in event.summary.value]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if f"peer-{line['peer']}" == name and line["loss"] is not None]
        assert [value for tag, _, value in points if tag == "veilmesh/loss"] == pytest.approx(losses)
        assert [step for tag, step, _ in points if tag == "veilmesh/accuracy"] == [3, 6]
        assert {value for tag, _, value in points if tag == "veilmesh/group"} == {3.0}
