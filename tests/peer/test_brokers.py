"""Brokers that are configured and started here: who may do what at them, what they take, and when they end."""

import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from brokers import free_port, needs_embedded, needs_mosquitto

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.brokers import mosquitto
from veilmesh.peer.brokers.certificates import AUTHORITY
from veilmesh.peer.brokers.mosquitto import USERS, known_users, write_configuration
from veilmesh.peer.brokers.own import own_broker
from veilmesh.peer.brokers.process import LOG, BrokerProcess, broker_command
from veilmesh.peer.brokers.settings import BrokerSettings, Limits
from veilmesh.peer.transports.base import Frame
from veilmesh.peer.transports.mqtt import Mqtt

PATIENCE = 60.0
QUIET = 0.4  # seconds in which what is denied would have arrived
A, B = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))
USERS_OF_TWO = (A.peer, B.peer)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            await scene()

    anyio.run(patiently, backend="asyncio")


@contextmanager
def running(folder: Path, *, embedded: bool = False, **changes: Any) -> Iterator[BrokerSettings]:
    settings = BrokerSettings(port=free_port(), **changes)
    command = broker_command(folder, settings, embedded=embedded)
    with BrokerProcess(command, (settings.door, settings.port), folder / LOG):
        yield settings


def client(folder: Path, settings: BrokerSettings, user: str | None = None, **changes: Any) -> Any:
    """Any MQTT client, as that user."""
    import aiomqtt

    if user:
        changes |= {"username": user, "password": (folder / USERS / user).read_text().strip()}
    if settings.tls:
        changes["tls_context"] = ssl.create_default_context(cafile=str(folder / AUTHORITY))
    options = {"protocol": aiomqtt.ProtocolVersion.V5, **changes}
    return aiomqtt.Client(settings.door, settings.port, **options)


async def heard(listener: Any, *topics: str, until: bytes) -> list[tuple[str, bytes]]:
    """What arrives of `topics`, up to a last message; what is denied would be among it."""
    found: list[tuple[str, bytes]] = []
    async for message in listener.messages:
        found.append((str(message.topic), bytes(message.payload)))
        if message.payload == until:
            return found
    raise AssertionError("the connection ended")


# --- who may do what ---------------------------------------------------------------------------------------------


@needs_mosquitto
def test_a_peer_cannot_publish_as_another_one(tmp_path: Path) -> None:
    """Denials are silent, so what counts is what arrives: of all that A says, only what it says in its own name."""

    async def scene(settings: BrokerSettings) -> None:
        async with client(tmp_path, settings, A.peer) as a, client(tmp_path, settings, B.peer) as b:
            await b.subscribe(f"veilmesh/to/{B.peer}/+", qos=1)
            await b.subscribe("veilmesh/presence/+", qos=1)
            for topic in (
                f"veilmesh/to/{B.peer}/{B.peer}", f"veilmesh/to/{B.peer}/somebody", f"veilmesh/presence/{B.peer}",
                "veilmesh/presence/somebody", "veilmesh/elsewhere", f"veilmesh/to/{B.peer}",
            ):  # fmt: skip
                await a.publish(topic, b"in another's name", qos=1, retain=True)
            await a.publish(f"veilmesh/presence/{A.peer}", b"here", qos=1)
            await a.publish(f"veilmesh/to/{B.peer}/{A.peer}", b"the last", qos=1)
            assert await heard(b, until=b"the last") == [
                (f"veilmesh/presence/{A.peer}", b"here"),
                (f"veilmesh/to/{B.peer}/{A.peer}", b"the last"),
            ]

    with running(tmp_path, tls=True, users=USERS_OF_TWO) as settings:
        run(lambda: scene(settings))


@needs_mosquitto
def test_a_peer_cannot_read_anothers_inbox_whatever_it_subscribes_to(tmp_path: Path) -> None:
    async def scene(settings: BrokerSettings) -> None:
        async with client(tmp_path, settings, A.peer) as a, client(tmp_path, settings, B.peer) as b:
            for topic in ("#", "veilmesh/#", f"veilmesh/to/{B.peer}/+", "veilmesh/to/+/+", "$SYS/#"):
                await a.subscribe(topic, qos=1)
            await b.publish(f"veilmesh/to/{B.peer}/{B.peer}", b"to itself", qos=1)
            await b.publish(f"veilmesh/to/{A.peer}/{B.peer}", b"the last", qos=1)
            assert {topic for topic, _ in await heard(a, until=b"the last")} == {f"veilmesh/to/{A.peer}/{B.peer}"}

    with running(tmp_path, users=USERS_OF_TWO) as settings:
        run(lambda: scene(settings))


@needs_mosquitto
def test_a_peer_cannot_take_over_anothers_session(tmp_path: Path) -> None:
    """MQTT lets whoever names the same client id have what waits there; where users are peers, names are theirs."""

    async def scene(settings: BrokerSettings) -> None:
        async with client(tmp_path, settings, B.peer, identifier="veilmesh-b") as b:
            await b.subscribe(f"veilmesh/to/{B.peer}/+", qos=1)
            async with client(tmp_path, settings, A.peer, identifier="veilmesh-b", clean_start=False) as thief:
                await thief.publish(f"veilmesh/to/{B.peer}/{A.peer}", b"still there", qos=1)
                assert await heard(b, until=b"still there")

    with running(tmp_path, users=USERS_OF_TWO) as settings:
        run(lambda: scene(settings))


@needs_mosquitto
def test_nobody_comes_in_without_a_password_and_a_user_keeps_its_own(tmp_path: Path) -> None:
    import aiomqtt

    async def scene(settings: BrokerSettings) -> None:
        for wrong in ({}, {"username": A.peer}, {"username": A.peer, "password": "x"}, {"username": "c"}):
            with pytest.raises(aiomqtt.MqttError):
                async with client(tmp_path, settings, None, **wrong):
                    raise AssertionError(wrong)
        async with client(tmp_path, settings, A.peer):
            pass

    with running(tmp_path, users=(A.peer,)) as settings:
        run(lambda: scene(settings))
        first = (tmp_path / USERS / A.peer).read_text()
    with running(tmp_path, users=(*known_users(tmp_path), "lab")) as settings:
        run(lambda: scene(settings))
        assert (tmp_path / USERS / A.peer).read_text() == first
        assert settings.users == (A.peer, "lab")
        assert not settings.holds_sessions


@needs_mosquitto
@pytest.mark.parametrize("users", [(A.peer, B.peer), ("lab",), ()], ids=["peers", "shared", "anybody"])
def test_peers_meet_there_over_tls(tmp_path: Path, users: tuple[str, ...]) -> None:
    async def scene(settings: BrokerSettings) -> None:
        def own(who: Identity, **changes: Any) -> Any:
            user = None if not users else who.peer if who.peer in users else users[0]
            given = {"username": user, "password_file": str(tmp_path / USERS / user)} if user else {}
            shared = {"broker": settings.place, "tls": True, "ca": str(tmp_path / AUTHORITY)}
            return Mqtt(**{**shared, **given, **changes}).make(who)

        a, b = own(A), own(B)
        async with a.open(), b.open() as to_b:
            for one in (a, b):
                one.introduce({A.peer: a.address, B.peer: b.address})
            await a.send(B.peer, bytes(3_000_000))
            arrival = await anext(to_b)
            assert isinstance(arrival, Frame)
            assert arrival.data == bytes(3_000_000)
        with pytest.raises(BadInput, match=r"broker at .*certificate"):
            async with own(A, ca=None).open():
                raise AssertionError("the system's authorities vouched for it")

    with running(tmp_path, tls=True, users=users) as settings:
        run(lambda: scene(settings))


@needs_embedded
def test_the_embedded_broker_speaks_tls_too(tmp_path: Path) -> None:
    async def scene(settings: BrokerSettings) -> None:
        shared = {"broker": settings.place, "tls": True, "ca": str(tmp_path / AUTHORITY), "protocol": "3.1.1"}
        a, b = (Mqtt(**shared).make(who) for who in (A, B))
        async with a.open(), b.open() as to_b:
            for one in (a, b):
                one.introduce({A.peer: a.address, B.peer: b.address})
            await a.send(B.peer, bytes(3_000_000))
            assert isinstance(await anext(to_b), Frame)

    with running(tmp_path, embedded=True, tls=True) as settings:
        run(lambda: scene(settings))


# --- how much it takes, and what it keeps --------------------------------------------------------------------------


@needs_mosquitto
def test_what_is_too_large_does_not_arrive(tmp_path: Path) -> None:
    async def scene(settings: BrokerSettings) -> None:
        import aiomqtt

        topic = f"veilmesh/to/{B.peer}/{A.peer}"
        async with client(tmp_path, settings) as b:
            await b.subscribe(f"veilmesh/to/{B.peer}/+", qos=1)
            async with client(tmp_path, settings, timeout=1.0) as a:
                with pytest.raises(aiomqtt.MqttError):
                    await a.publish(topic, bytes(8193), qos=1)
            async with client(tmp_path, settings) as a:
                await a.publish(topic, bytes(8192), qos=1)
            assert await heard(b, until=bytes(8192)) == [(topic, bytes(8192))]

    with running(tmp_path, limits=Limits(message_bytes=8192)) as settings:
        run(lambda: scene(settings))


@needs_mosquitto
def test_only_so_many_connect(tmp_path: Path) -> None:
    async def scene(settings: BrokerSettings) -> None:
        import aiomqtt

        async with AsyncExitStack() as those_in:
            for _ in range(3):  # mosquitto 2.0 lets in one more than it is told
                await those_in.enter_async_context(client(tmp_path, settings))
            with pytest.raises(aiomqtt.MqttError):
                await those_in.enter_async_context(client(tmp_path, settings, timeout=1.0))

    with running(tmp_path, limits=Limits(connections=2)) as settings:
        run(lambda: scene(settings))


@needs_mosquitto
def test_what_waits_for_a_peer_is_bounded(tmp_path: Path) -> None:
    async def scene(settings: BrokerSettings) -> None:
        topic = f"veilmesh/to/{B.peer}/{A.peer}"
        properties = _session_of(600)
        async with client(tmp_path, settings, identifier="b", properties=properties) as b:
            await b.subscribe(f"veilmesh/to/{B.peer}/+", qos=1)
        async with client(tmp_path, settings) as a:
            for n in range(30):
                await a.publish(topic, b"%d" % n, qos=1)
        async with client(tmp_path, settings, identifier="b", clean_start=False, properties=properties) as b:
            with anyio.move_on_after(QUIET):
                waited = 0
                async for _ in b.messages:
                    waited += 1
            assert waited == 7

    with running(tmp_path, limits=Limits(inflight=5, queued_messages=7)) as settings:
        run(lambda: scene(settings))


def _session_of(seconds: int) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    made = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves its hints out here
    made.SessionExpiryInterval = seconds
    return made


@needs_mosquitto
@pytest.mark.parametrize("keeps", [True, False])
def test_what_it_retains_survives_its_restart_if_it_is_to(tmp_path: Path, keeps: bool) -> None:
    async def say(settings: BrokerSettings) -> None:
        async with client(tmp_path, settings) as a:
            await a.publish("veilmesh/presence/a", b"here", qos=1, retain=True)

    async def listen(settings: BrokerSettings) -> None:
        async with client(tmp_path, settings) as b:
            await b.subscribe("veilmesh/presence/+", qos=1)
            with anyio.move_on_after(QUIET) as quiet:
                await heard(b, until=b"here")
            assert quiet.cancelled_caught != keeps

    for scene in (say, listen):
        with running(tmp_path, keeps=keeps) as settings:
            run(lambda: scene(settings))  # noqa: B023  # run at once


# --- what is written -----------------------------------------------------------------------------------------------


def test_secrets_are_for_the_owner_and_peers_can_go_on_with_the_authority_they_have(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    settings = BrokerSettings(tls=True, users=(A.peer, "lab"))
    files = write_configuration(folder, settings)
    assert {path.name for path in files} >= {"mosquitto.conf", "passwords", "access", AUTHORITY, A.peer, "lab"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    open_files = {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077}
    assert open_files == {AUTHORITY, "broker.pem"}
    authority = (folder / AUTHORITY).read_bytes()
    password = (folder / USERS / "lab").read_text().strip()
    assert all(password not in path.read_text() for path in files if path.parent == folder)
    write_configuration(folder, settings)
    assert (folder / AUTHORITY).read_bytes() == authority
    assert (folder / USERS / "lab").read_text().strip() == password


@needs_mosquitto
def test_a_folder_with_a_space_is_no_trouble(tmp_path: Path) -> None:
    with running(tmp_path / "with a space", tls=True, users=("lab",)) as settings:
        run(lambda: _come_and_go(tmp_path / "with a space", settings))


async def _come_and_go(folder: Path, settings: BrokerSettings) -> None:
    async with client(folder, settings, "lab"):
        pass


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"host": "0.0.0.0"}, "would serve anybody"),
        ({"host": "192.0.2.1", "users": ("lab",)}, "in the clear"),
        ({"users": ("a/b",)}, "no user name"),
        ({"users": ("..",)}, "no user name"),
        ({"users": ("a\ntopic readwrite #",)}, "no user name"),
        ({"prefix": "#"}, "cannot begin topics"),
        ({"prefix": "a\nb"}, "cannot begin topics"),
        ({"host": "127.0.0.1\nallow_anonymous true"}, "no name or address"),
        ({"names": ("a b",)}, "no name or address"),
        ({"port": 0}, "no port"),
    ],
)
def test_what_cannot_be_or_lets_strangers_in_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        BrokerSettings(**changes)


def test_a_broker_for_others_names_this_machine(tmp_path: Path) -> None:
    from cryptography import x509

    settings = BrokerSettings(host="0.0.0.0", tls=True, users=("lab",))
    write_configuration(tmp_path, settings)
    made = x509.load_pem_x509_certificate((tmp_path / "broker.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    said = {str(name.value) for name in names}
    assert said == {*settings.known_as}
    assert settings.place == f"{settings.known_as[0]}:1883"
    assert BrokerSettings(host="::1", port=2).place == "[::1]:2"


def test_what_is_no_authority_is_not_written_over(tmp_path: Path) -> None:
    settings = BrokerSettings(tls=True)
    write_configuration(tmp_path, settings)
    (tmp_path / AUTHORITY).write_text("something else")
    with pytest.raises(BadInput, match="another folder"):
        write_configuration(tmp_path, settings)


# --- starting and ending -------------------------------------------------------------------------------------------


@needs_mosquitto
def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with running(tmp_path) as settings:
        taken = BrokerProcess(["never"], (settings.door, settings.port), tmp_path / "log")
        with pytest.raises(BadInput, match="Address already in use"):
            taken.start()
    (tmp_path / "bad.conf").write_text("no_such_option true\n")
    command = [str(mosquitto.find_mosquitto()), "-c", str(tmp_path / "bad.conf")]
    with pytest.raises(BadInput, match=r"no_such_option|onfiguration"):
        BrokerProcess(command, ("127.0.0.1", free_port()), tmp_path / "log").start()
    with pytest.raises(BadInput, match="knows no users"):
        broker_command(tmp_path, BrokerSettings(users=("lab",)), embedded=True)


@pytest.mark.parametrize(
    "embedded", [pytest.param(False, marks=needs_mosquitto), pytest.param(True, marks=needs_embedded)]
)
def test_one_for_a_run_leaves_nothing_behind_and_is_started_again_if_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, embedded: bool
) -> None:
    if embedded:
        monkeypatch.setattr(mosquitto, "_BESIDES", ())
        monkeypatch.setenv("PATH", str(tmp_path))
    with own_broker(tmp_path / "own") as own:
        assert (tmp_path / "own" / LOG).exists()
        assert own.protocol == ("3.1.1" if embedded else "5")
        first = own.process.pid
        assert first is not None
        own.tend()
        assert own.process.pid == first
        os.kill(first, signal.SIGKILL)
        while own.process.ended() is None:
            time.sleep(0.01)
        own.tend()
        second = own.process.pid
        assert second not in (None, first)
    assert not psutil.pid_exists(second or 0)
    assert not (tmp_path / "own").exists()


_PARENT = """
import sys, time
from pathlib import Path
from veilmesh.peer.brokers import mosquitto
from veilmesh.peer.brokers.own import own_broker
if sys.argv[1] == "embedded":
    mosquitto._BESIDES = ()
with own_broker(Path(sys.argv[2])) as own:
    print(own.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "kind", [pytest.param("mosquitto", marks=needs_mosquitto), pytest.param("embedded", marks=needs_embedded)]
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel sees to it on Linux only")
def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path, kind: str, how: signal.Signals) -> None:
    path = {"PATH": str(tmp_path)} if kind == "embedded" else {}
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, kind, str(tmp_path / "own")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **path},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        broker = psutil.Process(pid)
        process.send_signal(how)
        process.wait(PATIENCE)
        psutil.wait_procs([broker], timeout=PATIENCE)
        assert not broker.is_running()
    finally:
        process.kill()
        process.communicate()


def test_where_there_is_no_broker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mosquitto, "_BESIDES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "amqtt", None)
    with pytest.raises(BadInput, match="install the package mosquitto"), own_broker(tmp_path):
        raise AssertionError("there is one")
