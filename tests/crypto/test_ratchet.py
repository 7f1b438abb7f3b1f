"""The ratchet: a thief who takes a peer's memory opens what comes, and next to nothing of what was recorded."""

import gc
import hmac
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto import Card, Identity, Mailroom
from veilmesh.crypto import frame as layout
from veilmesh.crypto.ratchet import EPOCH_FRAMES, LEAP, Chain
from veilmesh.crypto.session import WINDOW_BITS, Ends, accept, agree, begin, join

RUN = bytes(range(16))
EPOCHS_TRIED = 40
ENDS_HERE = (str, int, type, FunctionType, ModuleType)


class Peer:
    """One process: its keys, and its mailroom."""

    def __init__(self, number: int) -> None:
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.key = X25519PrivateKey.generate()
        self.card = Card.issue(self.identity, self.key.public_key().public_bytes_raw(), RUN, "")
        self.mailroom = Mailroom(self.identity, self.key, RUN)
        self.name = self.identity.peer


def pair() -> tuple[Peer, Peer]:
    alice, bob = Peer(1), Peer(2)
    alice.mailroom.admit(bob.card)
    bob.mailroom.admit(alice.card)
    return alice, bob


def say(sender: Peer, receiver: Peer, count: int = 1) -> list[bytes]:
    """Frames of bodies that no thief could guess, all of them opened by `receiver`."""
    frames = [sender.mailroom.seal(receiver.name, 1, f"secret {n}".encode()) for n in range(count)]
    for frame in frames:
        receiver.mailroom.open(frame)
    return frames


def acquainted() -> tuple[Peer, Peer, list[bytes]]:
    """Two peers that have heard each other, and the frames that it took."""
    alice, bob = pair()
    return alice, bob, say(alice, bob) + say(bob, alice) + say(alice, bob)


# --- the thief ----------------------------------------------------------------------------------------------------


def memory(mailroom: Mailroom) -> Iterator[object]:
    """Everything that can be reached from a mailroom."""
    seen: dict[int, object] = {}
    todo: list[object] = [mailroom]
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and not isinstance(thing, ENDS_HERE):
            seen[id(thing)] = thing
            todo += gc.get_referents(thing)
            yield thing


class Thief:
    """Holds everything a mailroom holds at one moment, knows the cards, and has recorded every frame."""

    def __init__(self, victim: Peer, other: Peer, recorded: list[bytes]) -> None:
        found = list(memory(victim.mailroom))
        self.sides = victim, other
        self.ciphers = [thing for thing in found if isinstance(thing, AESGCM)]
        self.privates = [thing for thing in found if isinstance(thing, X25519PrivateKey)]
        roots = [thing for thing in found if isinstance(thing, bytes) and len(thing) == 32]
        shared = victim.key.exchange(X25519PublicKey.from_public_bytes(other.card.sealing))
        shares = dict(self._hellos(recorded))
        roots += [self._root(b"key", ends, name, share + shared) for name, (ends, share) in shares.items()]
        roots += self._joints(shares, shared)
        self.ciphers += [cipher for root in roots for cipher in chain(root)]

    def _hellos(self, recorded: list[bytes]) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
        """What the victim's sealing key makes of the hellos on the wire, by session."""
        suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
        for frame in recorded:
            header = layout.read(frame)
            there = {p.identity.public: p.card.sealing for p in self.sides}
            if header.hello and header.receiver == self.sides[0].identity.public:
                ends = RUN + header.sender + header.receiver + there[header.sender] + there[header.receiver]
                info = b"veilmesh session v2 hello\x00" + ends + header.session
                hello = frame[header.sealed_from - header.hello : header.sealed_from]
                for private in self.privates:
                    yield header.session, (ends, suite.decrypt(hello, private, info=info))

    def _joints(self, shares: dict[bytes, tuple[bytes, bytes]], shared: bytes) -> list[bytes]:
        """Joint keys, from every private key that is left, with every share that was read, over all sessions."""
        names = {
            bytes(thing) for thing in memory(self.sides[0].mailroom) if isinstance(thing, bytes) and len(thing) == 8
        }
        return [
            self._root(b"joint", ends, name + mine, both + theirs + own + shared)
            for private in self.privates
            for name, (ends, theirs) in shares.items()
            for mine in names
            for both in [private.exchange(X25519PublicKey.from_public_bytes(theirs))]
            for own in [private.public_key().public_bytes_raw()]
        ]

    @staticmethod
    def _root(what: bytes, ends: bytes, names: bytes, secrets: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=RUN, info=b"veilmesh session v2 " + what + b"\x00" + ends + names).derive(
            secrets
        )

    def opens(self, frame: bytes) -> bool:
        header = layout.read(frame)
        start, end = header.sealed_from, header.sealed_from + header.ciphertext
        for cipher in self.ciphers:
            try:
                cipher.decrypt(layout.nonce(header.sequence), frame[start:end], frame[:start])
            except InvalidTag:
                continue
            return True
        return False


def chain(root: bytes) -> Iterator[AESGCM]:
    for _ in range(EPOCHS_TRIED):
        yield AESGCM(hmac.digest(root, b"veilmesh ratchet v1 seal\x00", "sha256"))
        root = hmac.digest(root, b"veilmesh ratchet v1 next\x00", "sha256")


def epochs(frames: list[bytes]) -> list[int]:
    return [layout.read(frame).sequence // EPOCH_FRAMES for frame in frames]


@pytest.mark.parametrize("robbed", ["sender", "receiver", "both"])
def test_a_thief_opens_nothing_of_earlier_epochs_and_everything_that_follows(robbed):
    alice, bob, early = acquainted()
    frames = say(alice, bob, 5 * EPOCH_FRAMES + 3)
    now = epochs(frames)[-1]
    both = {"sender": [(alice, bob)], "receiver": [(bob, alice)], "both": [(alice, bob), (bob, alice)]}[robbed]
    thieves = [Thief(victim, other, early + frames) for victim, other in both]
    later = say(alice, bob, 2 * EPOCH_FRAMES)  # after the theft
    for frame, epoch in zip(frames, epochs(frames), strict=True):
        assert any(thief.opens(frame) for thief in thieves) == (epoch == now)
    assert all(any(thief.opens(frame) for thief in thieves) for frame in later)  # no healing within a start


def test_what_was_said_before_the_other_was_heard_a_sealing_key_opens_and_nothing_else():
    """The price of frames that need no answer first: a node sends only signs of life before it has heard the other."""
    alice, bob, early = acquainted()
    solo, joint = early[0], early[1:]
    say(alice, bob, 3 * EPOCH_FRAMES)
    say(bob, alice, 3 * EPOCH_FRAMES)
    assert layout.read(solo).ack == bytes(8)
    assert all(layout.read(frame).ack != bytes(8) for frame in joint)
    assert Thief(bob, alice, early).opens(solo)
    assert not Thief(alice, bob, early).opens(solo)
    for frame in joint:
        assert not Thief(bob, alice, early).opens(frame)
        assert not Thief(alice, bob, early).opens(frame)


def test_before_anything_was_answered_a_thief_opens_what_was_said():
    """What the test above rules out, this thief can do: it is no straw man."""
    alice, bob = pair()
    frames = say(alice, bob, 2 * EPOCH_FRAMES)
    assert all(Thief(bob, alice, frames).opens(frame) for frame in frames)


def test_an_epoch_that_is_over_leaves_no_key_behind():
    alice, bob, _ = acquainted()
    say(alice, bob, 2 * EPOCH_FRAMES - 2)  # frames 2 .. 31: exactly two epochs
    [contact] = bob.mailroom._contacts.values()
    [incoming] = contact.incoming.values()
    assert not incoming.joint._ciphers
    assert incoming.alone._key is None
    assert not incoming.alone._ciphers
    [contact] = alice.mailroom._contacts.values()
    assert not contact.outgoing.chain._ciphers
    assert contact.outgoing.share is None


# --- loss and disorder --------------------------------------------------------------------------------------------


@settings(max_examples=examples(20), deadline=None)
@given(data=st.data())
def test_frames_of_many_epochs_open_in_any_order_within_the_window(data):
    alice, bob, _ = acquainted()
    frames = [alice.mailroom.seal(bob.name, 1, str(n).encode()) for n in range(3 * EPOCH_FRAMES)]
    order = data.draw(st.permutations(range(len(frames))))
    lost = data.draw(st.integers(0, len(frames) - 1))
    for n in order[lost:]:
        assert bob.mailroom.open(frames[n]).body == str(n).encode()
    with pytest.raises(RemoteError, match="replay"):
        bob.mailroom.open(frames[order[-1]])


@settings(max_examples=examples(13), deadline=None)
@given(data=st.data())
def test_both_ways_at_once_whatever_is_lost_or_late(data):
    """Sessions are joined at different moments at the two ends; each frame says what it is sealed under."""
    peers = pair()
    in_flight: list[tuple[int, bytes, bytes]] = []
    for step in range(data.draw(st.integers(20, 120))):
        if in_flight and data.draw(st.booleans()):
            sender, frame, body = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
            if data.draw(st.integers(0, 3)):
                assert peers[1 - sender].mailroom.open(frame).body == body
        else:
            sender, body = data.draw(st.integers(0, 1)), str(step).encode()
            in_flight.append((sender, peers[sender].mailroom.seal(peers[1 - sender].name, 1, body), body))


def test_keys_are_kept_for_late_frames_as_far_as_the_replay_window_and_no_further():
    alice, bob, _ = acquainted()
    frames = [alice.mailroom.seal(bob.name, 1, str(n).encode()) for n in range(WINDOW_BITS + 2 * EPOCH_FRAMES)]
    bob.mailroom.open(frames[-1])
    [contact] = bob.mailroom._contacts.values()
    [incoming] = contact.incoming.values()
    assert len(incoming.joint._ciphers) <= WINDOW_BITS // EPOCH_FRAMES + 1
    assert bob.mailroom.open(frames[-WINDOW_BITS]).body  # the oldest that the window tells
    thief = Thief(bob, alice, frames)
    assert not any(thief.opens(frame) for frame in frames[:EPOCH_FRAMES])
    assert thief.opens(frames[-WINDOW_BITS + EPOCH_FRAMES])


def test_a_long_silence_is_followed_and_a_leap_into_nowhere_is_not():
    root = bytes(32)
    assert Chain(root).cipher(EPOCH_FRAMES * LEAP - 1)
    for sequence in (EPOCH_FRAMES * LEAP, 1 << 63):
        with pytest.raises(RemoteError) as caught:
            Chain(root).cipher(sequence)
        assert caught.value.refusal is Refusal.BAD_SEAL


def test_looking_for_a_key_changes_nothing_and_the_past_is_gone():
    reader, writer = Chain(bytes(32)), Chain(bytes(32))
    ahead = reader.cipher(5 * EPOCH_FRAMES)
    sealed = ahead.encrypt(bytes(12), b"x", None)
    assert reader.cipher(0).decrypt(bytes(12), writer.write(0).encrypt(bytes(12), b"y", None), None) == b"y"
    assert writer.write(5 * EPOCH_FRAMES).decrypt(bytes(12), sealed, None) == b"x"
    with pytest.raises(RemoteError, match="bad-seal"):
        writer.cipher(0)


# --- how two sessions are joined ----------------------------------------------------------------------------------


def test_a_forged_acknowledgement_is_refused_and_changes_nothing():
    alice, bob, _ = acquainted()
    frame = alice.mailroom.seal(bob.name, 1, b"body")
    other = frame[:93] + b"whatever" + frame[101:-64]
    signed = other + alice.identity.sign(b"veilmesh frame v1\x00" + hash_of(other))
    with pytest.raises(RemoteError) as caught:
        bob.mailroom.open(signed)
    assert caught.value.refusal is Refusal.BAD_SEAL
    assert bob.mailroom.open(frame).body == b"body"


def hash_of(content: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(content).digest()


def test_both_sides_come_to_the_same_joint_keys_and_only_they():
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    sealing = [key.public_key().public_bytes_raw() for key in keys]
    ends = Ends(RUN, b"a" * 32, b"b" * 32, *sealing)
    shared = agree(keys[0], sealing[1])
    there, back = begin(ends, shared), begin(ends.back(), shared)
    at_b = accept(ends, there.id, there.hello, keys[1], shared)
    at_a = accept(ends.back(), back.id, back.hello, keys[0], shared)
    out_a, in_a = join(ends, there, back.id, at_a.share, shared)
    out_b, in_b = join(ends.back(), back, there.id, at_b.share, shared)
    for writer, reader in [(out_a, in_b), (out_b, in_a)]:
        assert reader.cipher(0).decrypt(bytes(12), writer.write(0).encrypt(bytes(12), b"x", None), None) == b"x"
    with pytest.raises(InvalidTag):
        in_a.cipher(0).decrypt(bytes(12), in_b.cipher(0).encrypt(bytes(12), b"x", None), None)


def test_a_hello_with_a_useless_share_is_refused():
    """A low-order point would make the joint key one that everybody knows."""
    key = X25519PrivateKey.generate()
    sealing = key.public_key().public_bytes_raw()
    ends = Ends(RUN, b"s" * 32, b"r" * 32, b"k" * 32, sealing)
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    info = b"veilmesh session v2 hello\x00" + b"".join(ends) + bytes(8)
    hello = suite.encrypt(bytes(32), X25519PublicKey.from_public_bytes(sealing), info=info)
    with pytest.raises(RemoteError) as caught:
        accept(ends, bytes(8), hello, key, bytes(32))
    assert caught.value.refusal is Refusal.MALFORMED
