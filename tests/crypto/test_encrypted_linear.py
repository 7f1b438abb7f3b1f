"""A linear layer on ciphertexts: the plain layer's outputs at every size, nothing beside them; bytes are checked."""

import contextlib
import pickle
import struct

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import BadInput, Refusal, RemoteError, generator
from veilmesh.crypto import linear_frames, negacyclic
from veilmesh.crypto.encrypted_linear import (
    LARGEST,
    NORM,
    Floats,
    LinearKeys,
    check_public,
    draw_mask,
    encrypt,
    evaluate,
    sizes,
    wrapped,
)
from veilmesh.crypto.linear_packing import DEGREE, packing

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

ENTROPY = bytes(range(32))
FEW = settings(max_examples=examples(8))
LAYER = (3, 20, 4)  # batch, inputs, outputs of most tests here


@pytest.fixture(scope="module")
def keys() -> LinearKeys:
    return LinearKeys.generate()


def layer(inputs: int, outputs: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Weights and bias as PyTorch draws them."""
    rng, limit = generator(seed, "layer"), inputs**-0.5
    return rng.uniform(-limit, limit, (inputs, outputs)), rng.uniform(-limit, limit, outputs)


def answered(keys: LinearKeys, x: Floats, weights: Floats, bias: Floats, mask: Floats | None = None) -> Floats:
    batch, (inputs, outputs) = len(x), weights.shape
    blob = keys.encrypt(x, outputs)
    answer = evaluate(keys.public, blob, weights, bias, ENTROPY, mask)
    assert (len(blob), len(answer)) == sizes(batch, inputs, outputs)
    return keys.decrypt(answer, batch, inputs, outputs)


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"),
    [(1, 1, 1), (4, 256, 5), (4, 5, 256), (1, 256, 10), (32, 64, 10), (3, 9000, 2), (2500, 11, 3), (8193, 2, 2)],
)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 8.0)])
def test_outputs_are_the_plain_layers(
    keys: LinearKeys, batch: int, inputs: int, outputs: int, low: float, high: float
) -> None:
    x, (weights, bias) = generator(1, "x").uniform(low, high, (batch, inputs)), layer(inputs, outputs)
    assert np.abs(answered(keys, x, weights, bias) - (x @ weights + bias)).max() < 1e-3


@FEW
@given(batch=st.integers(1, 40), inputs=st.integers(1, 60), outputs=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_size_gives_the_plain_layers_outputs(
    keys: LinearKeys, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    x, (weights, bias) = generator(seed, "x").normal(size=(batch, inputs)), layer(inputs, outputs, seed)
    assert np.abs(answered(keys, x, weights, bias) - (x @ weights + bias)).max() < 2e-4


def test_the_largest_inputs_and_weights_still_come_out(keys: LinearKeys) -> None:
    x = LARGEST * np.sign(generator(0, "x").normal(size=(8, 1000)))
    weights = generator(0, "w").normal(size=(1000, 1))
    weights *= 0.999 * NORM / np.linalg.norm(weights)
    plain = x @ weights
    assert np.abs(wrapped(answered(keys, x, weights, np.zeros(1)) - plain)).max() < 0.02  # of outputs beyond 10^4


@given(batch=st.integers(1, 9000), inputs=st.integers(1, 700), outputs=st.integers(1, 700))
def test_a_packing_fits_the_ring_and_covers_the_layer(batch: int, inputs: int, outputs: int) -> None:
    packed = packing(batch, inputs, outputs)
    assert packed.rows * packed.features * packed.columns <= DEGREE
    assert packed.read.size == packed.rows * packed.columns
    assert packed.read.max() < DEGREE
    assert packed.row_tiles * packed.rows >= batch
    assert packed.feature_tiles * packed.features >= inputs
    assert packed.column_tiles * packed.columns >= outputs


def test_small_batches_are_packed_in_coefficients_and_large_ones_one_feature_a_ciphertext() -> None:
    assert (packing(4, 256, 5).up, packing(4, 256, 5).down) == (1, 1)
    assert not packing(4, 256, 5).scalar
    assert packing(DEGREE, 256, 10).scalar
    assert (packing(DEGREE, 256, 10).up, packing(DEGREE, 256, 10).down) == (256, 10)


@FEW
@given(rows=st.integers(1, 3), count=st.integers(1, 4), seed=st.integers(0, 99))
def test_products_of_polynomials_and_of_scalars_agree_with_integers(rows: int, count: int, seed: int) -> None:
    rng, prime, degree = generator(seed, "ring"), (1 << 40) - 87, 16
    words = rng.integers(0, prime, (count, 2, rows, degree))
    factors = rng.integers(-(1 << 24), 1 << 24, (count, degree))
    plain = np.zeros((2, rows, 2 * degree), object)
    for k in range(count):
        for shift, factor in enumerate(factors[k]):
            plain[..., shift : shift + degree] += words[k].astype(object) * int(factor)
    plain = (plain[..., :degree] - plain[..., degree:]) % prime
    total = negacyclic.product(negacyclic.halved(words), negacyclic.spectra(factors))
    np.testing.assert_array_equal(negacyclic.rounded(total, (prime,) * rows), plain.astype(np.int64))
    scalars = negacyclic.times_scalars(words, factors[:, :1], (prime,) * rows)[0]
    exact = sum(words[k].astype(object) * int(factors[k, 0]) for k in range(count)) % prime
    np.testing.assert_array_equal(scalars, exact.astype(np.int64))


@given(value=st.integers(-(1 << 62), 1 << 62), factor=st.integers(0, 1 << 200))
def test_times_is_modular(value: int, factor: int) -> None:
    prime = (1 << 40) - 87
    assert int(negacyclic.times(np.array([value]), factor, prime)[0]) == value * factor % prime


def test_a_mask_hides_the_outputs_and_comes_off(keys: LinearKeys) -> None:
    batch, inputs, outputs = LAYER
    x, (weights, bias) = generator(2, "x").normal(size=(batch, inputs)), layer(inputs, outputs)
    mask = draw_mask(batch, outputs, ENTROPY)
    masked = answered(keys, x, weights, bias, mask)
    assert np.abs(masked - (x @ weights + bias)).min() > 1e-3
    assert np.abs(wrapped(masked - mask) - (x @ weights + bias)).max() < 2e-4
    many = draw_mask(1000, 10, ENTROPY) / 2048
    assert abs(float(many.mean())) < 0.02
    assert abs(float((many**2).mean()) - 1 / 3) < 0.02


def test_inputs_and_answers_are_fresh_every_time(keys: LinearKeys) -> None:
    batch, inputs, outputs = LAYER
    x, (weights, bias) = np.zeros((batch, inputs)), layer(inputs, outputs)
    blob = keys.encrypt(x, outputs)
    assert blob != keys.encrypt(x, outputs)
    assert evaluate(keys.public, blob, weights, bias, ENTROPY) != evaluate(keys.public, blob, weights, bias, ENTROPY)


def test_noise_tells_the_keys_owner_nothing_of_the_weights(keys: LinearKeys) -> None:
    """Of two layers that answer the same, what comes back beside the answer has one distribution."""
    batch, inputs, outputs = 1, 4, 1
    blob = keys.encrypt(np.zeros((batch, inputs)), outputs)
    rng, noise = generator(0, "entropy"), []
    for scale in (0.0, 60.0):
        weights = np.full((inputs, outputs), scale)
        answers = [evaluate(keys.public, blob, weights, np.zeros(1), rng.bytes(32)) for _ in range(60)]
        noise.append(np.array([keys.decrypt(answer, batch, inputs, outputs)[0, 0] for answer in answers]))
    spread = [float(values.std()) for values in noise]
    assert 0.5 < spread[0] / spread[1] < 2
    assert max(float(np.abs(values).max()) for values in noise) < 2**-13


def test_only_outputs_come_back_of_c0() -> None:
    packed = packing(4, 256, 5)
    assert linear_frames.size(linear_frames.OUTPUTS, packed) - 24 == 5 * (DEGREE + 4 * 5)


def test_a_wrong_key_reads_noise(keys: LinearKeys) -> None:
    batch, inputs, outputs = LAYER
    weights, bias = layer(inputs, outputs)
    answer = evaluate(keys.public, keys.encrypt(np.zeros((batch, inputs)), outputs), weights, bias, ENTROPY)
    assert np.abs(LinearKeys.generate().decrypt(answer, batch, inputs, outputs)).max() > 10


def test_keys_travel_to_a_worker_and_their_repr_holds_no_secret(keys: LinearKeys) -> None:
    again = pickle.loads(pickle.dumps(keys))
    batch, inputs, outputs = LAYER
    weights, bias = layer(inputs, outputs)
    answer = evaluate(keys.public, keys.encrypt(np.ones((batch, inputs)), outputs), weights, bias, ENTROPY)
    assert np.abs(again.decrypt(answer, *LAYER) - keys.decrypt(answer, *LAYER)).max() == 0
    assert "_secret" not in repr(keys)


@pytest.mark.parametrize(
    ("weights", "bias"),
    [
        (np.zeros(3), np.zeros(3)),
        (np.zeros((20, 4)), np.zeros(5)),
        (np.full((20, 4), NORM), np.zeros(4)),
        (np.full((20, 4), np.nan), np.zeros(4)),
        (np.zeros((20, 4)), np.full(4, 4000.0)),
    ],
)
def test_a_layer_that_cannot_be_is_refused(keys: LinearKeys, weights: Floats, bias: Floats) -> None:
    blob = keys.encrypt(np.zeros((3, 20)), 4)
    with pytest.raises(BadInput):
        evaluate(keys.public, blob, weights, bias, ENTROPY)


@pytest.mark.parametrize("x", [np.zeros(3), np.full((2, 20), 64.0), np.full((2, 20), np.nan), np.zeros((0, 20))])
def test_inputs_that_cannot_be_are_refused(keys: LinearKeys, x: Floats) -> None:
    with pytest.raises(BadInput):
        keys.encrypt(x, 4)


@pytest.mark.parametrize(("change", "refusal"), [(-1, Refusal.TRUNCATED), (1, Refusal.OVERSIZED)])
def test_a_blob_of_another_length_is_refused(keys: LinearKeys, change: int, refusal: Refusal) -> None:
    blob, (weights, bias) = keys.encrypt(np.zeros(LAYER[:2]), LAYER[2]), layer(*LAYER[1:])
    wrong = blob[:change] if change < 0 else blob + b"x"
    for act in (
        lambda: evaluate(keys.public, wrong, weights, bias, ENTROPY),
        lambda: keys.decrypt(wrong[: sizes(*LAYER)[1] + change] if change < 0 else bytes(sizes(*LAYER)[1] + 1), *LAYER),
    ):
        with pytest.raises(RemoteError) as caught:
            act()
        assert caught.value.refusal is refusal


def test_a_batch_that_is_said_to_be_huge_or_empty_is_refused(keys: LinearKeys) -> None:
    blob, (weights, bias) = keys.encrypt(np.zeros(LAYER[:2]), LAYER[2]), layer(*LAYER[1:])
    for batch in (0, 1 << 20, 1 << 31):
        with pytest.raises(RemoteError):
            evaluate(keys.public, blob[:12] + struct.pack("!I", batch) + blob[16:], weights, bias, ENTROPY)


def test_blobs_of_another_layer_or_kind_and_residues_out_of_range_are_refused(keys: LinearKeys) -> None:
    blob, (weights, bias) = keys.encrypt(np.zeros(LAYER[:2]), LAYER[2]), layer(*LAYER[1:])
    wrong = {
        Refusal.MISMATCH: [blob[:16] + struct.pack("!I", 21) + blob[20:], blob[:4] + bytes(8) + blob[12:]],
        Refusal.MALFORMED: [b"XX" + blob[2:], blob[:3] + b"\x02" + blob[4:], blob[:24] + b"\xff" * 5 + blob[29:]],
    }
    for refusal, blobs in wrong.items():
        for changed in blobs:
            with pytest.raises(RemoteError) as caught:
                evaluate(keys.public, changed, weights, bias, ENTROPY)
            assert caught.value.refusal is refusal


@FEW
@given(at=st.integers(0, 40_000), bits=st.integers(1, 255))
def test_a_changed_answer_is_refused_or_read_as_numbers(keys: LinearKeys, at: int, bits: int) -> None:
    weights, bias = layer(*LAYER[1:])
    answer = bytearray(evaluate(keys.public, keys.encrypt(np.zeros(LAYER[:2]), LAYER[2]), weights, bias, ENTROPY))
    answer[at] ^= bits
    with contextlib.suppress(RemoteError):
        assert np.isfinite(keys.decrypt(bytes(answer), *LAYER)).all()


@FEW
@given(raw=st.binary(max_size=200))
def test_bytes_that_are_no_blob_and_no_key_are_refused(keys: LinearKeys, raw: bytes) -> None:
    weights, bias = layer(*LAYER[1:])
    blob = keys.encrypt(np.zeros(LAYER[:2]), LAYER[2])
    for act in (
        lambda: evaluate(keys.public, raw, weights, bias, ENTROPY),
        lambda: evaluate(raw, blob, weights, bias, ENTROPY),
        lambda: encrypt(raw, np.zeros((1, 1)), 1),
        lambda: keys.decrypt(raw, *LAYER),
        lambda: check_public(raw),
    ):
        with pytest.raises(RemoteError):
            act()
