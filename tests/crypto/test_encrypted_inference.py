"""A network on ciphertexts answers as in clear, to its key's owner alone; bytes are checked."""

import struct

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from veilmesh.core import BadInput, Refusal, RemoteError, generator
from veilmesh.crypto import negacyclic
from veilmesh.crypto.encrypted_inference import GAIN, SLOTS, Dense, Floats, InferenceKeys, encrypt, infer, sizes
from veilmesh.crypto.ring import Ring

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

ENTROPY = bytes(range(32))
FEATURES, HIDDEN, OUTPUTS = 3, 2, 2
Layers = tuple[Dense, Dense]


@pytest.fixture(scope="module")
def keys() -> InferenceKeys:
    return InferenceKeys.generate()


@pytest.fixture(scope="module")
def blob(keys: InferenceKeys) -> bytes:
    return encrypt(keys.public, np.linspace(-1, 1, 4 * FEATURES).reshape(4, FEATURES))


def network(features: int, hidden: int, outputs: int) -> Layers:
    rng = generator(0, "network")
    return (
        Dense(rng.normal(size=(features, hidden)) / features**0.5, rng.normal(size=hidden)),
        Dense(rng.normal(size=(hidden, outputs)) / hidden**0.5, rng.normal(size=outputs)),
    )


def plain(x: Floats, layers: Layers) -> Floats:
    return (x @ layers[0].weights + layers[0].bias) ** 2 @ layers[1].weights + layers[1].bias


@pytest.mark.parametrize("batch", [1, 7, SLOTS])
def test_answers_are_the_plain_networks(keys: InferenceKeys, batch: int) -> None:
    x, layers = generator(1, "x").uniform(-1, 1, (batch, FEATURES)), network(FEATURES, HIDDEN, OUTPUTS)
    request = encrypt(keys.public, x)
    answer = infer(keys.public, request, layers, ENTROPY)
    assert (len(request), len(answer)) == sizes(batch, FEATURES, OUTPUTS)
    assert np.abs(keys.decrypt(answer, batch, OUTPUTS) - plain(x, layers)).max() < 1e-3


def fitted(x: Floats, labels: NDArray[np.int64], hidden: int) -> Layers:
    """A network with a square in the middle, by gradient descent with momentum on the cross-entropy."""
    first, second = network(x.shape[1], hidden, 10)
    parameters = [0.3 * first.weights, first.bias * 0, 0.3 * second.weights, second.bias * 0]
    momentum = [np.zeros_like(p) for p in parameters]
    for _ in range(400):
        w1, b1, w2, b2 = parameters
        h = x @ w1 + b1
        y = h**2 @ w2 + b2
        g = np.exp(y - y.max(1, keepdims=True))
        g /= g.sum(1, keepdims=True)
        g[np.arange(len(y)), labels] -= 1
        g /= len(y)
        back = g @ w2.T * 2 * h
        momentum = [
            0.9 * m - 0.1 * d for m, d in zip(momentum, [x.T @ back, back.sum(0), (h**2).T @ g, g.sum(0)], strict=True)
        ]
        parameters = [p + m for p, m in zip(parameters, momentum, strict=True)]
    return Dense(parameters[0], parameters[1]), Dense(parameters[2], parameters[3])


def test_digits_are_recognised_as_in_clear(keys: InferenceKeys) -> None:
    bunch = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn").load_digits()
    x, labels = bunch.images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16, bunch.target
    layers = fitted(x[:1400], labels[:1400], hidden=8)
    clear = plain(x[1400:], layers)
    answer = infer(keys.public, encrypt(keys.public, x[1400:]), layers, ENTROPY)
    found = keys.decrypt(answer, len(clear), 10)
    assert np.abs(found - clear).max() < 1e-3
    assert float((clear.argmax(1) == labels[1400:]).mean()) > 0.75
    assert float((found.argmax(1) == clear.argmax(1)).mean()) > 0.995


def test_the_same_question_is_never_asked_or_answered_in_the_same_bytes(keys: InferenceKeys, blob: bytes) -> None:
    layers = network(FEATURES, HIDDEN, OUTPUTS)
    first, second = (infer(keys.public, blob, layers, ENTROPY) for _ in range(2))
    part = len(first) // OUTPUTS // 3
    assert all(first[at : at + 64] != second[at : at + 64] for at in range(64, len(first) - 64, part))


def test_a_wrong_key_reads_noise(keys: InferenceKeys, blob: bytes) -> None:
    answer = infer(keys.public, blob, network(FEATURES, HIDDEN, OUTPUTS), ENTROPY)
    right, wrong = (pair.decrypt(answer, 4, OUTPUTS) for pair in (keys, InferenceKeys.generate()))
    assert np.abs(wrong - right).max() > 100
    assert "_pair" not in repr(keys)


@settings(max_examples=examples(5))
@given(seed=st.integers(0, 1000))
def test_a_transform_is_seals(seed: int) -> None:
    prime = 65537
    x = generator(seed, "x").integers(0, prime, (2, 64))
    wanted = [Ring(64, prime).transform(row.astype(object)).astype(np.int64) for row in x]
    np.testing.assert_array_equal(negacyclic.transform(x, prime), wanted)


@pytest.mark.parametrize(
    "layers",
    [
        (Dense(np.zeros((3, 2)), np.zeros(2)), Dense(np.zeros((3, 2)), np.zeros(2))),
        (Dense(np.zeros((3, 2)), np.zeros(3)), Dense(np.zeros((2, 2)), np.zeros(2))),
        (Dense(np.full((3, 2), GAIN), np.zeros(2)), Dense(np.ones((2, 2)), np.zeros(2))),
        (Dense(np.full((3, 2), np.nan), np.zeros(2)), Dense(np.ones((2, 2)), np.zeros(2))),
        (Dense(np.zeros((3, 2)), np.zeros(2)), Dense(np.ones((2, 2)), np.full(2, np.nan))),
    ],
)
def test_layers_that_cannot_be_are_refused(keys: InferenceKeys, blob: bytes, layers: Layers) -> None:
    with pytest.raises(BadInput):
        infer(keys.public, blob, layers, ENTROPY)


@pytest.mark.parametrize("x", [np.zeros(3), np.full((2, 3), 1.01), np.full((2, 3), np.nan), np.zeros((SLOTS + 1, 1))])
def test_inputs_that_cannot_be_are_refused(keys: InferenceKeys, x: Floats) -> None:
    with pytest.raises(BadInput):
        encrypt(keys.public, x)


def test_blobs_of_another_size_kind_batch_or_network_are_refused(keys: InferenceKeys, blob: bytes) -> None:
    layers = network(FEATURES, HIDDEN, OUTPUTS)
    wrong = [
        (blob[:-1], Refusal.TRUNCATED),
        (blob[:10], Refusal.TRUNCATED),
        (blob + b"x", Refusal.OVERSIZED),
        (b"XX" + blob[2:], Refusal.MALFORMED),
        (blob[:12] + struct.pack("!I", 0) + blob[16:], Refusal.MALFORMED),
        (blob[:12] + struct.pack("!I", SLOTS + 1) + blob[16:], Refusal.MALFORMED),
        (blob[:16] + struct.pack("!I", 4) + blob[20:], Refusal.MISMATCH),
        (blob[:20] + b"\xff" * 5 + blob[25:], Refusal.MALFORMED),
    ]
    for changed, refusal in wrong:
        with pytest.raises(RemoteError) as caught:
            infer(keys.public, changed, layers, ENTROPY)
        assert caught.value.refusal is refusal
    for act in (lambda: keys.decrypt(blob, 4, OUTPUTS), lambda: encrypt(b"no key", np.zeros((1, 1)))):
        with pytest.raises(RemoteError):
            act()
