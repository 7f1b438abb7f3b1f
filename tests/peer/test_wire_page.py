"""What docs/wire.md says of the wire, is what this program says on it."""

import hashlib
import re
import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import Refusal
from veilmesh.crypto import card, envelope, frame, ratchet, session
from veilmesh.crypto.codecs.table import WIRE_IDS
from veilmesh.crypto.identity import Identity, verify
from veilmesh.peer import lobby
from veilmesh.peer.door import Announcement, Door
from veilmesh.peer.limits import IN_CLEAR, Kind, Limits
from veilmesh.peer.transports import framing, libp2p, libp2p_answers, mqtt_chunks, mqtt_names
from veilmesh.swarm.sealer import RANGE

__all__: list[str] = []

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
RUN, ONE, OTHER = bytes(16), Identity.from_seed(bytes([1]) * 32), Identity.from_seed(bytes([2]) * 32)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, its own heading left out."""
    text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def places(heading: str) -> list[int]:
    """The offsets in a table, which follow from the lengths."""
    rows = [(int(at), size) for at, size, _ in table(heading) if at]
    for (at, size), (following, _) in zip(rows, rows[1:], strict=False):
        assert not size.isdigit() or following == at + int(size), (heading, at)
    return [at for at, _ in rows]


def test_a_card_is_where_the_page_says() -> None:
    sealing = X25519PrivateKey.generate().public_key().public_bytes_raw()
    raw = card.Card.issue(ONE, sealing, RUN, "here", 7).to_bytes()
    parts = [raw[a:b] for a, b in zip(places("A card"), [*places("A card")[1:], 97], strict=True)]
    assert parts == [b"VC", b"\1", RUN, ONE.public, sealing, (7).to_bytes(8, "big"), b"\0\4", b"here"]
    assert verify(ONE.public, raw[97:], b"veilmesh card v1\0" + raw[:97])
    assert card.ADDRESS_BYTES == 512
    said = Door(RUN, bytes(32), None).announce(card.Card.from_bytes(raw)).to_bytes()
    assert said[:3] == Announcement.MAGIC + b"\1" == b"VA\1"
    assert said[35:] == raw


def test_a_frame_is_where_the_page_says() -> None:
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    cards = [
        card.Card.issue(who, key.public_key().public_bytes_raw(), RUN, "")
        for who, key in zip((ONE, OTHER), keys, strict=True)
    ]
    room = envelope.Mailroom(ONE, keys[0], RUN)
    room.admit(cards[1])
    raw = room.seal(OTHER.peer, Kind.PRESENCE, b"\0")
    at = places("A frame")
    assert at == [0, 2, 3, 4, 5, 21, 53, 85, 93, 101, 109, 111, 115]
    parts = [raw[a:b] for a, b in zip(at, at[1:], strict=False)]
    assert parts[:7] == [b"VM", b"\2", b"\2", b"\1", RUN, ONE.public, OTHER.public]
    assert parts[8:] == [bytes(8), bytes(8), b"\0\x50", (17).to_bytes(4, "big")]
    assert len(raw) == 115 + 80 + 17 + 64
    assert verify(ONE.public, raw[-64:], b"veilmesh frame v1\0" + hashlib.sha256(raw[:-64]).digest())


def test_numbers_are_the_programs() -> None:
    numbers = {
        "{} bytes longer than its body": frame.ENVELOPE_OVERHEAD,
        "at most {} bytes (": envelope.MAX_BODY,
        "({} MiB)": envelope.MAX_BODY >> 20,
        "{} or more behind": session.WINDOW_BITS,
        "fewer than {} epochs": ratchet.LEAP,
        "may open {} sessions": envelope.INCOMING_SESSIONS,
        "at most {}, each after": lobby.PAGE,
        "{} bytes, the digest": lobby.DIGEST_BYTES,
        "after its length in {} bytes. One": framing.LENGTH_BYTES,
        "up to {} entries": mqtt_chunks.ACK_ENTRIES,
        "Coordinates beyond {} are": int(RANGE),
    }
    flowing = " ".join(PAGE.split())
    assert [said.format(n) for said, n in numbers.items() if said.format(n) not in flowing] == []
    assert (ratchet.EPOCH_FRAMES, Limits().heartbeat, Limits().patience, WIRE_IDS[1].__name__) == (16, 1, 10, "Dense")
    assert 36 + struct.calcsize("!QQQIII16s") == mqtt_chunks.CHUNK_OVERHEAD
    assert places("Over MQTT") == [0, 2, 3, 4, 20]


def test_names_are_the_programs() -> None:
    kinds = {int(number): name for number, name, _ in table("Kinds")}
    assert kinds == {int(kind): kind.name.lower() for kind in Kind}
    assert IN_CLEAR not in kinds
    assert {int(state) for state in mqtt_names.State} == {1, 2, 3}
    wrong = PAGE.split("\n## What a receiver does")[1]
    assert set(re.findall(r"`([a-z-]+)`", wrong)) == {refusal.value for refusal in Refusal}
    for name in (libp2p.FRAMES, libp2p_answers.IDENTIFY, libp2p_answers.PING):
        assert f"`{name}`" in PAGE
    for label in (b"veilmesh session v2 hello\0", b"veilmesh session v2 key\0", b"veilmesh session v2 joint\0"):
        assert f'"{label.decode()[:-1]}\\0"' in PAGE
        assert label in (session._HELLO_LABEL, session._KEY_LABEL, session._JOINT_LABEL)
