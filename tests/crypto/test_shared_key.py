"""The broken baseline is broken: every client reads every other, and two decryptions are the key."""

import numpy as np
import pytest

from veilmesh.core import RemoteError, generator
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.cpad import recover_secret
from veilmesh.crypto.homomorphic import Approximate
from veilmesh.crypto.ring import Ring
from veilmesh.crypto.shared_key import SharedKey

pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")


def update(i: int, dimension: int) -> Vector:
    return (0.01 * generator(i, "test").normal(size=dimension)).astype(np.float32)


def test_any_holder_of_the_shared_key_reads_one_update_alone() -> None:
    shared = SharedKey.deal(Approximate())
    other = SharedKey.accept(shared.scheme, shared.hand_out())
    sent = shared.scheme.encrypt(shared.keys.public, update(0, 3000))
    assert np.abs(other.read(sent, 3000) - update(0, 3000)).max() < 1e-5


@pytest.mark.parametrize("cut", [0, 16, 114704, -1])
def test_half_a_key_pair_is_refused(cut: int) -> None:
    shared = SharedKey.deal(Approximate())
    with pytest.raises(RemoteError):
        SharedKey.accept(shared.scheme, shared.hand_out()[:cut])


@pytest.mark.parametrize("scheme", [Approximate(), Approximate(degree=8192), Approximate(scale_bits=30)], ids=str)
def test_two_published_decryptions_are_the_secret_key(scheme: Approximate) -> None:
    keys, size = scheme.keys(), scheme.capacity
    sent = [scheme.encrypt(keys.public, update(i, size)) for i in range(5)]
    sums = [scheme.add(keys.public, sent[:2]), scheme.add(keys.public, sent[2:4])]
    published = [scheme.decrypt(keys, total, size, 2) for total in sums]
    assert recover_secret(scheme, sums[:1], published[:1]) is None  # one gives half of the equations
    recovered = recover_secret(scheme, sums, published)
    assert recovered is not None
    prime = scheme.template.secret.primes[0]
    true = scheme.secret_words(keys)[0, 0].astype(object)
    assert (Ring(scheme.degree, prime).transform(recovered.coefficients.astype(object)) == true).all()
    assert np.abs(recovered.read(sent[4], size) - update(4, size)).max() < 1e-4  # this one was never decrypted


@pytest.mark.parametrize(("scale_bits", "broken"), [(30, True), (40, False)])
def test_publishing_float32_breaks_the_smaller_scale(scale_bits: int, broken: bool) -> None:
    """Of one vector of two chunks; at the larger scale this form of the attack fails, which proves nothing."""
    scheme = Approximate(scale_bits=scale_bits)
    keys, dimension = scheme.keys(), 2 * scheme.capacity + 5
    total = scheme.add(keys.public, [scheme.encrypt(keys.public, update(i, dimension)) for i in range(8)])
    published = scheme.decrypt(keys, total, dimension, 8).astype(np.float32).astype(np.float64)
    assert (recover_secret(scheme, [total], [published]) is not None) == broken


def test_transforms_invert_each_other_and_multiply() -> None:
    ring = Ring(8, 97)
    a, b = (generator(i, "ring").integers(0, 97, 8).astype(object) for i in range(2))
    np.testing.assert_array_equal(ring.inverse(ring.transform(a)) % 97, a)
    full = np.convolve(a, b)
    wrapped = full[:8] - np.append(full[8:], 0)  # X^8 = -1
    np.testing.assert_array_equal(ring.inverse(ring.transform(a) * ring.transform(b)) % 97, wrapped % 97)
