"""What swarm peers say to each other: messages, msgpack arrays, decoded strictly.

`Update` carries an encoded difference: in gossip, from the sender's public copy (what its neighbours hold of it) to its
model after local training; in the star, from the round's global model to the client's. `Model` is the hub's broadcast.
`Ask` and `Copy` mend a lost frame in gossip: differences only add up if none is missing. `Share` is push-sum's: mass
and the weight that goes with it. `Delta` is a difference on one link of a gossip without rounds. `ControlledModel` and
`ControlledUpdate` are SCAFFOLD's, with control variates. `Attest` and `Vouch` let one who comes late to a gossip hold
a copy against what others hold of the same peer. `Part` and `Averaged` are those of an
all-reduce, `Passed` what goes round in a ring of one; `Commit`, `Reveal` and `Vote` elect a leader, who says `Merged`.
`Key`, `Encrypted` and `Summed` are those of homomorphic encryption. Those of a sum by masks stand in `secure_messages`.
"""

from typing import TypeAlias

import msgspec

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.bodies import strictly
from veilmesh.swarm.secure_messages import SumMessage, wrong_sum

__all__ = [
    "Ask", "Attest", "Averaged", "Commit", "ControlledModel", "ControlledUpdate", "Copy", "Delta", "Encrypted", "Key",
    "Merged", "Message", "Summed",
    "Model", "DIGEST", "NONCE", "Part", "Passed", "Reveal", "Share", "Step", "Update", "Vote", "Vouch", "decode",
    "encode",
]  # fmt: skip


class Update(msgspec.Struct, frozen=True, array_like=True, tag="update", forbid_unknown_fields=True):
    """An encoded update of `round` (0, 1, ...); `samples` is how many examples stand behind it."""

    round: int
    samples: int
    blob: bytes


class Model(msgspec.Struct, frozen=True, array_like=True, tag="model", forbid_unknown_fields=True):
    """The global model with which `round` begins, encoded losslessly."""

    round: int
    blob: bytes


class ControlledModel(msgspec.Struct, frozen=True, array_like=True, tag="controlled-model", forbid_unknown_fields=True):
    """SCAFFOLD's `Model`: `control` is the server's control variate, encoded losslessly too; `taken`, for every client
    in roster order, is the last round whose update of it was taken in, or -1."""

    round: int
    blob: bytes
    control: bytes
    taken: tuple[int, ...]


class ControlledUpdate(
    msgspec.Struct, frozen=True, array_like=True, tag="controlled-update", forbid_unknown_fields=True
):
    """SCAFFOLD's `Update`: `control` is the encoded change of the sender's control variate."""

    round: int
    samples: int
    blob: bytes
    control: bytes


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask", forbid_unknown_fields=True):
    """I never got your update of `round`: send me your public copy; in a ring, say again what I still need of it."""

    round: int


class Copy(msgspec.Struct, frozen=True, array_like=True, tag="copy", forbid_unknown_fields=True):
    """My public copy after my update of `round`, encoded losslessly."""

    round: int
    blob: bytes


class Share(msgspec.Struct, frozen=True, array_like=True, tag="share", forbid_unknown_fields=True):
    """A part of the sender's mass in `round`: `blob` its values, `weights` their push-sum weights, encoded losslessly:
    one for each coordinate that `blob` says, or a single one for all of them."""

    round: int
    samples: int
    blob: bytes
    weights: bytes


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="delta", forbid_unknown_fields=True):
    """An encoded difference on one link: the sender's model after `round` of its steps (1, 2, ...), less what this link
    was told after `since` of them (0: the common beginning). `heard`: the last of the receiver's steps that the sender
    had heard of then. `last`: whether the sender says no more."""

    round: int
    since: int
    samples: int
    blob: bytes
    heard: int
    last: bool


class Attest(msgspec.Struct, frozen=True, array_like=True, tag="attest", forbid_unknown_fields=True):
    """What do you hold of `peer` after its update of `round`?"""

    round: int
    peer: str


class Vouch(msgspec.Struct, frozen=True, array_like=True, tag="vouch", forbid_unknown_fields=True):
    """The SHA-256 `digest` of what I hold of `peer` after its update of `round`; empty: I hold nothing of it."""

    round: int
    peer: str
    digest: bytes


class Part(msgspec.Struct, frozen=True, array_like=True, tag="part", forbid_unknown_fields=True):
    """Part number `part` (0, 1, ...) of what the sender wants averaged in `round`: `blob`, and beside a lossy one the
    model itself in eight bits, `levels`."""

    round: int
    part: int
    blob: bytes
    levels: bytes


class Averaged(msgspec.Struct, frozen=True, array_like=True, tag="averaged", forbid_unknown_fields=True):
    """Part number `part` of `round`, averaged over what `count` peers said of it."""

    round: int
    part: int
    count: int
    blob: bytes
    levels: bytes


class Passed(msgspec.Struct, frozen=True, array_like=True, tag="passed", forbid_unknown_fields=True):
    """Part number `part` of `round` on its way round a ring: the mean over the `count` peers that it has passed."""

    round: int
    part: int
    count: int
    blob: bytes


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit", forbid_unknown_fields=True):
    """The hash (32 bytes) of the sender's nonce for `ballot` (1, 2, ...); its model is that of `round`, and the last
    ballot it knows the outcome of is `settled`."""

    round: int
    ballot: int
    settled: int
    digest: bytes


class Reveal(msgspec.Struct, frozen=True, array_like=True, tag="reveal", forbid_unknown_fields=True):
    """The nonce (16 bytes) that the sender committed itself to in `ballot`."""

    round: int
    ballot: int
    nonce: bytes


class Vote(msgspec.Struct, frozen=True, array_like=True, tag="vote", forbid_unknown_fields=True):
    """Whom (a place in the roster) the sender computes to be the leader by `ballot`, from `nonces`: one for every
    place, empty where it has none."""

    round: int
    ballot: int
    leader: int
    nonces: tuple[bytes, ...]


class Merged(msgspec.Struct, frozen=True, array_like=True, tag="merged", forbid_unknown_fields=True):
    """The model with which `round` begins, losslessly, from the leader by `ballot`; `group` updates were merged into it
    in the round before, or none: then it is what the leader had when it was elected."""

    round: int
    ballot: int
    group: int
    blob: bytes


class Key(msgspec.Struct, frozen=True, array_like=True, tag="key", forbid_unknown_fields=True):
    """From `round` on, this is the sender's public key; where one key is everybody's, it is that one, secret too."""

    round: int
    blob: bytes


class Encrypted(msgspec.Struct, frozen=True, array_like=True, tag="encrypted", forbid_unknown_fields=True):
    """The sender's model of `round` under the public key of the peer at place `to` of the roster; `key` is that key's
    SHA-256. It goes to whoever adds for that peer, who has no key to it."""

    round: int
    to: int
    key: bytes
    blob: bytes


class Summed(msgspec.Struct, frozen=True, array_like=True, tag="summed", forbid_unknown_fields=True):
    """The sum, still encrypted under the receiver's key, of what the peers at these `places` said in `round`; none
    where there were too few of them for a sum to hide anybody. Where one key is everybody's, and decryptions are
    published, a sum that the sender has decrypted: float64, little-endian."""

    round: int
    places: tuple[int, ...]
    blob: bytes


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step", forbid_unknown_fields=True):
    """What the sender says in `step` (0, 1, ...) of a `round` of several, in the words of that step: `body`."""

    round: int
    step: int
    body: bytes


Message: TypeAlias = (
    SumMessage | Update | Model | ControlledModel | ControlledUpdate | Ask | Copy | Share | Delta | Attest | Vouch
    | Part | Averaged | Passed | Commit | Reveal | Vote | Merged | Key | Encrypted | Summed | Step
)  # fmt: skip

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_ROUNDS = 1 << 31
DIGEST, NONCE = 32, 16
"""Bytes of a commitment, and of what it commits to."""
_NAME = 128  # characters of a peer id, at most


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _ENCODER.encode(message)


def decode(body: bytes) -> Message:
    """The message in `body`. Raises RemoteError(MALFORMED) if there is none, or its numbers are out of range."""
    message = strictly(_DECODER, body)
    if not 0 <= message.round < _ROUNDS:
        raise RemoteError(Refusal.MALFORMED, "round out of range")
    if isinstance(message, Update | ControlledUpdate | Share | Delta) and not 0 < message.samples < _ROUNDS:
        raise RemoteError(Refusal.MALFORMED, "sample count out of range")
    if isinstance(message, Delta) and not 0 <= message.since < message.round:
        raise RemoteError(Refusal.MALFORMED, "a difference to what was said later")
    if isinstance(message, Delta) and not 0 <= message.heard < _ROUNDS:
        raise RemoteError(Refusal.MALFORMED, "a step that nobody can have made")
    if isinstance(message, Attest | Vouch) and len(message.peer) > _NAME:
        raise RemoteError(Refusal.MALFORMED, "a name that is no peer's")
    if isinstance(message, Vouch) and len(message.digest) not in (0, 32):
        raise RemoteError(Refusal.MALFORMED, "a digest of another length")
    if (problem := wrong_sum(message) or _out_of_shape(message)) is not None:
        raise RemoteError(Refusal.MALFORMED, problem)
    return message


def _out_of_shape(message: Message) -> str | None:
    """What is wrong with a message of an all-reduce, of an election or of homomorphic encryption."""
    numbers: tuple[int, ...] = ()
    match message:
        case Part(part=part):
            numbers = (part,)
        case Step(step=step):
            numbers = (step,)
        case Averaged(part=part, count=count) | Passed(part=part, count=count):
            numbers = (part, count - 1)
        case Commit(ballot=ballot, settled=settled, digest=digest):
            numbers = (ballot - 1, settled, ballot - 1 - settled)
            if len(digest) != DIGEST:
                return "a digest of another length"
        case Reveal(ballot=ballot, nonce=nonce):
            numbers = (ballot - 1,)
            if len(nonce) != NONCE:
                return "a nonce of another length"
        case Vote(ballot=ballot, leader=leader, nonces=nonces):
            numbers = (ballot - 1, leader)
            if any(len(nonce) not in (0, NONCE) for nonce in nonces):
                return "a nonce of another length"
        case Merged(ballot=ballot, group=group):
            numbers = (ballot - 1, group)
        case Encrypted(to=to, key=key):
            numbers = (to,)
            if len(key) != DIGEST:
                return "a digest of another length"
        case Summed(places=places):
            numbers = places
            if any(a >= b for a, b in zip(places, places[1:], strict=False)):
                return "places out of order"
    return None if all(0 <= number < _ROUNDS for number in numbers) else "a number out of range"
