"""What split peers say to each other: messages, msgpack arrays, decoded strictly.

Stages are numbered along the network: stage 0 is the head, at a data owner. A message names the data owner (`head`, a
place in the roster) whose examples it is about, and the `stage` it is for. `Activations` go up, `Gradients` come down.
A step id makes a retry idempotent: whoever has answered already says the same again.
"""

from typing import TypeAlias

import msgspec

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.bodies import strictly

__all__ = [
    "Activations", "Answer", "Ask", "Diverged", "Done", "Gradients", "Handover", "Labels", "Message", "Replica",
    "Rewire", "Taken", "decode", "encode",
]  # fmt: skip


class Activations(msgspec.Struct, frozen=True, array_like=True, tag="activations", forbid_unknown_fields=True):
    """What enters `stage` of `rows` examples: micro-batch `micro` (0, 1, ...) of the `of` that `step` has, which has
    `total` examples in all. `labels`, two bytes each, little-endian, where the head sends them; `which`, four bytes
    each: the examples' numbers, where their labels are held elsewhere. Both empty otherwise, and where `Labels` say
    it."""

    head: int
    stage: int
    step: int
    micro: int
    of: int
    rows: int
    total: int
    blob: bytes
    labels: bytes
    which: bytes


class Labels(msgspec.Struct, frozen=True, array_like=True, tag="labels", forbid_unknown_fields=True):
    """The labels of a micro-batch, or its examples' numbers, as in `Activations`: straight to whoever plays the last
    `stage`, where others stand between, who have no business with them."""

    head: int
    stage: int
    step: int
    micro: int
    rows: int
    labels: bytes
    which: bytes


class Gradients(msgspec.Struct, frozen=True, array_like=True, tag="gradients", forbid_unknown_fields=True):
    """The gradient of the loss with respect to what left `stage`; `loss`: the micro-batch's share of the step's loss,
    as the label owner says it."""

    head: int
    stage: int
    step: int
    micro: int
    blob: bytes
    loss: float


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask", forbid_unknown_fields=True):
    """What enters `stage` of `rows` examples that nothing is to be learned from: part `part` of question `number`."""

    head: int
    stage: int
    number: int
    part: int
    rows: int
    blob: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer", forbid_unknown_fields=True):
    """The network's answers to `Ask`, on their way down to `stage`."""

    head: int
    stage: int
    number: int
    part: int
    rows: int
    blob: bytes


class Handover(msgspec.Struct, frozen=True, array_like=True, tag="handover", forbid_unknown_fields=True):
    """The head's parameters with which its next owner begins `round`, losslessly."""

    head: int
    round: int
    blob: bytes


class Taken(msgspec.Struct, frozen=True, array_like=True, tag="taken", forbid_unknown_fields=True):
    """I have the head with which `round` begins."""

    head: int
    round: int


class Replica(msgspec.Struct, frozen=True, array_like=True, tag="replica", forbid_unknown_fields=True):
    """To a standby: the parameters of `stage` after `step`, losslessly; `start` those its round began with, `state` the
    optimizer's, where there is any."""

    head: int
    stage: int
    step: int
    blob: bytes
    start: bytes
    state: bytes


class Rewire(msgspec.Struct, frozen=True, array_like=True, tag="rewire", forbid_unknown_fields=True):
    """From now on the member at place `player` of the roster plays `stage` for `head`."""

    head: int
    stage: int
    player: int


class Diverged(msgspec.Struct, frozen=True, array_like=True, tag="diverged", forbid_unknown_fields=True):
    """To a data owner: what came of `step` at `stage` is beyond all bounds, so it cannot be done."""

    head: int
    stage: int
    step: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done", forbid_unknown_fields=True):
    """This data owner has done so many `rounds`, and asks for nothing more."""

    head: int
    rounds: int


Message: TypeAlias = (
    Activations | Labels | Gradients | Ask | Answer | Handover | Taken | Replica | Rewire | Diverged | Done
)  # fmt: skip

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_MOST = 1 << 31
_STAGES = 1 << 10


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _ENCODER.encode(message)


def decode(body: bytes) -> Message:
    """The message in `body`. Raises RemoteError(MALFORMED) if there is none, or its numbers are out of range."""
    message = strictly(_DECODER, body)
    if problem := _wrong(message):
        raise RemoteError(Refusal.MALFORMED, problem)
    return message


def _wrong(message: Message) -> str | None:
    """What is wrong with a message, as far as it can be seen without knowing the network."""
    numbers = [value for value in msgspec.structs.astuple(message) if isinstance(value, int)]
    if not all(0 <= number < _MOST for number in numbers):
        return "a number out of range"
    if not isinstance(message, Handover | Taken | Done) and message.stage >= _STAGES:
        return "a stage that no network has"
    match message:
        case Activations(micro=micro, of=of, rows=rows, total=total, labels=labels, which=which):
            if not micro < of or not 0 < rows <= total:
                return "a micro-batch that its step does not have"
            if len(labels) not in (0, 2 * rows) or len(which) not in (0, 4 * rows):
                return "labels of other examples"
        case Labels(rows=rows, labels=labels, which=which):
            if not rows or len(labels) not in (0, 2 * rows) or len(which) not in (0, 4 * rows):
                return "labels of other examples"
        case Gradients(loss=loss):
            if loss != loss or abs(loss) == float("inf"):
                return "a loss that is no number"
        case Ask(rows=rows) | Answer(rows=rows):
            if not rows:
                return "a question about nothing"
    return None
