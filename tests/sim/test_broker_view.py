"""What a broker learns: its view is what a real one sees, and no more; and what buckets and cover leave of it."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from brokers import TestBroker, broker, needs_mosquitto
from meshes import WAIT, up

from veilmesh.attacks.view import IN_PASSING, View
from veilmesh.core import BadInput
from veilmesh.crypto.frame import ENVELOPE_OVERHEAD, HELLO_BYTES, TAG_BYTES, read
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transports.mqtt_chunks import CHUNK_OVERHEAD, Acks, Reassembly
from veilmesh.peer.transports.mqtt_chunks import read as read_chunk
from veilmesh.peer.transports.mqtt_names import Presence
from veilmesh.sim.audit import audit, open_run
from veilmesh.sim.cast import Cast
from veilmesh.sim.observation import observation
from veilmesh.sim.record import read_json
from veilmesh.sim.report import write_report
from veilmesh.sim.run import run_scenario
from veilmesh.sim.scenario import Choice, Scenario

SCENARIO: dict[str, Any] = {
    "peers": 4, "rounds": 6, "evaluate_every": 6, "task": "digits", "topology": "ring", "codec": "8-bit-zstd",
    "adversary": {"vantage": "broker"},
}  # fmt: skip
COVER = {"envelope": {"cover": {"pace": 0.05, "bytes": 2048}}}
CURIOUS = "curious"


def ran(folder: Path, **changes: Any) -> dict[str, Any]:
    scenario = Scenario.parse(SCENARIO | changes)
    return run_scenario(Cast.prepare(scenario), folder, lambda event: None)


def over(relay: TestBroker, **changes: Any) -> dict[str, Any]:
    """The scenario, through that broker; chunks smaller than a model."""
    return SCENARIO | {"transport": {"name": "mqtt", "broker": relay.place, "chunk": 2048}} | changes


def ran_over(folder: Path, data: dict[str, Any]) -> Path:
    """That scenario, as processes; its folder."""
    (folder / "scenario.toml").write_text(tomli_w.dumps({"scenario": data}))
    with up(folder / "mqtt", "--scenario", str(folder / "scenario.toml")) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    return folder / "mqtt"


def view_of(run: Path) -> View:
    cast, ids = open_run(run)
    return observation(run, cast, ids, "broker")


@contextlib.contextmanager
def curious(relay: TestBroker) -> Iterator[list[tuple[str, bytes]]]:
    """A broker that writes down what passes: one of its clients, subscribed to everything. Whole once this ends."""
    import paho.mqtt.client as paho

    heard: list[tuple[str, bytes]] = []
    ready, over = threading.Event(), threading.Event()

    def on_message(client: Any, data: Any, message: Any) -> None:
        if message.topic == f"veilmesh/{CURIOUS}":  # what this client said last has passed everything before
            over.set()
        else:
            heard.append((message.topic, bytes(message.payload)))

    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *told: client.subscribe("veilmesh/#", qos=1)
    client.on_subscribe = lambda *told: ready.set()
    client.on_message = on_message
    client.connect("127.0.0.1", relay.port)
    client.loop_start()
    try:
        assert ready.wait(WAIT)
        yield heard
        client.publish(f"veilmesh/{CURIOUS}", b"", qos=1)
        assert over.wait(WAIT)
    finally:
        client.disconnect()
        client.loop_stop()


def put_together(
    heard: list[tuple[str, bytes]],
) -> tuple[Counter[tuple[str, str, bytes]], Counter[Any], Counter[Any], set[Any]]:
    """Frames, chunks and acknowledgements with their ends, and presences, of what passed a real broker."""
    frames, chunks, acks, presences = Counter[Any](), Counter[Any](), Counter[Any](), set()
    partial: dict[Any, Reassembly] = {}
    for topic, payload in heard:
        _, place, one, other = topic.split("/") if topic.count("/") == 3 else (*topic.split("/"), "")
        if place == "presence":
            if payload:
                said = Presence.from_bytes(payload, one)
                presences.add((said.state.name.lower(), one, said.connections))
            continue
        what = read_chunk(payload)
        if isinstance(what, Acks):
            acks[other, one] += 1
            continue
        chunks[other, one, len(payload)] += 1
        if (frame := partial.setdefault((other, one, what.source, what.target), Reassembly()).take(what)) is not None:
            frames[other, one, frame] += 1
    return frames, chunks, acks, presences


def assert_seen_alike(view: View, heard: list[tuple[str, bytes]]) -> None:
    frames, chunks, acks, presences = put_together(heard)
    assert {r.at for r in view.records} == {IN_PASSING}
    assert Counter((r.sender, r.to, r.frame) for r in view.records) == frames
    assert all(r.body is None and r.size == len(r.frame or b"") for r in view.records)
    sealed = [read(r.frame) for r in view.records if r.frame]
    assert all(
        len(frame) == ENVELOPE_OVERHEAD + header.hello + header.ciphertext - TAG_BYTES
        for (_, _, frame), header in ((one, read(one[2])) for one in frames)
    )
    assert {header.hello for header in sealed} <= {0, HELLO_BYTES}
    seen = [s for s in view.sightings if s.what == "chunk"]
    assert Counter((s.who, s.to, s.size) for s in seen) == chunks
    assert sum(s.size - CHUNK_OVERHEAD for s in seen) == sum(len(frame) * n for (_, _, frame), n in frames.items())
    said = Counter((s.who, s.to) for s in view.sightings if s.what == "ack")
    assert acks <= said  # the last may be on their way when their sender ends
    assert {(s.what, s.who, s.number) for s in view.sightings if s.to is None} == presences


@needs_mosquitto
@pytest.mark.parametrize(
    "changes", [pytest.param({}, id="plain"), pytest.param(COVER, id="covered", marks=pytest.mark.slow)]
)
def test_the_view_of_a_broker_is_what_a_real_one_sees(tmp_path: Path, changes: dict[str, Any]) -> None:
    with broker(tmp_path) as relay, curious(relay) as heard:
        run = ran_over(tmp_path, over(relay, **changes))
    view = view_of(run)
    assert_seen_alike(view, heard)
    everything = b"".join(r.frame or b"" for r in view.records)
    assert not any(model[:64] in everything for model in models_in(run))
    ran(tmp_path / "virtual", world="virtual", **changes)
    assert models_in(run) == models_in(tmp_path / "virtual")
    told = read_json(run / "summary.json")["traffic"]
    assert set(told["participants"]) == {f"peer:{i}" for i in range(4)}
    assert len(told["links"]) == 8
    attendance = told["presence"]["attendance"]
    assert all(one["joined"] < one["left"] and not one["failed"] for one in attendance)
    kinds = told["kinds"]
    assert set(kinds) == ({"cover"} if changes else {"data", "presence", "goodbye"})
    if not changes:
        assert kinds["data"] == told["frames"] == 8 * 6


@needs_mosquitto
@pytest.mark.slow
def test_a_broker_knows_who_failed_and_when(tmp_path: Path) -> None:
    faults = [{"at": 3.0, "kill": "peer:2"}]
    timing = {"grace": 5, "silence": 8}  # the others wait for it while the broker says that it is lost
    with broker(tmp_path) as relay, curious(relay) as heard:
        run = ran_over(tmp_path, over(relay, faults=faults, timing=timing, rounds=400, evaluate_every=400))
    presences = {(s.what, s.who, s.number) for s in view_of(run).sightings if s.to is None}
    assert presences == put_together(heard)[3]
    told = {one["peer"]: one for one in read_json(run / "summary.json")["traffic"]["presence"]["attendance"]}
    assert [name for name, one in told.items() if one["failed"]] == ["peer:2"]
    assert told["peer:2"]["left"] is None
    assert told["peer:2"]["failed"][0] > told["peer:2"]["joined"]


def models_in(run: Path) -> list[bytes]:
    return [load_parameters(path).tobytes() for path in sorted((run / "checkpoints").iterdir())]


@pytest.mark.parametrize("world", ["virtual", "memory"])
@pytest.mark.parametrize("everybody", [False, True])
def test_cover_changes_no_bit_of_any_model_and_is_counted(tmp_path: Path, world: str, everybody: bool) -> None:
    cover = {"envelope": {"cover": {"pace": 0.03, "bytes": 2048, "everybody": everybody}}}
    plain, covered = ran(tmp_path / "a", world=world), ran(tmp_path / "b", world=world, **cover)
    assert models_in(tmp_path / "a") == models_in(tmp_path / "b")
    assert plain["cover_bytes"] == 0 < covered["cover_bytes"] < covered["bytes_sent"]
    assert "2048 bytes every 0.03 s" in covered["protections"]["cover"]
    assert len(covered["traffic"]["links"]) == (12 if everybody else 8)
    assert covered["traffic"]["lengths"]["none"]["entropy"] == 0
    if world == "memory":
        assert set(covered["traffic"]["kinds"]) == {"cover"}


def passed(folder: Path, **changes: Any) -> list[tuple[float, str, str, int]]:
    ran(folder, world="virtual", **changes)
    return sorted((r.now, r.sender, r.to, r.size) for r in view_of(folder).records)


def test_behind_cover_frames_are_the_same_whatever_is_said_and_whoever_is_slow(tmp_path: Path) -> None:
    """But for the end: two runs, as a broker sees them, are one until the first is over."""
    cover = {"envelope": {"cover": {"pace": 0.05, "bytes": 1024, "everybody": True}}}
    links = {"latency": 0.005, "step": 0.1, "slow": {"peer:2": 4}}
    one = passed(tmp_path / "a", **cover, links=links)
    other = passed(tmp_path / "b", **cover, links={"latency": 0.005, "step": 0.2}, codec="top-k", topology="complete")
    shorter = min(len(one), len(other))
    assert shorter > 200
    assert one[:shorter] == other[:shorter]
    assert len(one) != len(other)


def test_what_a_broker_guesses_is_right_without_cover_and_chance_behind_it(tmp_path: Path) -> None:
    slow = {"world": "virtual", "links": {"latency": 0.005, "step": 0.1, "slow": {"peer:2": 4}}, "rounds": 10}
    cover = {"pace": 0.05, "bytes": 2048, "everybody": True}
    bare = ran(tmp_path / "a", **slow)["traffic"]["right"]
    assert (bare["full"]["got"], bare["near"]["got"], bare["slow"]["got"], bare["codec"]["got"]) == (1, 1, 1, 1)
    assert bare["round"]["off"] < 0.01
    hidden = ran(tmp_path / "b", **slow, envelope={"cover": cover})["traffic"]["right"]
    assert hidden["full"]["got"] == hidden["near"]["got"] == 0.5
    assert hidden["slow"]["got"] == hidden["slow"]["floor"] == 0.25
    assert hidden["codec"]["got"] == 0
    assert hidden["round"]["guess"] is None
    near = ran(tmp_path / "c", **slow, envelope={"cover": cover | {"everybody": False}})["traffic"]["right"]
    assert near["full"]["got"] == 0.5
    assert near["near"]["got"] == 1  # who has a line is no secret then


def test_buckets_leave_a_broker_fewer_lengths_and_every_time(tmp_path: Path) -> None:
    slow = {"world": "virtual", "links": {"step": 0.1, "slow": {"peer:2": 4}}}
    bare, padded = (
        ran(tmp_path / name, **slow, envelope={"padding": name})["traffic"] for name in ("none", "power-of-two")
    )
    assert padded["lengths"]["power-of-two"]["entropy"] < bare["lengths"]["none"]["entropy"]
    assert padded["right"]["slow"] == bare["right"]["slow"]
    assert padded["right"]["round"] == bare["right"]["round"]


def test_a_wire_tapper_is_shown_dummies_too(tmp_path: Path) -> None:
    told = ran(tmp_path, world="virtual", adversary={"vantage": "wire"}, **COVER)["traffic"]
    assert told["frames"] > 8 * 6
    assert told["lengths"]["none"]["distinct"] == 1
    assert "presence" not in told  # that is said to the broker
    pooled = ran(tmp_path, world="virtual", adversary={"vantage": "peer:1+relay"}, **COVER)["traffic"]
    assert pooled["frames"] == told["frames"]


def test_a_killed_peer_falls_silent_and_the_others_go_on(tmp_path: Path) -> None:
    faults = [{"at": 0.4, "kill": "peer:2"}]
    told = ran(tmp_path, world="virtual", faults=faults, **COVER)["traffic"]["presence"]["attendance"]
    assert [one["failed"] for one in told] == [[], [], [0.4], []]
    assert [one["left"] is None for one in told] == [False, False, True, False]
    last = max(r.now for r in view_of(tmp_path).records if r.sender == "peer:2")
    assert last <= 0.4


def test_an_attack_on_updates_makes_no_guess_from_a_broker_and_the_report_says_what_it_saw(tmp_path: Path) -> None:
    ran(tmp_path, world="memory", **COVER)
    cast, ids = open_run(tmp_path)
    assert audit(tmp_path, cast, ids, Choice(name="label-recovery"), "broker")["guesses_made"] == 0
    page = write_report(tmp_path).read_text()
    assert "What a relay learns" in page
    assert "Who came and left" in page
    assert "2048 bytes every 0.05 s" in page


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"world": "libp2p"}, "transport.name = mqtt"),
        ({"envelope": {"cover": {"pace": 0}}}, "greater than 0"),
        ({"envelope": {"cover": {"bytes": 4096}}}, "pace"),
        ({"envelope": {"cover": {"pace": 5}}}, "a fourth of timing.silence"),
        ({"envelope": {"cover": {"pace": 1, "bytes": 10}}}, "256"),
        ({"envelope": {"cover": {"pace": 0.1}}, "door": {"open": True}, "adversary": None}, "door.open"),
    ],
)
def test_what_cannot_be_covered_or_seen_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        Scenario.parse(SCENARIO | {"world": "libp2p" if "door" in changes else "virtual"} | changes)


def test_a_broker_whose_frames_were_not_kept_is_no_vantage_afterwards(tmp_path: Path) -> None:
    ran(tmp_path, world="virtual", adversary={"vantage": "peer:1"})
    with pytest.raises(BadInput, match="--malicious broker"):
        view_of(tmp_path)
