"""Envelopes: what is sealed opens once, at the right peer, and everything else is refused for the right reason."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto import ENVELOPE_OVERHEAD, Card, Identity, Mailroom, frame_size
from veilmesh.crypto.codecs import encode
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.envelope import INCOMING_SESSIONS, KINDS
from veilmesh.crypto.frame import HELLO_BYTES
from veilmesh.crypto.session import WINDOW_BITS, Ends, ReplayWindow, accept, begin

RUN = bytes(range(16))
# where each header field lies on the wire: part of the format, so written down a second time here
MAGIC, VERSION, KIND, FLAGS, THE_RUN, SENDER, RECEIVER, SESSION, ACK, SEQUENCE, HELLO_LENGTH, LENGTH = (
    0, 2, 3, 4, 5, 21, 53, 85, 93, 101, 109, 111,
)  # fmt: skip
HEADER = 115


@dataclass
class Peer:
    """A peer of a test: its identity, its mailroom and its card."""

    identity: Identity
    mailroom: Mailroom
    card: Card
    key: X25519PrivateKey

    @property
    def name(self):
        return self.identity.peer


def peer(number: int, run: bytes = RUN, serial: int = 0, key: X25519PrivateKey | None = None, **options) -> Peer:
    identity = Identity.from_seed(bytes([number]) * 32)
    key = key or X25519PrivateKey.generate()
    card = Card.issue(identity, key.public_key().public_bytes_raw(), run, f"somewhere:{number}", serial)
    return Peer(identity, Mailroom(identity, key, run, **options), card, key)


def introduce(*peers: Peer) -> None:
    for one in peers:
        for other in peers:
            one.mailroom.admit(other.card)


def pair(**options) -> tuple[Peer, Peer]:
    alice, bob = peer(1, **options), peer(2, **options)
    introduce(alice, bob)
    return alice, bob


def acquainted() -> tuple[Peer, Peer]:
    """Two peers that have acknowledged each other's sessions: their frames carry no hello any more."""
    alice, bob = pair()
    bob.mailroom.open(alice.mailroom.seal(bob.name, 1, b"hello"))
    alice.mailroom.open(bob.mailroom.seal(alice.name, 1, b"hello"))
    bob.mailroom.open(alice.mailroom.seal(bob.name, 1, b"and again"))
    return alice, bob


def refusal(mailroom: Mailroom, frame: bytes) -> Refusal:
    with pytest.raises(RemoteError) as caught:
        mailroom.open(frame)
    return caught.value.refusal


def flipped(frame: bytes, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def put(frame: bytes, at: int, data: bytes) -> bytes:
    return frame[:at] + data + frame[at + len(data) :]


def resigned(frame: bytes, signer: Identity) -> bytes:
    content = frame[:-64]
    return content + signer.sign(b"veilmesh frame v1\x00" + hashlib.sha256(content).digest())


# --- what should open ---------------------------------------------------------------------------------------------


@given(bodies=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.binary(max_size=3000)), min_size=1, max_size=4))
def test_every_body_and_kind_comes_back_as_it_was(bodies):
    alice, bob = pair()
    for kind, body in bodies:
        opened = bob.mailroom.open(alice.mailroom.seal(bob.name, kind, body))
        assert (opened.sender, opened.kind, opened.body) == (alice.name, kind, body)


def test_a_large_body_comes_back():
    alice, bob = acquainted()
    body = np.random.default_rng(0).bytes(3 << 20)
    assert bob.mailroom.open(alice.mailroom.seal(bob.name, 2, body)).body == body


@given(size=st.integers(0, 5000))
def test_the_size_of_a_frame_is_known_beforehand(size):
    alice, bob = pair()
    assert len(alice.mailroom.seal(bob.name, 1, bytes(size))) == frame_size(size, with_hello=True)
    alice, bob = acquainted()
    assert len(alice.mailroom.seal(bob.name, 1, bytes(size))) == frame_size(size, with_hello=False)
    assert frame_size(size, with_hello=False) == ENVELOPE_OVERHEAD + size


@settings(max_examples=examples(30))
@given(data=st.data())
def test_whatever_subset_of_frames_arrives_in_whatever_order_each_opens_once(data):
    """Against a model: a hello rides until its sender was told that the session is open."""
    peers = pair()
    in_flight: list[tuple[int, bytes, bytes, bool]] = []  # sender, frame, body, whether it acknowledges
    has_opened, is_acknowledged = [False, False], [False, False]
    for step in range(data.draw(st.integers(1, 25))):
        if in_flight and data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(in_flight) - 1))
            sender, frame, body, acknowledges = in_flight.pop(place)
            if data.draw(st.integers(0, 3)) == 0:
                continue  # lost
            receiver = 1 - sender
            assert peers[receiver].mailroom.open(frame).body == body
            assert refusal(peers[receiver].mailroom, frame) is Refusal.REPLAY
            has_opened[receiver] = True
            is_acknowledged[receiver] |= acknowledges
        else:
            sender, body = data.draw(st.integers(0, 1)), str(step).encode()
            frame = peers[sender].mailroom.seal(peers[1 - sender].name, 1, body)
            assert len(frame) == frame_size(len(body), with_hello=not is_acknowledged[sender])
            in_flight.append((sender, frame, body, has_opened[sender]))


def test_once_both_have_heard_each_other_no_hello_rides_along():
    alice, bob = acquainted()
    assert len(alice.mailroom.seal(bob.name, 1, b"")) == ENVELOPE_OVERHEAD
    assert len(bob.mailroom.seal(alice.name, 1, b"")) == ENVELOPE_OVERHEAD


def test_an_old_frame_without_acknowledgement_does_not_bring_the_hello_back():
    alice, bob = pair()
    late = bob.mailroom.seal(alice.name, 1, b"said before anything was heard")
    bob.mailroom.open(alice.mailroom.seal(bob.name, 1, b""))
    alice.mailroom.open(bob.mailroom.seal(alice.name, 1, b""))
    assert alice.mailroom.open(late).body == b"said before anything was heard"
    assert len(alice.mailroom.seal(bob.name, 1, b"")) == ENVELOPE_OVERHEAD


# --- tampering on the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("meet", [pair, acquainted], ids=["with hello", "without hello"])
def test_every_single_flipped_bit_is_refused_and_changes_nothing(meet: Callable[[], tuple[Peer, Peer]]):
    alice, bob = meet()
    frame = alice.mailroom.seal(bob.name, 1, b"twenty bytes of body")
    for bit in range(len(frame) * 8):
        refusal(bob.mailroom, flipped(frame, bit))
    assert bob.mailroom.open(frame).body == b"twenty bytes of body"


@pytest.mark.parametrize("meet", [pair, acquainted], ids=["with hello", "without hello"])
def test_every_truncation_and_extension_is_refused(meet: Callable[[], tuple[Peer, Peer]]):
    alice, bob = meet()
    frame = alice.mailroom.seal(bob.name, 1, b"body")
    for length in range(len(frame)):
        assert refusal(bob.mailroom, frame[:length]) is Refusal.TRUNCATED
    for more in (1, 16, HELLO_BYTES, 1000):
        assert refusal(bob.mailroom, frame + bytes(more)) is Refusal.TRUNCATED
    assert bob.mailroom.open(frame).body == b"body"


@pytest.mark.parametrize(
    ("at", "data", "expected"),
    [
        (MAGIC, b"XY", Refusal.VERSION),
        (VERSION, b"\x01", Refusal.VERSION),
        (KIND, b"\x00", Refusal.VERSION),
        (KIND, b"\x09", Refusal.VERSION),
        (FLAGS, b"\x05", Refusal.VERSION),
        (FLAGS, b"\x00", Refusal.TRUNCATED),
        (FLAGS, b"\x03", Refusal.BAD_SIGNATURE),
        (HELLO_LENGTH, b"\x00\x00", Refusal.TRUNCATED),
        (LENGTH, b"\xff\xff\xff\xff", Refusal.TRUNCATED),
        (LENGTH, b"\x00\x00\x00\x00", Refusal.TRUNCATED),
        (THE_RUN, bytes(16), Refusal.WRONG_RUN),
        (RECEIVER, bytes(32), Refusal.MISDIRECTED),
        (SENDER, bytes(32), Refusal.STRANGER),
        (SEQUENCE, b"\x01", Refusal.BAD_SIGNATURE),
        (HEADER, b"another hello", Refusal.BAD_SIGNATURE),
    ],
)
def test_a_changed_field_is_refused_for_its_own_reason(at, data, expected):
    alice, bob = pair()
    assert refusal(bob.mailroom, put(alice.mailroom.seal(bob.name, 1, b"body"), at, data)) is expected


@pytest.mark.parametrize("at", [KIND, SESSION, ACK, SEQUENCE, HEADER, HEADER + HELLO_BYTES])
def test_what_the_sender_signed_but_did_not_seal_is_refused(at):
    """A signature alone opens nothing: header and hello are authenticated by the seal as well."""
    alice, bob = pair()
    frame = alice.mailroom.seal(bob.name, 1, b"body")
    forged = resigned(flipped(frame, at * 8 + 1), alice.identity)
    assert refusal(bob.mailroom, forged) is Refusal.BAD_SEAL
    assert bob.mailroom.open(frame).body == b"body"


def test_a_forged_sequence_does_not_move_the_window():
    alice, bob = acquainted()
    frame = alice.mailroom.seal(bob.name, 1, b"body")
    far = resigned(put(frame, SEQUENCE, (1 << 63).to_bytes(8, "big")), alice.identity)
    assert refusal(bob.mailroom, far) is Refusal.BAD_SEAL
    assert bob.mailroom.open(frame).body == b"body"


# --- who, whom, where ---------------------------------------------------------------------------------------------


def test_a_stranger_is_refused_before_its_signature_is_looked_at():
    alice, bob = pair()
    mallory = peer(3)
    mallory.mailroom.admit(bob.card)
    frame = mallory.mailroom.seal(bob.name, 1, b"let me in")
    assert refusal(bob.mailroom, frame) is Refusal.STRANGER
    assert refusal(bob.mailroom, put(frame, len(frame) - 64, bytes(64))) is Refusal.STRANGER
    assert refusal(bob.mailroom, resigned(frame, alice.identity)) is Refusal.STRANGER


@pytest.mark.parametrize(("meet", "expected"), [(pair, Refusal.BAD_SEAL), (acquainted, Refusal.NO_SESSION)])
def test_another_admitted_peer_cannot_pass_a_ciphertext_off_as_its_own(meet, expected):
    alice, bob = meet()
    mallory = peer(3)
    introduce(alice, bob, mallory)
    frame = alice.mailroom.seal(bob.name, 1, b"alice's work")
    stolen = resigned(put(frame, SENDER, mallory.identity.public), mallory.identity)
    assert refusal(bob.mailroom, stolen) is expected
    assert refusal(bob.mailroom, resigned(frame, mallory.identity)) is Refusal.BAD_SIGNATURE
    assert bob.mailroom.open(frame).sender == alice.name


def test_a_receiver_cannot_pass_on_what_it_was_told():
    alice, bob = pair()
    carol = peer(3)
    introduce(alice, bob, carol)
    frame = alice.mailroom.seal(bob.name, 1, b"for bob only")
    assert refusal(carol.mailroom, frame) is Refusal.MISDIRECTED
    assert refusal(carol.mailroom, put(frame, RECEIVER, carol.identity.public)) is Refusal.BAD_SIGNATURE


def test_ones_own_frame_thrown_back_is_misdirected():
    alice, bob = pair()
    assert refusal(alice.mailroom, alice.mailroom.seal(bob.name, 1, b"echo")) is Refusal.MISDIRECTED


def test_another_run_of_the_same_peers_is_another_world():
    alice, bob_there = pair(run=bytes(16))
    bob_here = peer(2)
    bob_here.mailroom.admit(peer(1).card)
    assert refusal(bob_here.mailroom, alice.mailroom.seal(bob_there.name, 1, b"")) is Refusal.WRONG_RUN


# --- sizes and kinds ----------------------------------------------------------------------------------------------


def test_the_body_cap_is_exact_with_and_without_a_hello():
    small, large = peer(1, max_body=100), peer(2, max_body=1000)
    introduce(small, large)
    for _ in range(2):  # the second time round without hello
        assert len(small.mailroom.open(large.mailroom.seal(small.name, 1, bytes(100))).body) == 100
        for size in (101, 150, 200, 1000):
            assert refusal(small.mailroom, large.mailroom.seal(small.name, 1, bytes(size))) is Refusal.OVERSIZED
        large.mailroom.open(small.mailroom.seal(large.name, 1, bytes(100)))


def test_what_may_not_be_sent_is_our_own_error():
    alice, bob = pair(max_body=10)
    for to, kind, body in [(peer(3).name, 1, b""), (bob.name, 0, b""), (bob.name, 1, bytes(11))]:
        with pytest.raises(LocalError):
            alice.mailroom.seal(to, kind, body)


def test_kinds_are_a_closed_table():
    alice, bob = peer(1, kinds=frozenset({1, 2})), peer(2, kinds=frozenset({1}))
    introduce(alice, bob)
    assert refusal(bob.mailroom, alice.mailroom.seal(bob.name, 2, b"")) is Refusal.VERSION


# --- arbitrary bytes ----------------------------------------------------------------------------------------------


@given(frame=st.binary(max_size=600))
def test_arbitrary_bytes_are_refused(frame):
    _, bob = FUZZED
    refusal(bob.mailroom, frame)


@given(data=st.data(), tail=st.binary(max_size=200))
def test_arbitrary_fields_in_a_well_signed_frame_are_refused(data, tail):
    """Even an admitted peer that signs anything at all makes nothing happen but a refusal."""
    alice, bob = FUZZED
    frame = bytearray(alice.mailroom.seal(bob.name, 1, b"body"))[: HEADER + HELLO_BYTES] + tail
    fields = st.sampled_from([FLAGS, SESSION, ACK, SEQUENCE, HELLO_LENGTH, LENGTH, HEADER])
    for at in data.draw(st.lists(fields, max_size=3)):
        value = data.draw(st.binary(min_size=1, max_size=8))
        frame[at : at + len(value)] = value
    if data.draw(st.booleans()):
        frame[LENGTH : LENGTH + 4] = max(0, len(frame) - HEADER - HELLO_BYTES).to_bytes(4, "big")
    refusal(bob.mailroom, resigned(bytes(frame) + bytes(64), alice.identity))


FUZZED = pair()


# --- replay -------------------------------------------------------------------------------------------------------


def test_frames_may_overtake_each_other_within_the_window_and_no_further():
    alice, bob = acquainted()
    frames = [alice.mailroom.seal(bob.name, 1, str(n).encode()) for n in range(WINDOW_BITS + 1)]
    bob.mailroom.open(frames[-1])
    assert refusal(bob.mailroom, frames[0]) is Refusal.REPLAY  # too old to tell
    assert bob.mailroom.open(frames[1]).body == b"1"  # the oldest that can be told
    assert bob.mailroom.open(frames[500]).body == b"500"
    for taken in (1, 500, WINDOW_BITS):
        assert refusal(bob.mailroom, frames[taken]) is Refusal.REPLAY


numbers = st.one_of(st.integers(0, 3000), st.integers(0, (1 << 64) - 1))


@given(sequences=st.lists(numbers, max_size=200))
def test_the_window_takes_what_a_set_of_all_numbers_would_take(sequences):
    window, taken = ReplayWindow(), set()
    for sequence in sequences:
        if sequence not in taken and sequence > max(taken, default=-1) - WINDOW_BITS:
            window.check(sequence)
            window.take(sequence)
            taken.add(sequence)
        else:
            with pytest.raises(RemoteError, match="replay"):
                window.check(sequence)
        assert window.taken.bit_length() <= WINDOW_BITS


def test_a_peer_can_open_only_a_few_sessions_under_one_card():
    _, bob = pair()
    key = X25519PrivateKey.generate()
    starts = [peer(3, key=key) for _ in range(INCOMING_SESSIONS + 1)]
    bob.mailroom.admit(starts[0].card)
    for start in starts:
        start.mailroom.admit(bob.card)
    first = starts[0].mailroom.seal(bob.name, 1, b"first")
    bob.mailroom.open(first)
    for start in starts[1:-1]:
        bob.mailroom.open(start.mailroom.seal(bob.name, 1, b"another session"))
    assert refusal(bob.mailroom, starts[-1].mailroom.seal(bob.name, 1, b"one too many")) is Refusal.NO_SESSION
    # nothing was evicted, so nothing can be replayed into an empty window
    assert refusal(bob.mailroom, first) is Refusal.REPLAY
    assert bob.mailroom.open(starts[0].mailroom.seal(bob.name, 1, b"still here")).body == b"still here"


# --- restarts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("meet", "expected"), [(pair, Refusal.BAD_SEAL), (acquainted, Refusal.NO_SESSION)])
def test_a_frame_sealed_to_an_earlier_life_does_not_open(meet, expected):
    alice, bob = meet()
    frame = alice.mailroom.seal(bob.name, 1, b"said before the restart")
    reborn = peer(2, serial=1)
    reborn.mailroom.admit(alice.card)
    assert refusal(reborn.mailroom, frame) is expected


def test_a_restarted_peer_is_heard_again_and_its_earlier_frames_are_not():
    alice, bob = pair()
    old = [bob.mailroom.seal(alice.name, 1, b"old") for _ in range(2)]
    alice.mailroom.open(old[0])
    reborn = peer(2, serial=1)
    reborn.mailroom.admit(alice.card)
    early = reborn.mailroom.seal(alice.name, 1, b"before alice knows")
    assert refusal(alice.mailroom, early) is Refusal.BAD_SEAL
    assert alice.mailroom.admit(reborn.card)
    assert alice.mailroom.open(early).body == b"before alice knows"
    assert reborn.mailroom.open(alice.mailroom.seal(bob.name, 1, b"welcome back")).body == b"welcome back"
    for frame in old:
        assert refusal(alice.mailroom, frame) is Refusal.BAD_SEAL


def test_a_replayed_card_of_an_earlier_life_is_refused():
    alice, bob = pair()
    reborn = peer(2, serial=1)
    alice.mailroom.admit(reborn.card)
    with pytest.raises(RemoteError) as caught:
        alice.mailroom.admit(bob.card)
    assert caught.value.refusal is Refusal.REPLAY
    assert alice.mailroom.card(bob.name) == reborn.card


def test_a_new_address_ends_no_session_and_forgets_no_sequence():
    alice, bob = acquainted()
    frame = bob.mailroom.seal(alice.name, 1, b"once")
    alice.mailroom.open(frame)
    moved = Card.issue(bob.identity, bob.card.sealing, RUN, "elsewhere:1", serial=1)
    assert alice.mailroom.admit(moved)
    assert not alice.mailroom.admit(moved)
    assert refusal(alice.mailroom, frame) is Refusal.REPLAY
    assert bob.mailroom.open(alice.mailroom.seal(bob.name, 1, b"still known")).body == b"still known"


def test_cards_that_are_not_let_in():
    alice, bob = pair()
    twin = peer(2)  # another key under the same serial
    elsewhere = peer(3, run=bytes(16))
    forged = replace(peer(3).card, address="mallory:1")
    useless = Card.issue(Identity.from_seed(bytes([3]) * 32), bytes(32), RUN, "")  # a low-order X25519 key
    for card, expected in [
        (twin.card, Refusal.REPLAY),
        (elsewhere.card, Refusal.WRONG_RUN),
        (forged, Refusal.BAD_SIGNATURE),
        (useless, Refusal.MALFORMED),
    ]:
        with pytest.raises(RemoteError) as caught:
            alice.mailroom.admit(card)
        assert caught.value.refusal is expected
    assert alice.mailroom.card(bob.name) == bob.card
    assert alice.mailroom.card(peer(3).name) is None
    assert not alice.mailroom.admit(alice.card)


# --- the session key ----------------------------------------------------------------------------------------------


def test_the_key_is_what_the_documentation_says():
    """A second reading of a frame, written from the module's description alone."""
    alice, bob = pair()
    frame = alice.mailroom.seal(bob.name, 1, b"body")
    both = RUN + alice.identity.public + bob.identity.public + alice.card.sealing + bob.card.sealing
    both += frame[SESSION : SESSION + 8]
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    sealed_from = HEADER + HELLO_BYTES
    secret = suite.decrypt(frame[HEADER:sealed_from], bob.key, info=b"veilmesh session v2 hello\x00" + both)
    shared = alice.key.exchange(bob.key.public_key())
    kdf = HKDF(SHA256(), 32, salt=RUN, info=b"veilmesh session v2 key\x00" + both)
    first = hmac.digest(kdf.derive(secret + shared), b"veilmesh ratchet v1 seal\x00", "sha256")
    assert AESGCM(first).decrypt(bytes(12), frame[sealed_from:-64], frame[:sealed_from]) == b"body"


@pytest.mark.parametrize("field", Ends._fields)
def test_a_hello_opens_only_between_exactly_its_two_ends(field):
    receiver = X25519PrivateKey.generate()
    ends = Ends(RUN, b"s" * 32, b"r" * 32, b"k" * 32, receiver.public_key().public_bytes_raw())
    session = begin(ends, bytes(32))
    accept(ends, session.id, session.hello, receiver, bytes(32))
    other = ends._replace(**{field: b"x" * len(getattr(ends, field))})
    for changed, name in [(other, session.id), (ends, b"another!")]:
        with pytest.raises(RemoteError) as caught:
            accept(changed, name, session.hello, receiver, bytes(32))
        assert caught.value.refusal is Refusal.BAD_SEAL


# --- what a wire-tapper sees --------------------------------------------------------------------------------------


def test_no_eight_bytes_of_a_body_are_on_the_wire():
    alice, bob = pair()
    body = np.random.default_rng(1).bytes(2000)
    frame = alice.mailroom.seal(bob.name, 1, body)
    assert not any(body[at : at + 8] in frame for at in range(len(body) - 7))


def test_no_float_of_an_update_is_on_the_wire():
    alice, bob = pair()
    rng = np.random.default_rng(2)
    update = rng.normal(size=200).astype(np.float32)
    frame = alice.mailroom.seal(bob.name, 1, encode(Dense(), update, rng))
    # four bytes are found in a thousand random ones by chance, but only once in 20 000 frames; twice, once in 10^9
    assert sum(value.tobytes() in frame for value in update) < 2


def test_the_same_body_never_looks_the_same():
    alice, bob = acquainted()
    frames = [alice.mailroom.seal(bob.name, 1, bytes(64)) for _ in range(2)]
    assert frames[0][HEADER:-64] != frames[1][HEADER:-64]


def test_secrets_are_not_printed():
    alice, bob = pair()
    alice.mailroom.seal(bob.name, 1, b"body")
    shown = repr(alice.mailroom) + repr(vars(alice.mailroom))
    assert repr(alice.key.exchange(bob.key.public_key())) not in shown
    assert alice.key.private_bytes_raw().hex() not in shown
