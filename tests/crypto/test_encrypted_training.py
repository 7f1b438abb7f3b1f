"""Training through an encrypted layer comes to what training in clear comes to, and no update reaches the server."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from veilmesh.core import RemoteError, generator
from veilmesh.crypto.encrypted_linear import Floats, LinearKeys
from veilmesh.crypto.encrypted_training import Share, answer_backward, answer_forward, ask_backward, ask_forward

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

HIDDEN, CLASSES, BATCH, RATE = 24, 10, 32, 0.2


@dataclass
class Head:
    """A dense layer (P, H) with tanh: what the client has before the encrypted layer."""

    weights: Floats

    def features(self, x: Floats) -> Floats:
        return np.tanh(x @ self.weights)

    def step(self, x: Floats, gradient: Floats) -> None:
        self.weights = self.weights - RATE * x.T @ (gradient * (1 - self.features(x) ** 2))


def loss_gradient(y: Floats, labels: NDArray[np.int64]) -> Floats:
    """Of the mean cross-entropy (B, C)."""
    shifted = np.exp(y - y.max(1, keepdims=True))
    gradient: Floats = shifted / shifted.sum(1, keepdims=True)
    gradient[np.arange(len(y)), labels] -= 1
    return gradient / len(y)


def digits() -> tuple[Floats, NDArray[np.int64]]:
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    bunch = datasets.load_digits()
    order = generator(0, "order").permutation(len(bunch.target))
    return bunch.data[order] / 16, bunch.target[order].astype(np.int64)


def encrypted_step(
    keys: LinearKeys, share: Share, head: Head, server: tuple[Floats, Floats], x: Floats, labels: NDArray[np.int64]
) -> tuple[Share, Floats]:
    """One step; the share after it, and the gradient that the head took."""
    entropy = generator(0, "entropy").bytes
    activations = head.features(x)
    request, asked = ask_forward(keys.public, activations, CLASSES)
    y = share.outputs(keys, asked, answer_forward(keys.public, request, *server, entropy(32)))
    gradient = loss_gradient(y, labels)
    request, asked = ask_backward(keys.public, gradient, HIDDEN)
    inputs = share.input_gradient(keys, asked, answer_backward(keys.public, request, server[0], entropy(32)))
    head.step(x, inputs)
    return share.stepped(activations, gradient, RATE), inputs


def start() -> tuple[Head, Floats, Floats]:
    rng = generator(0, "initial")
    return (
        Head(rng.normal(size=(64, HIDDEN)) / 4),
        rng.normal(size=(HIDDEN, CLASSES)) / 5,
        rng.normal(size=CLASSES) / 5,
    )


def accuracy(head: Head, weights: Floats, bias: Floats, x: Floats, labels: NDArray[np.int64]) -> float:
    return float(((head.features(x) @ weights + bias).argmax(1) == labels).mean())


@pytest.mark.slow
def test_digits_are_learnt_as_in_clear() -> None:
    x, labels = digits()
    train, keys, steps = slice(0, 1400), LinearKeys.generate(), 120
    head, weights, bias = start()
    plain, plain_weights, plain_bias = start()
    hosted, share = (weights, bias), Share.zero(HIDDEN, CLASSES)
    for step in range(steps):
        batch = generator(step, "batch").integers(0, 1400, BATCH)
        share, _ = encrypted_step(keys, share, head, hosted, x[train][batch], labels[train][batch])
        features = plain.features(x[batch])
        gradient = loss_gradient(features @ plain_weights + plain_bias, labels[batch])
        plain.step(x[batch], gradient @ plain_weights.T)
        plain_weights = plain_weights - RATE * features.T @ gradient
        plain_bias = plain_bias - RATE * gradient.sum(0)
    encrypted = accuracy(head, weights + share.weights, bias + share.bias, x[1400:], labels[1400:])
    clear = accuracy(plain, plain_weights, plain_bias, x[1400:], labels[1400:])
    assert clear > 0.8
    assert abs(encrypted - clear) <= 0.01
    np.testing.assert_allclose(weights + share.weights, plain_weights, atol=2e-3)


def test_both_halves_of_a_step_are_the_plain_layers_and_the_hosted_layer_stays() -> None:
    rng, keys = generator(3, "test"), LinearKeys.generate()
    head, weights, bias = start()
    share = Share(rng.normal(size=weights.shape), rng.normal(size=CLASSES))
    x, labels = rng.uniform(size=(4, 64)), np.arange(4)
    before = weights.copy(), bias.copy()
    features, old = head.features(x), Head(head.weights)
    after, inputs = encrypted_step(keys, share, head, (weights, bias), x, labels)
    gradient = loss_gradient(old.features(x) @ (weights + share.weights) + bias + share.bias, labels)
    np.testing.assert_allclose(inputs, gradient @ (weights + share.weights).T, atol=1e-4)
    np.testing.assert_allclose(after.weights, share.weights - RATE * features.T @ gradient, atol=1e-4)
    np.testing.assert_array_equal((weights, bias)[0], before[0])
    np.testing.assert_array_equal((weights, bias)[1], before[1])


def test_a_gradient_of_zero_is_asked_for_as_any_other() -> None:
    keys = LinearKeys.generate()
    request, asked = ask_backward(keys.public, np.zeros((4, CLASSES)), HIDDEN)
    other, _ = ask_backward(keys.public, np.full((4, CLASSES), 1e-9), HIDDEN)
    assert len(request) == len(other)
    answer = answer_backward(keys.public, request, np.ones((HIDDEN, CLASSES)), bytes(32))
    assert np.abs(Share.zero(HIDDEN, CLASSES).input_gradient(keys, asked, answer)).max() < 1e-3


def test_an_answer_that_is_none_is_refused() -> None:
    keys = LinearKeys.generate()
    _, asked = ask_forward(keys.public, np.zeros((2, HIDDEN)), CLASSES)
    with pytest.raises(RemoteError):
        Share.zero(HIDDEN, CLASSES).outputs(keys, asked, b"no answer")
