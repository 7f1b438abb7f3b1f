"""`veilmesh broker`, and the broker that `veilmesh up` starts for itself: as commands, on every way out."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from brokers import free_port, needs_embedded, needs_mosquitto
from meshes import WAIT, alive, family, rounds_done, up, veilmesh, wait_for
from worlds import assert_same_models

from veilmesh.sim.entry import identity_in
from veilmesh.sim.invite import Invite
from veilmesh.sim.scenario import override

SMALL = {
    "peers": 3, "rounds": 4, "evaluate_every": 2, "strategy.name": "gossip", "training.batch": 4,
    "training.learning_rate": 0.1,
}  # fmt: skip
SET = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
CHUNK = ("--set", "transport.chunk=4096")  # far smaller than a model, so that it takes several
LONG = ("--peers", "2", "--rounds", "100000", "--set", "evaluate_every=100000")
KINDS = [
    pytest.param("mosquitto", marks=needs_mosquitto, id="mosquitto"),
    pytest.param("amqtt", marks=needs_embedded, id="amqtt"),
]

_WITHOUT_MOSQUITTO = """
import sys
from veilmesh.peer.brokers import mosquitto
mosquitto._BESIDES = ()
from veilmesh.cli.main import main
main()
"""


@contextmanager
def a_broker(where: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """`veilmesh broker` that answers, and the options it tells each of its users."""
    with veilmesh(where, "broker", "--port", str(free_port()), *options) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(1 + max(1, options.count("--user")))]
        told = [line.removeprefix("peers: ").strip() for line in said if line.startswith("peers: ")]
        assert told, "".join(said) + process.stdout.read()
        yield process, told


def ended(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=WAIT)
    return str(output)


def refused(where: Path, *arguments: str) -> str:
    """The one sentence of what cannot be."""
    with veilmesh(where, *arguments) as process:
        output = ended(process)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("veilmesh: "), output
    return last


# --- veilmesh broker -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--tls", "--user", "lab"), marks=needs_mosquitto, id="mosquitto"),
        pytest.param(("--tls", "--embedded"), marks=[needs_embedded, pytest.mark.slow], id="amqtt"),
    ],
)
def test_a_mesh_through_it_comes_to_the_same_bits(tmp_path: Path, options: tuple[str, ...]) -> None:
    """By the line it prints, and nothing else; when it is interrupted, nothing is left of it."""
    with a_broker(tmp_path, *options) as (running, told):
        assert "transport.tls=true" in told[0]
        with up(tmp_path / "mesh", *SET, *CHUNK, *shlex.split(told[0])) as process:
            output = ended(process)
        assert process.returncode == 0, output
        assert "channel tls" in output
        started = family(running.pid)
        assert len(started) == 2
        running.send_signal(signal.SIGINT)
        assert "Traceback" not in ended(running)
        assert running.returncode == 0
        assert not alive(started)
    assert_same_models(tmp_path / "mesh", override({}, SMALL))


@needs_mosquitto
def test_it_ends_as_a_service_is_ended_and_goes_on_with_its_users(tmp_path: Path) -> None:
    with a_broker(tmp_path, "--user", "lab", "--user", "home") as (running, told):
        assert len(told) == 2
        first = (tmp_path / "broker" / "users" / "lab").read_text()
        started = family(running.pid)
        running.send_signal(signal.SIGTERM)
        ended(running)
        assert running.returncode == 0
        assert not alive(started)
    with a_broker(tmp_path) as (_, told):
        assert re.search(r"transport.username=(home|lab)", told[0])
        assert (tmp_path / "broker" / "users" / "lab").read_text() == first


@needs_mosquitto
def test_a_broker_that_ends_by_itself_is_said(tmp_path: Path) -> None:
    with a_broker(tmp_path) as (running, _):
        [child] = family(running.pid)[1:]
        child.kill()
        assert "veilmesh: The broker ended" in ended(running)
        assert running.returncode == 2


def test_it_writes_and_starts_nothing(tmp_path: Path) -> None:
    with veilmesh(tmp_path, "broker", "--write-only", "--tls", "--user", "lab", "--folder", "here") as process:
        output = ended(process)
    assert process.returncode == 0, output
    wrote = re.findall(r"^wrote (.*)$", output, flags=re.MULTILINE)
    assert {"here/mosquitto.conf", "here/ca.pem", "here/users/lab"} <= set(wrote)
    assert all((tmp_path / path).exists() for path in wrote)
    assert "--set transport.password_file=here/users/lab" in output


def test_limits_are_written_and_told_to_peers(tmp_path: Path) -> None:
    asked = ("--limit", "message_bytes=64KiB", "--limit", "connections=7")
    with veilmesh(tmp_path, "broker", "--write-only", *asked) as process:
        output = ended(process)
    assert process.returncode == 0, output
    written = (tmp_path / "broker" / "mosquitto.conf").read_text().splitlines()
    assert {"message_size_limit 65536", "max_connections 7"} <= set(written)
    assert f"--set transport.chunk={65536 - 4096}" in output


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    assert "--user" in refused(tmp_path, "broker", "--listen", "0.0.0.0")
    assert "--tls" in refused(tmp_path, "broker", "--listen", "0.0.0.0", "--user", "lab")
    assert "'many' is no limit" in refused(tmp_path, "broker", "--limit", "many")
    assert "carries nothing" in refused(tmp_path, "broker", "--limit", "inflight=0")
    assert "no use to a mesh" in refused(tmp_path, "broker", "--limit", "message_bytes=100")
    assert "connections only" in refused(tmp_path, "broker", "--embedded", "--limit", "inflight=5")
    assert "knows no users" in refused(tmp_path, "broker", "--embedded", "--user", "lab")
    assert "transport.broker" in refused(tmp_path, "up", "--transport", "mqtt", "--set", "transport.tls=true")


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_in_use_is_one_sentence(tmp_path: Path, kind: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--embedded"] if kind == "amqtt" else []
        assert "Address already in use" in refused(tmp_path, "broker", "--port", port, *options)


# --- veilmesh up ---------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_up_starts_a_broker_of_its_own(tmp_path: Path) -> None:
    with up(tmp_path / "mesh", "--transport", "mqtt", *SET, *CHUNK) as process:
        wait_for(lambda: rounds_done(tmp_path / "mesh") or process.poll() is not None, "a round")
        output = ended(process)
    assert process.returncode == 0, output
    assert "mqtt 5, untrusted" in output
    assert_same_models(tmp_path / "mesh", override({}, SMALL))
    recorded = json.loads((tmp_path / "mesh" / "run.json").read_text())["scenario"]["transport"]
    assert "broker" not in recorded  # a port of this very run
    assert not (tmp_path / "mesh" / "broker").exists()


@pytest.mark.slow
@needs_embedded
def test_up_starts_the_embedded_broker_where_there_is_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_MOSQUITTO, "up", "--transport", "mqtt", *SET, *CHUNK, "--out", "mesh"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mqtt 3.1.1, untrusted" in done.stdout
    assert_same_models(tmp_path / "mesh", override({}, SMALL))
    command += ["--set", "transport.protocol='5'"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2
    assert "3.1.1 only" in done.stderr


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_own_broker_ends_with_the_mesh(tmp_path: Path, how: signal.Signals) -> None:
    with up(tmp_path / "mesh", "--transport", "mqtt", *LONG) as process:
        wait_for(lambda: rounds_done(tmp_path / "mesh") > 3, "a few rounds")
        started = family(process.pid)
        assert [one for one in started if "mosquitto" in one.name()]
        process.send_signal(how)
        ended(process)
        psutil.wait_procs(started, timeout=WAIT)
        assert not alive(started)


@pytest.mark.slow
@needs_mosquitto
def test_its_own_broker_is_started_again_if_it_is_killed(tmp_path: Path) -> None:
    with up(tmp_path / "mesh", "--transport", "mqtt", *LONG) as process:
        for _ in range(2):
            before = rounds_done(tmp_path / "mesh")
            wait_for(lambda least=before + 5: rounds_done(tmp_path / "mesh") > least, "a few rounds")
            [relay] = [one for one in family(process.pid) if "mosquitto" in one.name()]
            relay.kill()
        before = rounds_done(tmp_path / "mesh")
        wait_for(lambda: rounds_done(tmp_path / "mesh") > before + 5, "a few rounds more")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_newcomer_joins_over_mqtt_by_one_string(tmp_path: Path, kind: str) -> None:
    """The invite names the broker that the mesh started for itself."""
    mesh, guest = tmp_path / "mesh", tmp_path / "guest"
    where: tuple[str, ...] = ("--transport", "mqtt")
    with relayed(tmp_path, kind) as given, up(mesh, "--open", *where, *given, *LONG) as process:
        wait_for(lambda: (rounds_done(mesh) > 5 and (mesh / "invite").exists()) or process.poll() is not None, "a mesh")
        text = (mesh / "invite").read_text().strip()
        assert "broker" in Invite.parse(text).scenario["transport"]
        with veilmesh(tmp_path, "join", text, "--out", str(guest), "--shard", "1") as joining:
            wait_for(lambda: rounds_done(guest) > 20, "a newcomer that trains")
            [joined] = events(guest, "joined")
            assert joined["verified"] is True
            wait_for(lambda: groups(mesh, 4) == {3}, "three in every group")
            joining.send_signal(signal.SIGINT)
            output = ended(joining)
        assert joining.returncode == 130
        assert "left" in output
        wait_for(lambda: groups(mesh, 4) == {2}, "two in every group again")


@pytest.mark.slow
@needs_mosquitto
def test_a_newcomer_comes_by_its_own_name_to_a_broker_that_asks_for_one(tmp_path: Path) -> None:
    """The invite says where the broker is; who one is there, and what to check it by, each machine has for itself."""
    mesh, guest, me = tmp_path / "mesh", tmp_path / "guest", identity_in(tmp_path / "me.key").peer
    with a_broker(tmp_path, "--tls", "--user", "lab", "--user", me) as (_, told):
        ours, mine = (shlex.split(next(line for line in told if f"username={who} " in line)) for who in ("lab", me))
        with up(mesh, "--open", *ours, *LONG):
            wait_for(lambda: rounds_done(mesh) > 5 and (mesh / "invite").exists(), "a mesh")
            text = (mesh / "invite").read_text().strip()
            assert Invite.parse(text).scenario["transport"].keys() == {"name", "broker", "tls"}
            joins = ["join", text, "--identity", "me.key", "--out", "guest"]
            with veilmesh(tmp_path, *joins, *mine):
                wait_for(lambda: rounds_done(guest) > 20, "a newcomer that trains")
                wait_for(lambda: groups(mesh, 4) == {3}, "three in every group")
            nameless = mine[: mine.index(f"transport.username={me}") - 1]
            assert "refuses this peer" in refused(tmp_path, *joins, *nameless)


@contextmanager
def relayed(where: Path, kind: str) -> Iterator[list[str]]:
    """What makes a mesh use that kind of broker: mosquitto, which is here, by itself."""
    if kind == "mosquitto":
        yield []
        return
    with a_broker(where, "--embedded") as (_, told):
        yield shlex.split(told[0])


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["kind"] == kind]


def groups(folder: Path, last: int) -> set[int]:
    return {event["group"] for event in events(folder, "round")[-last:]}


@needs_mosquitto
@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_with_another_broker_of_its_own(tmp_path: Path) -> None:
    kept = ("--set", "checkpoints.every=1", "--set", "rounds=60")
    with up(tmp_path / "mesh", "--transport", "mqtt", *SET, *kept) as process:
        wait_for(lambda: rounds_done(tmp_path / "mesh") > 3, "a few rounds")
        process.kill()
        ended(process)
    with veilmesh(tmp_path, "up", "--resume", "mesh") as process:
        output = ended(process)
    assert process.returncode == 0, output
    assert "from round" in output
    assert not (tmp_path / "mesh" / "broker").exists()


@needs_mosquitto
def test_one_joins_without_a_broker_of_its_own(tmp_path: Path) -> None:
    """An invite over MQTT that names no broker starts none: nobody would be there."""
    from veilmesh.crypto.identity import Identity

    contacts = {(peer := Identity.from_seed(bytes(32)).peer): f"mqtt://127.0.0.1:1/veilmesh/{peer}"}
    scenario = {**override({}, SMALL), "transport": "mqtt", "door": {"open": True}}
    text = Invite(bytes(16), bytes(32), contacts, scenario).to_string()
    assert "transport.broker" in refused(tmp_path, "join", text)
