"""A model of 100 MB is one body and one frame, on every transport; what is longer is refused before it is held."""

import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from brokers import broker, needs_mosquitto
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.envelope import MAX_BODY, Card, Mailroom
from veilmesh.crypto.identity import Identity
from veilmesh.peer.limits import Limits
from veilmesh.peer.transports.base import (
    INBOX_BYTES,
    INBOX_SHARE,
    MAX_FRAME,
    TRANSPORTS,
    Frame,
    TransportKind,
)
from veilmesh.peer.transports.framing import FrameReader
from veilmesh.peer.transports.mqtt_chunks import SESSION_BYTES, Chunk, Reassembly

MODEL = 100_000_000
PATIENCE = 120.0


@pytest.fixture(params=["libp2p", "memory", pytest.param("mqtt", marks=needs_mosquitto)])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TransportKind]:
    if request.param != "mqtt":
        yield TRANSPORTS.build(request.param)
        return
    with broker(tmp_path) as relay:
        yield TRANSPORTS.build("mqtt", {"broker": relay.place})


def test_a_model_of_100_mb_arrives_sealed_and_whole(kind: TransportKind) -> None:
    names = [Identity.from_seed(bytes([n]) * 32) for n in (1, 2)]
    keys = [X25519PrivateKey.generate() for _ in names]
    rooms = [Mailroom(name, key, bytes(16)) for name, key in zip(names, keys, strict=True)]
    body = os.urandom(1 << 20) * (MODEL >> 20)

    async def scene() -> None:
        a, b = (kind.make(name) for name in names)
        async with a.open(), b.open() as inbox:
            for room, name, key, address in zip(rooms, names, keys, (a.address, b.address), strict=True):
                card = Card.issue(name, key.public_key().public_bytes_raw(), bytes(16), address)
                for other in rooms:
                    if other is not room:
                        other.admit(card)
            for transport in (a, b):
                transport.introduce({name.peer: at.address for name, at in zip(names, (a, b), strict=True)})
            with anyio.fail_after(PATIENCE):
                await a.send(names[1].peer, rooms[0].seal(names[1].peer, 1, body))
                while not isinstance(arrival := await anext(inbox), Frame):
                    pass
            assert rooms[1].open(arrival.data).body == body
            assert b.traffic.dropped_frames == a.traffic.lost_frames == 0

    anyio.run(scene, backend=kind.backend)


def test_bounds_fit_each_other() -> None:
    assert MODEL < MAX_BODY < MAX_FRAME < INBOX_BYTES
    assert INBOX_BYTES // INBOX_SHARE >= MAX_BODY
    assert Limits().waiting_bytes >= MAX_BODY


def test_what_announces_more_is_refused_before_it_is_held() -> None:
    reader = FrameReader()
    with pytest.raises(RemoteError) as refused:
        list(reader.feed((MAX_FRAME + 1).to_bytes(4, "big")))
    assert refused.value.refusal is Refusal.OVERSIZED
    session, piece = bytes(SESSION_BYTES), bytes(1 << 10)
    with pytest.raises(RemoteError) as refused:
        Reassembly().take(Chunk(session, session, 0, 0, 0, MAX_FRAME + 1, 0, (MAX_FRAME >> 20) + 2, piece))
    assert refused.value.refusal is Refusal.OVERSIZED
