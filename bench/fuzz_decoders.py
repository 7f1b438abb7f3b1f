"""Every decoder of remote bytes, fed with mutations of valid ones: each must end in a value or a refusal, and soon.

For every decoder there are valid examples. A mutation flips bits, sets, cuts, repeats or splices bytes, or overwrites
lengths; what it leads to is counted. Anything but a value, `RemoteError` or `BadInput` is a failure and is printed with
its bytes, in hexadecimal; so is a mutation that took more than a second of processor time, and a process that grew by
more than its cap. A decoder that never returns is ended, with a traceback, by a timer of its own.

The last lines are about homomorphic encryption: every function of TenSEAL that reads bytes is watched, and may be
reached by frames that a mailroom has opened and by nothing else. Seeded: the same options make the same mutations.
"""

import argparse
import base64
import contextlib
import faulthandler
import hashlib
import importlib.util
import itertools
import random
import resource
import sys
import time
import tracemalloc
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import BadInput, LocalError, RemoteError
from veilmesh.crypto import tensors
from veilmesh.crypto.codecs import table
from veilmesh.crypto.envelope import Card, Mailroom
from veilmesh.crypto.frame import SIGNATURE_BYTES
from veilmesh.crypto.identity import Identity
from veilmesh.crypto.padding import unpad
from veilmesh.peer.door import Announcement, Door
from veilmesh.peer.transports.framing import FrameReader, in_pieces
from veilmesh.swarm import messages

__all__ = ["Decoder", "Outcome", "decoders", "fuzz", "main", "mutated"]

RUN = bytes(range(16))
DIMENSION = 1000
SLOWEST_SECONDS = 1.0
GROWTH_BYTES = 256 << 20
HANGS_AFTER_SECONDS = 120
TRACED = 200  # mutations of each decoder whose allocations are measured: that is slow

Decode = Callable[[bytes], object]


@dataclass(frozen=True)
class Decoder:
    """Something that reads remote bytes, and valid bytes for it.

    `share`: how often it is tried, to others' 1. `sealed`: whether it takes nothing but its examples, byte for byte.
    """

    name: str
    examples: Sequence[bytes]
    decode: Decode
    share: float = 1.0
    sealed: bool = False


@dataclass
class Outcome:
    """What came of a decoder's mutations."""

    name: str
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds of processor time
    peak: int = 0  # bytes allocated by one of the first mutations, at most
    failures: list[str] = field(default_factory=list)


# --- mutations -----------------------------------------------------------------------------------------------------


def mutated(example: bytes, other: bytes, rng: random.Random) -> bytes:
    """`example` with one to four changes; `other` is where splices come from."""
    raw = bytearray(example)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(raw, other, rng)
    return bytes(raw)


def _flip(raw: bytearray, other: bytes, rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _flip_early(raw: bytearray, other: bytes, rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(min(len(raw), 24))] ^= 1 << rng.randrange(8)


def _set(raw: bytearray, other: bytes, rng: random.Random) -> None:
    if raw:
        raw[rng.randrange(len(raw))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(raw: bytearray, other: bytes, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    if len(raw) >= width:
        at = rng.randrange(len(raw) - width + 1)
        value = rng.choice((0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, len(raw), rng.getrandbits(8 * width)))
        raw[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("big", "little")))


def _cut(raw: bytearray, other: bytes, rng: random.Random) -> None:
    del raw[rng.randrange(len(raw) + 1) :]


def _leave_out(raw: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    del raw[at : at + rng.randrange(1, 17)]


def _repeat(raw: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = raw[at : at + rng.randrange(1, 65)] * rng.choice((1, 2, 30))


def _insert(raw: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.randbytes(rng.randrange(1, 17))


def _splice(raw: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(raw) + 1)
    raw[at:] = other[rng.randrange(len(other) + 1) :]


_CHANGES = (_flip, _flip, _flip_early, _set, _number, _number, _cut, _leave_out, _repeat, _insert, _splice)


def fuzz(decoder: Decoder, count: int, seed: int) -> Outcome:
    """Try `count` mutations."""
    rng, outcome = random.Random(f"{seed}/{decoder.name}"), Outcome(decoder.name)
    for n in range(count):
        raw = mutated(rng.choice(decoder.examples), rng.choice(decoder.examples), rng)
        if n < TRACED:
            outcome.peak = max(outcome.peak, _allocated(decoder.decode, raw))
        _try(decoder, raw, outcome)
    return outcome


def _try(decoder: Decoder, raw: bytes, outcome: Outcome) -> None:
    begun = time.thread_time()
    outcome.tried += 1
    try:
        decoder.decode(raw)
        outcome.accepted += 1
        if decoder.sealed and raw not in decoder.examples:
            outcome.failures.append(f"forged, and accepted: {raw.hex()}")
    except (RemoteError, BadInput):
        outcome.refused += 1
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
        outcome.failures.append(f"{type(error).__name__}: {error} on {raw.hex()}")
    took = time.thread_time() - begun
    outcome.slowest = max(outcome.slowest, took)
    if took > SLOWEST_SECONDS:
        outcome.failures.append(f"{took:.1f} s on {raw.hex()}")


def _allocated(decode: Decode, raw: bytes) -> int:
    tracemalloc.start()
    with contextlib.suppress(Exception):  # counted in `_try`
        decode(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# --- what is decoded -----------------------------------------------------------------------------------------------


class Two:
    """Two peers that know each other; the first speaks."""

    def __init__(self, padding: Any = "none") -> None:
        self.identities = [Identity.from_seed(bytes([n]) * 32) for n in (1, 2)]
        keys = [X25519PrivateKey.generate() for _ in self.identities]
        publics = [key.public_key().public_bytes_raw() for key in keys]
        self.cards = [
            Card.issue(identity, public, RUN, f"/ip4/127.0.0.1/tcp/{4000 + n}", n)
            for n, (identity, public) in enumerate(zip(self.identities, publics, strict=True))
        ]
        self.rooms = [
            Mailroom(identity, key, RUN, 1 << 20, padding=padding)
            for identity, key in zip(self.identities, keys, strict=True)
        ]
        self.rooms[0].admit(self.cards[1])
        self.rooms[1].admit(self.cards[0])

    def say(self, body: bytes) -> bytes:
        """A frame of the first, for the second."""
        return self.rooms[0].seal(self.rooms[1].me, 1, body)

    def meet(self) -> "Two":
        """Let them hear each other, so that no hello rides along."""
        self.rooms[1].open(self.say(b""))
        self.rooms[0].open(self.rooms[1].seal(self.rooms[0].me, 1, b""))
        return self

    def resigned(self, frame: bytes) -> bytes:
        """`frame` with a signature of its sender's: what an admitted peer could make."""
        content = frame[:-SIGNATURE_BYTES]
        return content + self.identities[0].sign(b"veilmesh frame v1\x00" + hashlib.sha256(content).digest())


def decoders() -> list[Decoder]:
    """All of them. What an extra is needed for is left out where it is missing."""
    return [*_envelopes(), *_messages(), *_codecs(), *_arrays(), *_invites(), *_sums(), *_homomorphic()]


def _envelopes() -> Iterator[Decoder]:
    strangers, friends, padded = Two(), Two().meet(), Two("padme").meet()
    frames = [strangers.say(b"x" * 100), strangers.say(b"")]
    later = [friends.say(b"x" * 100), friends.say(b"")]
    yield Decoder("frame, with hello", frames, strangers.rooms[1].open, 0.5, sealed=True)
    yield Decoder("frame", later, friends.rooms[1].open, 0.5, sealed=True)
    for name, pair, examples in [("frame, signed anew", friends, later), ("hello, signed anew", strangers, frames)]:
        yield Decoder(name, examples, lambda raw, pair=pair: pair.rooms[1].open(pair.resigned(raw)), 0.5)  # type: ignore[misc]  # mypy and default arguments
    yield Decoder("padding", [b"body\x80" + bytes(40)], unpad)
    yield Decoder("frame, padded", [padded.say(b"x" * 300)], padded.rooms[1].open, 0.5, sealed=True)
    cards = [card.to_bytes() for card in strangers.cards]
    yield Decoder("card", cards, lambda raw: Card.from_bytes(raw).verify(), 0.5, sealed=True)
    door = Door(RUN, bytes(32), None)
    said = [door.announce(card).to_bytes() for card in strangers.cards]
    yield Decoder("announcement", said, lambda raw: door.check(Announcement.from_bytes(raw)), sealed=True)
    stream = b"".join(piece for size in (0, 1, 300, 40_000) for piece in in_pieces(bytes(size), 1 << 14))
    yield Decoder("frames on a stream", [stream], _read_stream, 0.5)


def _read_stream(raw: bytes) -> int:
    reader, rng = FrameReader(1 << 16), random.Random(len(raw))
    at = frames = 0
    while at < len(raw):
        step = rng.choice((1, 100, 5000, 1 << 15))
        frames += sum(1 for _ in reader.feed(raw[at : at + step]))
        if reader.held > (1 << 16) + (1 << 15) + 4:
            raise LocalError("more is held than a frame and what came last")
        at += step
    return frames


def _messages() -> Iterator[Decoder]:
    kinds = get_args(messages.Message)
    examples = [messages.encode(example(kind)) for kind in kinds]
    yield Decoder(f"message, {len(kinds)} types", examples, messages.decode, 8)


def example(kind: Any) -> Any:
    """A valid message of a type, found by trying: so a new type needs no entry here."""
    hints = [hint for name, hint in get_type_hints(kind).items() if name in kind.__struct_fields__]
    for values in itertools.product(*map(_values, hints)):
        said = kind(*values)
        try:
            messages.decode(messages.encode(said))
        except RemoteError:
            continue
        return said
    raise LocalError(f"no example of {kind.__name__} is valid: widen _values")


def _values(hint: Any) -> list[Any]:
    """Some values of an annotated field."""
    if get_origin(hint) is tuple:
        return [tuple([one] * n) for n in (1, 2, 0) for one in _values(get_args(hint)[0])]
    if get_origin(hint) in (Union, types.UnionType):
        return [value for part in get_args(hint) for value in _values(part)]
    known: dict[Any, list[Any]] = {
        int: [1, 0, 2],
        bytes: [bytes(range(size)) for size in (32, 64, 16, 0)],
        str: ["peer"],
        bool: [True],
        float: [0.5],
    }
    return known.get(hint, [None])


def _codecs() -> Iterator[Decoder]:
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=DIMENSION).astype(np.float32), np.zeros(DIMENSION, np.float32)]
    for codec in table.WIRE_IDS.values():
        blobs = [table.encode(codec(), x, rng) for x in vectors]
        yield Decoder(f"codec {codec.__name__}", blobs, lambda raw: table.decode(raw, DIMENSION))
    yield Decoder(
        "codec, any, lossless", [table.encode(codec(), vectors[0], rng) for codec in table.WIRE_IDS.values()],
        lambda raw: table.decode_lossless(raw, DIMENSION),
    )  # fmt: skip


def _arrays() -> Iterator[Decoder]:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": np.arange(5, dtype=np.int64), "c": np.ones(())}
    kinds = [str(dtype) for dtype in tensors.DTYPES.values()]
    packed = [tensors.pack(arrays), tensors.pack({}), tensors.pack({"x": np.zeros((2, 0, 3), np.float32)})]
    yield Decoder("named arrays", packed, lambda raw: tensors.unpack(raw, limit_bytes=1 << 16, dtypes=kinds), 2)


def _invites() -> Iterator[Decoder]:
    from veilmesh.sim.invite import Invite

    peer = Identity.from_seed(bytes(32)).peer
    invite = Invite(RUN, bytes(32), {peer: "/ip4/127.0.0.1/tcp/4001"}, {"peers": 3, "task": {"name": "digits"}})
    text = invite.to_string()
    inside = base64.urlsafe_b64decode(text.removeprefix("vm1.") + "==")[4:]

    def mended(raw: bytes) -> object:
        checked = zlib.crc32(raw).to_bytes(4, "big") + raw
        return Invite.parse("vm1." + base64.urlsafe_b64encode(checked).decode().rstrip("="))

    yield Decoder("invite", [text.encode()], lambda raw: Invite.parse(raw.decode("latin-1")))
    yield Decoder("invite, checksum mended", [inside], mended)


def _sums() -> Iterator[Decoder]:
    """What secure sums read besides their messages."""
    if importlib.util.find_spec("veilmesh.crypto.shares"):
        from veilmesh.crypto.shares import SHARE_BYTES, combine, split

        def joined(raw: bytes) -> bytes:
            size = SHARE_BYTES + 1
            return combine([(part[0], part[1:]) for at in range(0, len(raw), size) if (part := raw[at : at + size])], 3)

        held = b"".join(bytes([n]) + share for n, share in enumerate(split(bytes(range(32)), 3, 5), 1))
        yield Decoder("shares of a secret", [held[: 33 * n] for n in (3, 5)], joined, 0.05)
    if importlib.util.find_spec("veilmesh.crypto.masking"):
        from veilmesh.crypto.masking import check_public, key_pair

        def checked(raw: bytes) -> None:
            if len(raw) == 32:  # what the messages let through
                check_public(raw)

        yield Decoder("public key for masks", [key_pair(bytes([n]) * 32)[1] for n in (1, 2)] + [bytes(32)], checked)
    if importlib.util.find_spec("veilmesh.crypto.field"):
        from veilmesh.crypto import field as numbers

        shares = numbers.pack(numbers.elements(np.arange(50) - 25))
        yield Decoder("shares of a vector", [shares], lambda raw: numbers.unpack(raw, 50))
    if importlib.util.find_spec("veilmesh.swarm.strategies.brea_steps"):
        yield from _brea()


def _brea() -> Iterator[Decoder]:
    """What members of a BREA round say in each of its steps."""
    from veilmesh.crypto.field import elements, pack
    from veilmesh.swarm.strategies import brea_steps as brea
    from veilmesh.swarm.strategies.brea_terms import Terms

    terms, digest, nonce = Terms(members=4, colluding=1, liars=0, chosen=4, length=10, levels=100), bytes(32), bytes(16)
    share, sum_ = (pack(elements(np.arange(size))) for size in (10 + brea.CHECKS, 10))
    opening = brea.Opening(2, share, nonce)
    bodies = {
        brea.Step.DEAL: brea.Deal(share, nonce, (digest,) * 4, digest, digest),
        brea.Step.ECHO: brea.Echo((digest, b"", digest, digest), nonce),
        brea.Step.VIEW: brea.View((digest,) * 4, (nonce, b"", nonce, nonce)),
        brea.Step.TEST: brea.LowDegree(digest, ((1, 2), (), (3, 4), (5, 6))),
        brea.Step.DISTANCES: brea.Distances(digest, (1, 2, 3, -1, 5, 6), (opening,)),
        brea.Step.CHOICE: brea.Choice((0, 1, 3)),
        brea.Step.SUM: brea.Sum((0, 1, 3), sum_),
    }
    said = {bytes([step]) + brea.said(body) for step, body in bodies.items()}
    examples = sorted(said)

    def read(raw: bytes) -> object:
        return brea.read(brea.Step(raw[0] % len(brea.Step)), raw[1:], terms) if raw else None

    for raw in examples:
        read(raw)
    yield Decoder("steps of a BREA round", examples, read)


# --- homomorphic encryption ----------------------------------------------------------------------------------------


class Watched:
    """Counts what reaches TenSEAL's readers of bytes, and objects where no frame was opened before."""

    def __init__(self) -> None:
        self.authentic, self.reached = False, 0

    def around(self, reader: Callable[..., object]) -> Callable[..., object]:
        def watched(*given: Any, **named: Any) -> object:
            self.reached += 1
            if not self.authentic:
                raise LocalError(f"unauthenticated bytes reached {reader.__name__}")
            return reader(*given, **named)

        return watched


def _homomorphic() -> Iterator[Decoder]:
    if not (importlib.util.find_spec("tenseal") and importlib.util.find_spec("veilmesh.crypto.homomorphic")):
        print("left out: homomorphic encryption, for which tenseal is not installed (pip install tenseal)")
        return
    import tenseal

    from veilmesh.crypto.homomorphic import Approximate, Lanes
    from veilmesh.crypto.paillier_vectors import Paillier

    for scheme in (Lanes(), Approximate(), Paillier(key_bits=512)):
        keys, name = scheme.keys(), type(scheme).__name__.lower()
        secret = scheme.encrypt(keys.public, np.linspace(-0.5, 0.5, DIMENSION, dtype=np.float32))
        sum_ = scheme.add(keys.public, [secret, secret])
        yield Decoder(
            f"{name} ciphertext", [secret, sum_], lambda raw, s=scheme: s.check_ciphertext(raw, DIMENSION), 0.1
        )  # type: ignore[misc]  # mypy and default arguments
        yield Decoder(f"{name} public key", [keys.public], lambda raw, s=scheme: s.check_public(raw), 0.1)  # type: ignore[misc]  # mypy and default arguments
        yield Decoder(
            f"{name} sum, decrypted", [sum_], lambda raw, s=scheme, k=keys: s.decrypt(k, raw, DIMENSION, 2), 0.01
        )  # type: ignore[misc]  # mypy and default arguments
        yield Decoder(
            f"{name} key, used", [keys.public], lambda raw, s=scheme: s.encrypt(raw, np.zeros(8, np.float32)), 0.01
        )  # type: ignore[misc]  # mypy and default arguments
    watch = Watched()
    pair, scheme = Two().meet(), Lanes()
    keys = scheme.keys()
    blob = scheme.encrypt(keys.public, np.ones(8, np.float32))
    frames = [pair.say(messages.encode(messages.Summed(1, (0, 1), blob)))]

    def received(raw: bytes) -> object:
        """As a peer does it: open, read, check, decrypt. Readers are watched while this runs, and only then."""
        kept = {n: getattr(tenseal, n) for n in dir(tenseal) if n.endswith("_from")}
        for reader, real in kept.items():
            setattr(tenseal, reader, watch.around(real))
        try:
            said = messages.decode(pair.rooms[1].open(raw).body)
            watch.authentic = True
            assert isinstance(said, messages.Summed)
            return scheme.decrypt(keys, said.blob, 8, 1)
        finally:
            watch.authentic = False
            for reader, real in kept.items():
                setattr(tenseal, reader, real)

    if not np.allclose(np.asarray(received(pair.say(messages.encode(messages.Summed(1, (0, 1), blob))))), 1, atol=0.01):
        raise LocalError("an honest frame is not decrypted: the watch would watch nothing")
    if watch.reached < 2:
        raise LocalError("an honest frame did not reach the readers that are watched: TenSEAL's names have changed")
    yield Decoder("ciphertext in a frame", frames, received, 0.2, sealed=True)


# --- the command ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz and print the table; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--total", type=int, default=1_000_000, help="mutations of all decoders together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="decoders whose name has this in it")
    asked = parser.parse_args(arguments)
    chosen = [decoder for decoder in decoders() if asked.only in decoder.name]
    whole = sum(decoder.share for decoder in chosen)
    before, failed, tried = _grown(), 0, 0
    print(f"{'decoder':26} {'tried':>9} {'accepted':>9} {'refused':>9} {'slowest, us':>12} {'allocated, kB':>14}")
    for n, decoder in enumerate(chosen):
        left = asked.total - tried if n + 1 == len(chosen) else round(asked.total * decoder.share / whole)
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS + left // 50, exit=True)
        done = fuzz(decoder, max(left, 1), asked.seed)
        faulthandler.cancel_dump_traceback_later()
        tried, failed = tried + done.tried, failed + len(done.failures)
        figures = f"{done.tried:9,} {done.accepted:9,} {done.refused:9,} {1e6 * done.slowest:12,.0f}"
        print(f"{done.name:26} {figures} {done.peak / 1000:14,.0f}", flush=True)
        for failure in done.failures[:3]:
            print(f"  FAILED {failure[:2000]}")
    grown = _grown() - before
    print(f"{tried:,} mutations, {failed} failures; the process grew by {grown / 1e6:.0f} MB")
    if grown > GROWTH_BYTES:
        print(f"FAILED: it may grow by {GROWTH_BYTES / 1e6:.0f} MB at most")
    return int(failed > 0 or grown > GROWTH_BYTES)


def _grown() -> int:
    """The largest this process ever was, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
