"""What the published encrypted split tells its server, and what the server of ours has in the same places: nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from veilmesh.attacks.smashed.published_encrypted import (
    Floats,
    ServerStep,
    activations,
    as_numbers,
    encrypted_step,
    labels,
)
from veilmesh.core import RemoteError, generator
from veilmesh.crypto.encrypted_linear import LinearKeys
from veilmesh.crypto.encrypted_training import ask_backward, ask_forward

FEATURES, CLASSES, RATE = 256, 5, 0.01


def batch(size: int, seed: int) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """Activations after a ReLU (B, F), labels (B,), the gradient of the mean cross-entropy (B, C) and W (F, C)."""
    rng = generator(seed, "batch")
    a, y = np.maximum(rng.normal(size=(size, FEATURES)), 0), rng.integers(0, CLASSES, size)
    weights = rng.uniform(-1, 1, (FEATURES, CLASSES)) / 16
    p = np.exp(a @ weights)
    gradient = p / p.sum(1, keepdims=True)
    gradient[np.arange(size), y] -= 1
    return a, y, gradient / size, weights


def published(size: int, seed: int) -> tuple[ServerStep, Floats, NDArray[np.int64]]:
    """A step of the published scheme as its server has it, and the truth."""
    a, y, gradient, weights = batch(size, seed)
    return ServerStep(gradient, weights, weights - RATE * a.T @ gradient, RATE), a, y


def relative(guess: Floats, truth: Floats) -> float:
    return float(np.linalg.norm(guess - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_published_scheme_tells_labels_and_activations_exactly(size: int) -> None:
    for seed in range(5):
        step, a, y = published(size, seed)
        np.testing.assert_array_equal(labels(step), y)
        assert relative(activations(step), a) < 1e-6


def test_of_larger_batches_it_tells_labels_and_a_part_of_the_activations() -> None:
    step, a, y = published(16, 0)
    np.testing.assert_array_equal(labels(step), y)
    assert 0.1 < relative(activations(step), a) < 0.95


def test_a_server_of_ours_has_nothing_in_the_same_places() -> None:
    pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
    keys, hits, count, errors, alike = LinearKeys.generate(), 0, 0, [], []
    for seed in range(60):
        a, y, gradient, weights = batch(4, seed)
        forward, _ = ask_forward(keys.public, a, CLASSES)
        backward, _ = ask_backward(keys.public, gradient, FEATURES)
        step = encrypted_step(backward, weights, RATE)
        hits, count = hits + int((labels(step) == y).sum()), count + y.size
        errors.append(relative(activations(step), a))
        alike.append(abs(float(np.corrcoef(as_numbers(forward, FEATURES, CLASSES).ravel(), a.ravel())[0, 1])))
    assert abs(hits / count - 1 / CLASSES) < 4 * np.sqrt(0.2 * 0.8 / count)  # chance, and four deviations of it
    assert min(errors) == 1.0  # the floor: a guess of zeros
    assert float(np.mean(alike)) < 3 / np.sqrt(4 * FEATURES)


def test_what_is_no_request_is_refused() -> None:
    pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")
    with pytest.raises(RemoteError):
        as_numbers(b"nothing", FEATURES, CLASSES)
