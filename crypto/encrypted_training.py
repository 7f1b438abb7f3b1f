"""Training through somebody else's linear layer on ciphertexts, so that nothing of the data leaves its owner in clear.

Two parties. The client has the examples, their labels, a head (features a of an example) and the only secret key. The
server has a linear layer, W_s (F, O) and b_s (O,), say of a model that it hosts. The layer they train is
W = W_s + W_c: the client's share W_c begins at zero. A step:

    client   -> Enc(a)                      server: a W_s + b_s on ciphertexts, blinded and flooded
             <- Enc(a W_s + b_s)            client: y = that + a W_c + b_c, its loss, g = dL/dy
             -> Enc(g / |g|)                server: (g / |g|) W_s^T on ciphertexts, blinded and flooded
             <- Enc(g / |g| W_s^T)          client: dL/da = |g| times that + g W_c^T, for its head; W_c -= lr a^T g

which is stochastic gradient descent on W, to the rounding of `encrypted_linear`. The second exchange is skipped where
the head does not learn.

Why the gradient of W stays with the client. In the published scheme (U-shaped split learning on CKKS: "Split ways",
2023, and its successors) g goes to the server in clear, which is the labels; the server then has W before and after
in clear, a^T g, and out of both the activations, exactly where a batch is no larger than classes - 1; and the client
decrypts whatever is labelled W and sends it back. Three repairs fall short:

* Enc(g), and the server computes Enc(a^T g): the client knows a and g, and may as well compute a^T g itself. Whoever
  then learns a^T g in clear to update W has a matrix whose columns span the activations, and whose bias part counts the
  labels, without ever seeing g.
* the same, blinded by the server for the client to open: hides a^T g from the client alone, who knows it already.
* a^T g with noise enough to hide the examples: differential privacy, an honest other bargain; not for batches of four.

What is left: no update of W reaches the server. That is what the sum of shares says.

What each side learns. The server: sizes, the number of steps, and when; all else is BFV ciphertexts under a key that
it has not. It may answer falsely and spoil the training: an answer of the right form is never refused, and changes what
the client sends only inside ciphertexts, or makes it stop. The client: a W_s + b_s and g W_s^T for its own a and g; so
after F independent activations W_s itself: this hides the data from the model's owner, and the model from nobody who
trains with it. The server cannot use the trained layer alone, for it misses W_c: inference is the forward half of a
step. Several clients may sum their W_c by secure aggregation; to hand W_c to the server is to publish a sum of
gradients, with all that this gives away.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.crypto.encrypted_linear import LinearKeys, encrypt, evaluate

__all__ = ["Asked", "Share", "answer_backward", "answer_forward", "ask_backward", "ask_forward"]

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What the client keeps of a request until the answer comes: the clear values (B, F) or (B, O), their scale, and
    how wide the answer is."""

    values: Floats
    scale: float
    width: int

    def opened(self, keys: LinearKeys, answer: bytes) -> Floats:
        """The server's part of the answer (B, width). Raises RemoteError where `answer` is none."""
        batch, inputs = self.values.shape
        return self.scale * keys.decrypt(answer, batch, inputs, self.width)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """The client's share of the layer: `weights` W_c (F, O) and `bias` b_c (O,)."""

    weights: Floats
    bias: Floats

    @classmethod
    def zero(cls, inputs: int, outputs: int) -> "Share":
        """The share that a training begins with."""
        return cls(np.zeros((inputs, outputs)), np.zeros(outputs))

    def outputs(self, keys: LinearKeys, asked: Asked, answer: bytes) -> Floats:
        """y (B, O) of the whole layer. Raises RemoteError where `answer` is none."""
        return asked.opened(keys, answer) + asked.values @ self.weights + self.bias

    def input_gradient(self, keys: LinearKeys, asked: Asked, answer: bytes) -> Floats:
        """dL/da (B, F) of the whole layer. Raises RemoteError where `answer` is none."""
        return asked.opened(keys, answer) + asked.values @ self.weights.T

    def stepped(self, activations: Floats, gradient: Floats, learning_rate: float) -> "Share":
        """The share after a step of gradient descent, of a (B, F) and dL/dy (B, O)."""
        weights = self.weights - learning_rate * activations.T @ gradient
        return replace(self, weights=weights, bias=self.bias - learning_rate * gradient.sum(0))


def ask_forward(public: bytes, activations: Floats, outputs: int) -> tuple[bytes, Asked]:
    """Client: what goes up for the outputs of a (B, F). Raises BadInput for activations too large to be encrypted."""
    return encrypt(public, activations, outputs), Asked(activations, 1.0, outputs)


def ask_backward(public: bytes, gradient: Floats, inputs: int) -> tuple[bytes, Asked]:
    """Client: what goes up for the gradient of the layer's inputs, of dL/dy (B, O), whose size nobody learns."""
    scale = float(np.abs(gradient).max(initial=0)) or 1.0
    return encrypt(public, gradient / scale, inputs), Asked(gradient, scale, inputs)


def answer_forward(public: bytes, request: bytes, weights: Floats, bias: Floats, entropy: bytes) -> bytes:
    """Server: a W_s + b_s on ciphertexts. `entropy`: 32 secret bytes, fresh. Raises RemoteError for no such request."""
    return evaluate(public, request, weights, bias, entropy)


def answer_backward(public: bytes, request: bytes, weights: Floats, entropy: bytes) -> bytes:
    """Server: g W_s^T on ciphertexts. `entropy`: 32 secret bytes, fresh. Raises RemoteError for no such request."""
    return evaluate(public, request, weights.T, np.zeros(weights.shape[0]), entropy)
