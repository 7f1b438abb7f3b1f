"""Real processes over real libp2p: the same model as everywhere else, and nothing left behind however it ends."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import psutil
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from meshes import WAIT, alive, family, members, rounds_done, up, wait_for

from veilmesh.crypto.envelope import Card, Mailroom
from veilmesh.crypto.identity import Identity, public_key
from veilmesh.peer.machine import PeerId
from veilmesh.peer.store import load_parameters
from veilmesh.peer.transcript import Record, read_transcript
from veilmesh.peer.transports.base import MAX_FRAME, TRANSPORTS
from veilmesh.peer.transports.libp2p import Libp2pTransport
from veilmesh.sim.cast import Cast
from veilmesh.sim.memory import run_in_memory
from veilmesh.sim.scenario import Scenario
from veilmesh.sim.virtual import run_in_virtual_time
from veilmesh.swarm import messages


@pytest.mark.parametrize(
    ("strategy", "codec", "noise"),
    [
        ("gossip", "dense", 0.0),
        pytest.param({"name": "gossip", "step": 0.2}, "top-k", 1.0, marks=pytest.mark.slow),
        pytest.param("fedavg", "8-bit", 0.0, marks=pytest.mark.slow),
        ("secure-groups", "dense", 0.0),  # whatever the masks are, and they are drawn from the system over libp2p
        pytest.param("blind-proxy", "dense", 0.0, marks=pytest.mark.slow),
        pytest.param({"name": "ring-all-reduce", "order": "drawn"}, "dense", 1.0, marks=pytest.mark.slow),
    ],
)
def test_five_peers_give_the_same_bits_in_every_world(tmp_path: Path, strategy: Any, codec: str, noise: float) -> None:
    if strategy == "blind-proxy":
        pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
    data = {
        "rounds": 6,
        "evaluate_every": 3,
        "strategy": strategy,
        "codec": codec,
        "guards": [{"name": "noise", "ratio": noise}],
        "training": {"batch": 4, "local_steps": 1 if strategy != "fedavg" else 3, "learning_rate": 0.1},
    }
    with up(tmp_path / "libp2p", "--scenario", str(scenario_file(tmp_path, data))) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    for world, run in {"virtual": run_in_virtual_time, "memory": run_in_memory}.items():
        run(Cast.prepare(Scenario.parse({**data, "world": world})), tmp_path / world, lambda *heard: None)
    names = sorted(p.name for p in (tmp_path / "libp2p" / "checkpoints").iterdir())
    assert len(names) == (6 if strategy == "fedavg" else 5)
    for name in names:
        models = [load_parameters(tmp_path / w / "checkpoints" / name) for w in ("libp2p", "memory", "virtual")]
        assert models[0].tobytes() == models[1].tobytes() == models[2].tobytes(), name


def scenario_file(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps({"scenario": data}))
    return path


def test_a_killed_peer_is_noticed_and_the_others_finish(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--peers", "4", "--rounds", "150", "--set", "training.batch=1", "--set", "timing.silence=8")
    with up(folder, *options) as process:
        wait_for(lambda: rounds_done(folder) >= 5, "the fifth round")
        victim = members(folder)[2]["pid"]
        everybody = family(process.pid)
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    peers = json.loads((folder / "summary.json").read_text())["peers"]
    assert [p["ended"] for p in peers] == ["finished", "finished", "killed (SIGKILL)", "finished"]
    assert [p["rounds"] for p in peers if p["index"] != 2] == [150] * 3
    assert "peer:2, after" in output
    assert "killed (SIGKILL)" in output
    wait_for(lambda: not alive(everybody), "every process to end")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "run"
    with up(folder, "--peers", "3", "--rounds", "100000", "--set", "training.batch=1") as process:
        wait_for(lambda: rounds_done(folder) >= 3, "the third round")
        everybody = family(process.pid)
        assert len(everybody) == 1 + 3 + 3  # itself, its peers, and a worker each
        process.send_signal(how)
        process.communicate(timeout=WAIT)
        wait_for(lambda: not alive(everybody), "every process to end")


def test_ctrl_c_ends_a_mesh_and_keeps_what_there_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with up(folder, "--peers", "3", "--rounds", "100000", "--set", "training.batch=1") as process:
        wait_for(lambda: rounds_done(folder) >= 3, "the third round")
        everybody = family(process.pid)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT)
        assert "stopped by Ctrl-C" in output
        assert "Traceback" not in output
        wait_for(lambda: not alive(everybody), "every process to end")
    assert (folder / "report.html").exists()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose every frame was kept."""
    folder = tmp_path_factory.mktemp("wire") / "run"
    options = ("--peers", "3", "--rounds", "4", "--set", "transcript.keep=all", "--set", "training.batch=1")
    with up(folder, *options) as process:
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    return folder


def frames(folder: Path) -> list[Record]:
    return [r for r in read_transcript(folder / "transcript") if r.frame is not None]


def test_what_a_tap_sees_holds_no_float_of_any_update(wire: Path) -> None:
    seen = frames(wire)
    bodies = [messages.decode(r.body) for r in seen if r.body]
    updates = [np.frombuffer(b.blob[1:], dtype="<f4") for b in bodies if isinstance(b, messages.Update)]
    assert len(updates) == 3 * 2 * 4
    ciphertext = b"".join(r.frame for r in seen if r.frame)
    # Four bytes occur in a megabyte of noise by chance; eight, two neighbouring coordinates, do not.
    pairs = {u[i : i + 2].tobytes() for u in updates for i in range(0, len(u) - 1, 2) if u[i] and u[i + 1]}
    assert len(pairs) > 10_000
    windows = {ciphertext[i : i + 8] for i in range(len(ciphertext) - 7)}
    assert not pairs & windows
    # The search itself works: it finds them in what the receivers opened.
    plain = b"".join(r.body for r in seen if r.body)
    assert len(pairs & {plain[i : i + 8] for i in range(len(plain) - 7)}) > 10_000


def test_bytes_are_those_of_the_sockets(wire: Path) -> None:
    peers = json.loads((wire / "summary.json").read_text())["peers"]
    carried = sum(r.size for r in frames(wire))
    sent, received = sum(p["bytes_sent"] for p in peers), sum(p["bytes_received"] for p in peers)
    assert sent > carried  # noise, yamux, handshakes and presence are on the wire too
    assert sent < 1.6 * carried
    assert abs(sent - received) < 0.02 * sent  # what one socket writes another reads, up to the last goodbyes


def test_a_stranger_with_bad_frames_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--peers", "3", "--rounds", "400", "--set", "transcript.keep=all", "--set", "training.batch=1")
    with up(folder, *options) as process:
        wait_for(lambda: rounds_done(folder) >= 20, "the twentieth round")
        anyio.run(attack_on_the_wire, folder, backend="trio")
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    peers = json.loads((folder / "summary.json").read_text())["peers"]
    assert [p["ended"] for p in peers] == ["finished"] * 3
    assert {"replay", "bad-signature", "truncated", "stranger"} <= set(peers[0]["refusals"])
    assert peers[0]["refusals"]["transport"] >= 1  # the oversized one never became a frame
    noted = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {n["why"] for n in noted if n["kind"] == "refused"} >= {"replay", "bad-signature", "truncated", "stranger"}


async def attack_on_the_wire(folder: Path) -> None:
    """A libp2p peer of nobody's roster, which has tapped the wire, talks to peer 0."""
    recorded = (folder / "transcript" / "peer-0.records").read_bytes()
    frame = first_frame(recorded)
    target = PeerId(members(folder)[0]["id"])
    rogue = Identity.generate()
    bad = {
        "replayed": frame,
        "flipped": frame[:200] + bytes([frame[200] ^ 1]) + frame[201:],
        "truncated": frame[:-7],
        "foreign": foreign(rogue, target, frame),
    }
    transport = TRANSPORTS.build("libp2p", {}).make(rogue)
    async with transport.open():
        transport.introduce({target: address_of(folder, target)})
        for data in bad.values():
            await transport.send(target, data)
        await anyio.sleep(0.5)
    await oversized(rogue, target, folder)


def first_frame(recorded: bytes) -> bytes:
    at = 0
    while at < len(recorded):
        size = int.from_bytes(recorded[at : at + 4], "big")
        record = msgspec.msgpack.decode(recorded[at + 4 : at + 4 + size], type=Record)
        if record.frame:
            return record.frame
        at += 4 + size
    raise AssertionError("no frame was recorded")


def foreign(rogue: Identity, target: PeerId, frame: bytes) -> bytes:
    """Well formed, sealed and signed, for the right run and receiver; only its sender is nobody."""
    run = frame[5:21]
    mailroom = Mailroom(rogue, X25519PrivateKey.generate(), run)
    there = Identity.generate()
    mailroom.admit(Card.issue(there, X25519PrivateKey.generate().public_key().public_bytes_raw(), run, ""))
    sealed = bytearray(mailroom.seal(there.peer, 1, b"let me in"))
    at = bytes(sealed).index(there.public)
    sealed[at : at + 32] = public_key(target)
    return bytes(sealed)


def address_of(folder: Path, target: PeerId) -> str:
    pid = next(m["pid"] for m in members(folder) if m["id"] == target)
    [port] = {c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{target}"


async def oversized(rogue: Identity, target: PeerId, folder: Path) -> None:
    """A frame longer than anybody takes: refused at its announcement, not when memory is full."""
    transport = Libp2pTransport(rogue, max_frame=1 << 30)
    async with transport.open():
        transport.introduce({target: address_of(folder, target)})
        await transport.send(target, bytes(MAX_FRAME + 1))
        await anyio.sleep(0.5)
