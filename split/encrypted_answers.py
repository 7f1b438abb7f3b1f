"""The work of encrypted inference: whoever has a network answers questions that it cannot read.

A question is the public key of who asks and the ciphertexts of its pictures (`crypto.encrypted_inference`), in pieces
that fit a frame; each is a part of the question for the machines. A piece, and what is said to it:

    question u32  pieces u16 | at most `PIECE` bytes of  public key, ciphertexts
    0    it is held          1 | ciphertexts of the answers, to the piece that was missing last

What was said to a piece is said again when it comes again. No key is kept: answers are for the key in their question.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.encrypted_inference import SLOTS, Dense, InferenceKeys, encrypt, infer, sizes
from veilmesh.split.cut import pieces
from veilmesh.split.work import (
    Asked,
    Backward,
    Fetch,
    Finish,
    Forward,
    Judge,
    Judged,
    Pass,
    Refused,
    Returned,
    TrainRound,
)
from veilmesh.tasks.data.base import Dataset, Labels, Pictures
from veilmesh.tasks.models.build import vector_to_parameters
from veilmesh.tasks.models.layers import Square
from veilmesh.tasks.training import Trainer
from veilmesh.tasks.work import Train, Trained

__all__ = ["FEATURES", "PIECE", "Answerer", "Asker", "before_answers", "require_few"]

PIECE: Final = 8 << 20
"""The most bytes of a question in one part."""
FEATURES: Final = 1024
"""The most features of a picture: each is a ciphertext of more than a megabyte."""
_HEAD: Final = struct.Struct("!IH")
_HELD, _ANSWER = b"\x00", b"\x01"


def before_answers(network: nn.Module) -> tuple[int]:
    """Where what is on ciphertexts begins: after how many pieces, which have no parameters.

    Raises BadInput unless what follows is a linear layer, a square and a linear layer.
    """
    every = [piece for _, piece in pieces(network)]
    tail = every[-3:]
    shape = [type(piece) for piece in tail] == [nn.Linear, Square, nn.Linear]
    biased = all(piece.bias is not None for piece in tail if isinstance(piece, nn.Linear))
    if not shape or not biased or any(True for piece in every[:-3] for _ in piece.parameters()):
        raise BadInput(
            "On ciphertexts there are no layers but linear, square, linear; set model to an mlp with one hidden layer "
            'and the activation "square".'
        )
    return (len(every) - 3,)


def require_few(features: int, data: Dataset) -> None:
    """Raises BadInput where a question would be too large."""
    if features > FEATURES or len(data.test_x) > SLOTS:
        raise BadInput(
            f"Encrypted inference asks about at most {SLOTS} test pictures of {FEATURES} features, and here are "
            f"{len(data.test_x)} of {features}; take a smaller task."
        )


class Asker:
    """Has the pictures, their labels, and the only secret key. Learns the answers.

    Args:
        head: what it does in clear, which learns nothing: to features (B, F) within +-1.
        x, y: the pictures (n, C, H, W) it asks about and their labels.
        classes: how many outputs an answer has.
    """

    def __init__(self, head: nn.Module, x: Pictures, y: Labels, classes: int) -> None:
        with torch.inference_mode():
            self._x = head(torch.from_numpy(np.array(x))).numpy().astype(np.float64)
        self._y, self._classes = torch.from_numpy(np.array(y)), classes
        self._keys = InferenceKeys.generate()
        self._number = 0
        self._question = b""
        self._held: set[int] = set()
        self._answered = False

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers to tasks, in their order. Raises LocalError on others than a data owner's, BadInput where
        pictures cannot be encrypted."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        match task:
            case Pass(stage=0, part=part):
                return self._piece(part)
            case Judge(part=part, rows=rows, blob=blob):
                try:
                    return self._judge(part, rows, blob)
                except RemoteError as error:
                    return Refused(str(error))
            case Fetch(stage=0):
                return np.zeros(0, np.float32)
        raise LocalError(f"who only asks cannot do a {type(task).__name__}")

    @property
    def _pieces(self) -> int:
        return -(-len(self._question) // PIECE)

    def _piece(self, part: int) -> Asked:
        if part == 0:
            self._number += 1
            self._question = self._keys.public + encrypt(self._keys.public, self._x)
            self._held, self._answered = set(), False
        piece = self._question[part * PIECE : (part + 1) * PIECE]
        return Asked(len(self._x), _HEAD.pack(self._number, self._pieces) + piece, self._pieces)

    def _judge(self, part: int, rows: int, blob: bytes) -> Judged:
        if blob == _HELD and len(self._held) < self._pieces - 1:  # one of them has to be answered
            self._held.add(part)
            return Judged(0, 0.0, 0)
        if blob[:1] != _ANSWER or self._answered or rows != len(self._x):
            raise RemoteError(Refusal.MISMATCH, "no answer to this question")
        logits = torch.from_numpy(self._keys.decrypt(blob[1:], rows, self._classes))
        self._answered = True
        right = int((logits.argmax(1) == self._y).sum())
        return Judged(right, float(functional.cross_entropy(logits, self._y, reduction="sum")), rows)


class Answerer:
    """Has the network and pictures of its own. Learns how many pictures it is asked about, and when.

    Args:
        trainer: trains on its own pictures.
        network: what it answers with (`before_answers`).
        parameters: the network's (d,), as training begins.
        entropy: 32 secret bytes at every call.
    """

    def __init__(
        self, trainer: Trainer, network: nn.Module, parameters: Vector, entropy: Callable[[], bytes]
    ) -> None:  # fmt: skip
        self._trainer, self._network, self._parameters, self._entropy = trainer, network, parameters, entropy
        first, _, second = [piece for _, piece in pieces(network)][-3:]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        self._linear = first, second
        self._size, _ = sizes(1, first.in_features, second.out_features)
        self._number = 0
        self._held: dict[int, bytes] = {}  # of the question under way, until all of it is there
        self._said: dict[int, bytes] = {}

    def run(self, tasks: Sequence[object]) -> list[object]:
        """The answers to tasks, in their order. Raises LocalError on tasks of no kind that there is, BadInput where
        training diverged or layers are too large for ciphertexts."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        match task:
            case TrainRound(round=round_):
                return self._train(round_)
            case Fetch(stage=1):
                return self._parameters
            case Pass(part=part, rows=rows, blob=bytes(blob)):
                try:
                    return Asked(rows, self._answer(part, blob))
                except RemoteError as error:
                    return Refused(str(error))
            case Forward() | Finish() | Backward():
                return Refused("nothing is learned here from what others send")
        raise LocalError(f"who only answers cannot do a {type(task).__name__}")

    def _train(self, round_: int) -> Returned:
        (trained,) = self._trainer.run([Train(round_, self._parameters)])
        assert isinstance(trained, Trained)
        self._parameters = self._parameters + trained.update
        return Returned(loss=trained.loss)

    def _answer(self, part: int, blob: bytes) -> bytes:
        if not _HEAD.size < len(blob) <= _HEAD.size + PIECE:
            raise RemoteError(Refusal.TRUNCATED, f"a piece of {len(blob)} bytes")
        number, parts = _HEAD.unpack_from(blob)
        if number < self._number or not part < parts <= -(-self._size // PIECE) + 1:  # with a key, which is smaller
            raise RemoteError(Refusal.MISMATCH, f"piece {part} of {parts}")
        if number > self._number:
            self._number, self._held, self._said = number, {}, {}
        if part not in self._said:
            self._said[part] = self._taken(part, parts, blob[_HEAD.size :])
        return self._said[part]

    def _taken(self, part: int, parts: int, piece: bytes) -> bytes:
        """What is said to a piece that is new."""
        if len(self._held) + 1 < parts:
            self._held[part] = piece
            return _HELD
        whole = b"".join(body for _, body in sorted({**self._held, part: piece}.items()))
        answer = infer(whole[: -self._size], whole[-self._size :], self._layers(), self._entropy())
        self._held = {}
        return _ANSWER + answer

    def _layers(self) -> tuple[Dense, Dense]:
        vector_to_parameters(self._network, self._parameters)
        first, second = (
            Dense(*(p.detach().numpy().astype(np.float64) for p in (layer.weight.T, layer.bias)))
            for layer in self._linear
        )
        return first, second
