"""The work of split mode where the middle stage is a linear layer on ciphertexts (`crypto.encrypted_training`).

Both members' work is that of `Stages`, but for what crosses the cut: the data owner encrypts what it says and decrypts
what it hears, and whoever has the layer answers on ciphertexts and never trains. What is trained is the data owner's
share of the layer, beside its head and its tail, by the same rules as any stage. A blob on its way up is

    0 | request          1 | public key | request

with the key until the first answer has come. Whoever has the layer takes the first key of a data owner, and no other.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from veilmesh.core import BadInput, Refusal, RemoteError, generator
from veilmesh.crypto import encrypted_linear, linear_frames
from veilmesh.crypto import encrypted_training as training
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.crypto.encrypted_linear import Floats, LinearKeys
from veilmesh.split.part import Part
from veilmesh.split.stage import Stages
from veilmesh.split.work import Asked, Backward, Fetch, Finish, Forward, Key, Pass, Refused, Returned, Said, Several
from veilmesh.tasks.work import Settings

__all__ = ["LayerOwner", "LayerUser", "require_linear"]

Request: TypeAlias = training.Asked
_Place = tuple[int, int]  # step and micro-batch
_LAYER = 1  # the stage


def require_linear(stage: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a stage that is one linear layer. Raises BadInput if it is anything else."""
    pieces = list(stage.children())
    if len(pieces) != 1 or not isinstance(pieces[0], nn.Linear) or pieces[0].bias is None:
        raise BadInput("The stage on ciphertexts has to be one linear layer with a bias; set split.cuts around one.")
    return pieces[0].in_features, pieces[0].out_features


class LayerOwner:
    """Has the layer. Learns sizes, and nothing of what the data owner trains with.

    Args:
        inner: its stages in clear: the layer as it began, which is how it stays.
        inputs, outputs: the layer's.
        most: the most examples at once.
        entropy: 32 secret bytes at every call.
    """

    def __init__(self, inner: Stages, inputs: int, outputs: int, most: int, entropy: Callable[[], bytes]) -> None:
        self._inner, self._most, self._entropy = inner, most, entropy
        (flat,) = inner.run([Fetch(0, _LAYER)])
        assert isinstance(flat, np.ndarray)
        self._weights = flat[: inputs * outputs].reshape(outputs, inputs).T.astype(np.float64)
        self._bias = flat[inputs * outputs :].astype(np.float64)
        self._keys: dict[int, bytes] = {}  # by data owner

    def run(self, tasks: Sequence[object]) -> list[object]:
        """As `Stages.run`."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        try:
            match task:
                case Forward(key=Key(head=head, stage=1), rows=rows, blob=bytes(blob)):
                    return Said(rows, 0, self._forward(head, rows, blob))
                case Backward(key=Key(head=head, stage=1), blob=blob):
                    public, request = self._opened(head, blob)
                    self._examples(request, *self._weights.shape[::-1])
                    return Returned(training.answer_backward(public, request, self._weights, self._entropy()))
                case Pass(head=head, stage=1, rows=rows, blob=bytes(blob)):
                    return Asked(rows, self._forward(head, rows, blob))
        except RemoteError as error:
            return Refused(str(error))
        (result,) = self._inner.run([task])
        return result

    def _forward(self, head: int, rows: int, blob: bytes) -> bytes:
        public, request = self._opened(head, blob)
        if self._examples(request, *self._weights.shape) != rows:
            raise RemoteError(Refusal.MISMATCH, f"a request about other than {rows} examples")
        return training.answer_forward(public, request, self._weights, self._bias, self._entropy())

    def _examples(self, request: bytes, inputs: int, outputs: int) -> int:
        """How many a request for a layer (F, O) is about."""
        batch = linear_frames.asked(request, inputs, outputs).batch
        if batch > self._most:
            raise RemoteError(Refusal.MISMATCH, f"{batch} examples at once")
        return batch

    def _opened(self, head: int, blob: bytes) -> tuple[bytes, bytes]:
        """The data owner's key, and its request."""
        size = linear_frames.SCHEME.public_size()
        if blob[:1] == b"\x01":
            public, request = blob[1 : 1 + size], blob[1 + size :]
            encrypted_linear.check_public(public)
            if self._keys.setdefault(head, public) != public:
                raise RemoteError(Refusal.MISMATCH, "another key than before")
            return public, request
        if blob[:1] != b"\x00" or head not in self._keys:
            raise RemoteError(Refusal.MISMATCH, "a request without a key")
        return self._keys[head], blob[1:]


class LayerUser:
    """Has the data, the labels, the head, the tail, the key, and its share of the layer.

    Args:
        inner: its stages in clear; they say everything losslessly.
        inputs, outputs: the layer's.
        settings: what the share is trained by.
    """

    def __init__(self, inner: Stages, inputs: int, outputs: int, settings: Settings) -> None:
        self._inner, self._inputs, self._outputs = inner, inputs, outputs
        share = nn.Linear(inputs, outputs)
        for parameter in share.parameters():
            nn.init.zeros_(parameter)
        self._share = Part(share, settings)
        self._keys = LinearKeys.generate()
        self._answered = False
        self._up: dict[_Place, tuple[Request, Tensor]] = {}  # activations, and what the share makes of them
        self._down: dict[_Place, tuple[Request, Tensor]] = {}  # gradients, and what the share makes of them
        self._asked: dict[int, Request] = {}  # by part of a question

    def run(self, tasks: Sequence[object]) -> list[object]:
        """As `Stages.run`. Raises BadInput also where activations are too large to be encrypted."""
        return [self._one(task) for task in tasks]

    def _one(self, task: object) -> object:
        try:
            match task:
                case Several():
                    return task.each(self._one)
                case Forward(key=Key(stage=0)):
                    return self._forward(task)
                case Finish(key=Key(stage=2)):
                    return self._finish(task)
                case Backward(key=Key(stage=0)):
                    return self._backward(task)
                case Pass(stage=0):
                    return self._pass(task)
                case Pass(stage=2, blob=bytes()):
                    return self._passed(task)
                case Fetch(stage=2):
                    return np.concatenate([np.asarray(self._plain(task), np.float32), self._share.parameters])
        except RemoteError as error:
            return Refused(str(error))
        return self._plain(task)

    # --- a step ------------------------------------------------------------------------------------------------

    def _forward(self, task: Forward) -> object:
        said = self._plain(task)
        assert isinstance(said, Said)
        key, activations = task.key, _tensor(said.blob, said.rows, self._inputs)
        blob, request = training.ask_forward(self._keys.public, _floats(activations), self._outputs)
        y = self._share.forward(activations, (key.step, key.head, key.micro), learns_input=True)
        self._up = {place: kept for place, kept in self._up.items() if place[0] == key.step}
        self._up[key.step, key.micro] = request, y.detach()
        return replace(said, blob=self._addressed(blob))

    def _finish(self, task: Finish) -> object:
        key = task.key
        request, mine = _held(self._up, key)
        y = torch.from_numpy(self._opened(request, task.blob)).float() + mine
        result = self._plain(replace(task, blob=_dense(y)))
        if not isinstance(result, Returned):
            return result
        gradient = _tensor(result.blob, task.rows, self._outputs)
        place = key.step, key.head, key.micro
        back = self._share.backward(place, gradient)
        assert back is not None
        self._share.step(key.step, key.head, key.of)
        blob, asked = training.ask_backward(self._keys.public, _floats(gradient), self._inputs)
        self._down = {place: kept for place, kept in self._down.items() if place[0] == key.step}
        self._down[key.step, key.micro] = asked, back
        return replace(result, blob=self._addressed(blob))

    def _backward(self, task: Backward) -> object:
        request, mine = _held(self._down, task.key)
        gradient = torch.from_numpy(self._opened(request, task.blob)).float() + mine
        return self._plain(replace(task, blob=_dense(gradient)))

    # --- questions ---------------------------------------------------------------------------------------------

    def _pass(self, task: Pass) -> object:
        asked = self._plain(task)
        assert isinstance(asked, Asked)
        activations = _tensor(asked.blob, asked.rows, self._inputs)
        blob, self._asked[task.part] = training.ask_forward(self._keys.public, _floats(activations), self._outputs)
        return replace(asked, blob=self._addressed(blob))

    def _passed(self, task: Pass) -> object:
        if task.part not in self._asked or task.blob is None:
            raise RemoteError(Refusal.MISMATCH, "an answer to what was never asked")
        request = self._asked[task.part]
        with torch.inference_mode():
            mine = self._share.module(torch.from_numpy(request.values).float())
        y = torch.from_numpy(self._opened(request, task.blob)).float() + mine
        return self._plain(replace(task, rows=len(y), blob=_dense(y)))

    # --- pieces ------------------------------------------------------------------------------------------------

    def _plain(self, task: object) -> object:
        (result,) = self._inner.run([task])
        return result

    def _addressed(self, request: bytes) -> bytes:
        return b"\x00" + request if self._answered else b"\x01" + self._keys.public + request

    def _opened(self, request: Request, answer: bytes) -> Floats:
        found = request.opened(self._keys, answer)
        self._answered = True
        return found


def _held(kept: dict[_Place, tuple[Request, Tensor]], key: Key) -> tuple[Request, Tensor]:
    if (key.step, key.micro) not in kept:
        raise RemoteError(Refusal.MISMATCH, f"an answer to nothing of step {key.step}, micro-batch {key.micro}")
    return kept[key.step, key.micro]


def _tensor(blob: bytes, rows: int, width: int) -> Tensor:
    """What an inner stage said, losslessly."""
    return torch.from_numpy(np.array(table.decode_lossless(blob, rows * width))).view(rows, width)


def _dense(x: Tensor) -> bytes:
    return table.encode(Dense(), x.detach().contiguous().numpy().reshape(-1), generator(0, "lossless"))


def _floats(x: Tensor) -> Floats:
    return x.detach().numpy().astype(np.float64)
