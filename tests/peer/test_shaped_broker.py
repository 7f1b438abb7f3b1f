"""A broker behind a slow link: reached through it, called by its own name, and checked by its own certificate."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from brokers import broker, needs_mosquitto, tls_files

from veilmesh.core import BadInput
from veilmesh.crypto.identity import Identity
from veilmesh.peer.processes import Link
from veilmesh.peer.shaping import Pace
from veilmesh.peer.shaping_relay import Shaper
from veilmesh.peer.transports.mqtt import Mqtt
from veilmesh.peer.transports.shaped import Brokered


@contextmanager
def slow_link(host: str) -> Iterator[Link]:
    """A shaper that listens on `host`, in a thread of this process, and what the peer says to it."""
    ours, theirs = socket.socketpair()
    link, other = Link(ours), Link(theirs)
    thread = threading.Thread(target=lambda: Shaper(Pace(50e6, 0.001), host, other).run(), daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.close()
        thread.join(20)
    assert not thread.is_alive()


def asked(link: Link, question: dict[str, object]) -> dict[str, object]:
    link.send(question)
    return dict(link.receive())


async def opened(kind: Mqtt, link: Link, host: str) -> str:
    """Open a transport behind a slow link that listens on `host`; its address."""
    made = kind.make(Identity.generate())
    assert isinstance(made, Brokered)
    made.reach_by(lambda place: (host, int(str(asked(link, {"way": place})["port"]))))
    with anyio.fail_after(20):
        async with made.open():
            assert all(asked(link, {"carried": True})["carried"])  # type: ignore[call-overload]  # two numbers
            return made.address


@needs_mosquitto
@pytest.mark.skipif(sys.platform != "linux", reason="this system has one loopback address")
def test_a_certificate_is_the_brokers_wherever_the_link_listens(tmp_path: Path) -> None:
    with broker(tmp_path, lines=tls_files(tmp_path)) as relay, slow_link("127.0.0.2") as link:
        kind = Mqtt(broker=relay.place, tls=True, ca=f"{tmp_path}/cert.pem")
        address = anyio.run(opened, kind, link, "127.0.0.2")
    assert address.startswith(f"mqtts://{relay.place}/")


@needs_mosquitto
def test_a_certificate_for_the_links_own_address_is_not_the_brokers(tmp_path: Path) -> None:
    with broker(tmp_path, lines=tls_files(tmp_path)) as relay, slow_link("127.0.0.1") as link:
        kind = Mqtt(broker=f"localhost:{relay.port}", tls=True, ca=f"{tmp_path}/cert.pem")
        why = rf"at localhost:{relay.port}, over its slow link.*not valid for 'localhost'"
        with pytest.raises(BadInput, match=why):
            anyio.run(opened, kind, link, "127.0.0.1")
