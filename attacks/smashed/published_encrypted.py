"""What the published encrypted split tells its server: labels and activations, although activations are encrypted.

There (U-shaped split learning on CKKS: "Split ways", 2023, and HESplitNet) the client sends Enc(a) and, in clear,
g = dL/dy; the server has its layer W in clear before and after a step. Rows of g, softmax(y) - onehot but for a factor,
have one negative entry, the label. And W_before - W_after = lr a^T g, so a^T is that times g's pseudo-inverse: exact
where g has rank B. Its rows sum to zero, so its rank is at most classes - 1; of larger batches the part of a in the
span of g is recovered. (A third way needs no arithmetic: that client decrypts whatever is labelled W, and sends it.)

The same functions run on the view of a server of `crypto.encrypted_training`: there W does not change, and what stands
where g stood is a ciphertext, of which a server without the key has `as_numbers`.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto import linear_frames

__all__ = ["ServerStep", "activations", "as_numbers", "encrypted_step", "labels"]

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ServerStep:
    """One step as its server has it: what it was sent as `gradient` (B, C), and its layer (F, C) before and after."""

    gradient: Floats
    before: Floats
    after: Floats
    learning_rate: float


def labels(step: ServerStep) -> NDArray[np.int64]:
    """The labels (B,): of every example the class whose gradient is lowest."""
    lowest: NDArray[np.int64] = step.gradient.argmin(1).astype(np.int64)
    return lowest


def activations(step: ServerStep) -> Floats:
    """The activations (B, F), as far as g and the update determine them: least squares of smallest norm."""
    update = (step.before - step.after) / step.learning_rate
    found: Floats = (update @ np.linalg.pinv(step.gradient)).T
    return found


def as_numbers(request: bytes, inputs: int, outputs: int) -> Floats:
    """A request of `encrypted_linear` (B, F) taken for clear numbers in [-1, 1): c0 where the values were put.

    Raises RemoteError where it is no request for a layer (F, O).
    """
    packed, prime = linear_frames.asked(request, inputs, outputs), linear_frames.primes()[0]
    words = linear_frames.read_up(request, packed)[:, :, 0, 0]
    numbers: Floats = packed.values(words).astype(np.float64) * (2.0 / prime) - 1.0
    return numbers


def encrypted_step(backward: bytes, weights: Floats, learning_rate: float) -> ServerStep:
    """A step of `encrypted_training` as its server has it: the request for the backward half, and W_s (F, C), which
    stays what it was."""
    inputs, classes = weights.shape
    return ServerStep(as_numbers(backward, classes, inputs), weights, weights, learning_rate)
