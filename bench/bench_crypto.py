"""Secure sums at a million coordinates: masks against the bare keystream, blind-proxy sums against TenSEAL by the book.

Run by pytest-benchmark (`make bench-crypto`), all in one run and on one thread. Eight peers. Masks: what
one peer adds for eight neighbours. Blind proxy: what one of eight senders encrypts for one receiver, what the proxy
adds, and what the receiver decrypts; "by the book" is TenSEAL's `ckks_vector` for every tensor of a model, with the
parameters of its tutorials, as its users write it. The marks at the end are of the fastest rounds.

Claims of the position paper (arXiv 2601.04912) that are no runs: `-k coordinate` has C7, what a coordinate costs in the
sum of four peers under CKKS and under Paillier, and how far the sum is off; `-k noise` has C8, the noise of a CKKS
ciphertext that others are added to and taken from: 2 000 times, or as often as ADDS in the environment says (the paper:
200 000; a minute).
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from veilmesh.core import generator
from veilmesh.crypto import masking
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Approximate, Lanes, Scheme
from veilmesh.crypto.paillier_vectors import Paillier

tenseal = pytest.importorskip("tenseal", reason="TenSEAL is an extra: pip install 'veilmesh[he]'")

DIMENSION, PEERS = 1_000_000, 8
TENSORS = [
    (64, 3, 3, 3),
    (64,),
    (128, 64, 3, 3),
    (128,),
    (256, 128, 3, 3),
    (256,),
    (592, 1052),
    (592,),
    (10, 592),
    (10,),
]
"""A small convolutional network's, of about a million parameters."""
CHUNK = 1 << 18
ROUNDS = 5

SCHEMES: dict[str, Scheme] = {"BFV, 8-bit lanes": Lanes(limit=0.1), "CKKS, additions only": Approximate()}


@dataclass
class Figures:
    """Seconds of the fastest round by what was done, and bytes of a ciphertext."""

    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return Figures()


def measured(benchmark: Any, figures: Figures, name: str, act: Callable[[], object]) -> None:
    benchmark.pedantic(act, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    figures.seconds[name] = benchmark.stats.stats.min


@functools.cache
def update(index: int) -> Vector:
    return (0.01 * generator(index, "bench").normal(size=DIMENSION)).astype(np.float32)


@functools.cache
def keys_of(name: str) -> Any:
    return SCHEMES[name].keys()


@functools.cache
def ciphertexts(name: str) -> tuple[bytes, ...]:
    """Of eight peers, of whom every other one has the same: what is added costs the same, and takes less memory."""
    two = [SCHEMES[name].encrypt(keys_of(name).public, update(i)) for i in range(2)]
    return tuple(two[i % 2] for i in range(PEERS))


@functools.cache
def total(name: str) -> bytes:
    return SCHEMES[name].add(keys_of(name).public, ciphertexts(name))


def bare_keystreams() -> None:
    """As many bytes of ChaCha20 as masks for eight neighbours take, thrown away: the floor."""
    zeros, out = bytes(CHUNK), bytearray(CHUNK)
    for i in range(PEERS):
        stream = Cipher(ChaCha20(bytes([i]) * 32, bytes(16)), mode=None).encryptor()
        for start in range(0, 4 * DIMENSION, CHUNK):
            size = min(CHUNK, 4 * DIMENSION - start)
            stream.update_into(memoryview(zeros)[:size], memoryview(out)[:size])


def add_masks(words: masking.Words) -> None:
    for i in range(PEERS):
        masking.add_mask(words, bytes([i]) * 32)


@pytest.mark.benchmark(group="1  masks for 8 neighbours, 10^6 words of 32 bits")
def test_bare_keystream(benchmark: Any, figures: Figures) -> None:
    measured(benchmark, figures, "keystream", bare_keystreams)


@pytest.mark.benchmark(group="1  masks for 8 neighbours, 10^6 words of 32 bits")
def test_masks(benchmark: Any, figures: Figures) -> None:
    words = np.zeros(DIMENSION, np.dtype("<u4"))
    measured(benchmark, figures, "masks", functools.partial(add_masks, words))


@pytest.mark.benchmark(group="2  blind proxy: one sender encrypts 10^6 coordinates")
@pytest.mark.parametrize("name", SCHEMES)
def test_encrypt(benchmark: Any, figures: Figures, name: str) -> None:
    public, x = keys_of(name).public, update(0)
    measured(benchmark, figures, f"{name}: encrypt", lambda: SCHEMES[name].encrypt(public, x))
    figures.sizes[name] = SCHEMES[name].ciphertext_size(DIMENSION)


@pytest.mark.benchmark(group="3  blind proxy: the proxy adds 8")
@pytest.mark.parametrize("name", SCHEMES)
def test_add(benchmark: Any, figures: Figures, name: str) -> None:
    raws, public = ciphertexts(name), keys_of(name).public
    measured(benchmark, figures, f"{name}: add", lambda: SCHEMES[name].add(public, raws))


@pytest.mark.benchmark(group="4  blind proxy: the receiver decrypts the sum")
@pytest.mark.parametrize("name", SCHEMES)
def test_decrypt(benchmark: Any, figures: Figures, name: str) -> None:
    raw, keys = total(name), keys_of(name)
    measured(benchmark, figures, f"{name}: decrypt", lambda: SCHEMES[name].decrypt(keys, raw, DIMENSION, PEERS))
    plain = (PEERS // 2) * (update(0).astype(np.float64) + update(1))
    error = np.abs(SCHEMES[name].decrypt(keys, raw, DIMENSION, PEERS) - plain).max()
    assert error < 1e-2  # a wrong sum is not worth timing


def tutorial_context() -> Any:
    """CKKS with the parameters of TenSEAL's tutorials, which are the position paper's too."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = 2**40
    return context


class ByTheBook:
    """What a user of TenSEAL writes: one `ckks_vector` a tensor. Its vectors may be longer than a ciphertext."""

    NAME = "TenSEAL by the book"

    def __init__(self) -> None:
        self.context = tutorial_context()
        bounds = np.cumsum([0, *(int(np.prod(shape)) for shape in TENSORS)])
        x = np.resize(update(0), bounds[-1])
        self.tensors = [x[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    @functools.cached_property
    def sent(self) -> list[bytes]:
        return self.encrypt()

    @functools.cached_property
    def sum(self) -> list[bytes]:
        return self.add()

    def encrypt(self) -> list[bytes]:
        return [tenseal.ckks_vector(self.context, tensor.tolist()).serialize() for tensor in self.tensors]

    def add(self) -> list[bytes]:
        sums = [tenseal.ckks_vector_from(self.context, raw) for raw in self.sent]
        for _ in range(PEERS - 1):
            for held, raw in zip(sums, self.sent, strict=True):
                held += tenseal.ckks_vector_from(self.context, raw)
        return [held.serialize() for held in sums]

    def decrypt(self) -> list[list[float]]:
        return [tenseal.ckks_vector_from(self.context, raw).decrypt() for raw in self.sum]


@pytest.fixture(scope="module")
def book() -> ByTheBook:
    with quiet():
        made = ByTheBook()
        assert made.sent
        assert made.sum
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TenSEAL's library prints a warning for every long vector, past Python, on the process's output."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@pytest.mark.benchmark(group="2  blind proxy: one sender encrypts 10^6 coordinates")
def test_encrypt_by_the_book(benchmark: Any, figures: Figures, book: ByTheBook) -> None:
    with quiet():
        measured(benchmark, figures, f"{book.NAME}: encrypt", book.encrypt)
    figures.sizes[book.NAME] = sum(map(len, book.sent))


@pytest.mark.benchmark(group="3  blind proxy: the proxy adds 8")
def test_add_by_the_book(benchmark: Any, figures: Figures, book: ByTheBook) -> None:
    with quiet():
        measured(benchmark, figures, f"{book.NAME}: add", book.add)


@pytest.mark.benchmark(group="4  blind proxy: the receiver decrypts the sum")
def test_decrypt_by_the_book(benchmark: Any, figures: Figures, book: ByTheBook) -> None:
    with quiet():
        measured(benchmark, figures, f"{book.NAME}: decrypt", book.decrypt)


def test_marks(figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    """Says whether the marks hold; a busy machine fails nothing."""
    seconds = figures.seconds
    ratio = seconds["masks"] / seconds["keystream"]
    lines = ["", "", f"masks: {ratio:.2f} times the bare keystream (mark: at most 2): {verdict(ratio <= 2)}"]
    for name in [*SCHEMES, ByTheBook.NAME]:
        parts = [seconds[f"{name}: {what}"] for what in ("encrypt", "add", "decrypt")]
        phases = "encrypt {:.3f} s, add 8 {:.3f} s, decrypt {:.3f} s".format(*parts)
        size = f"{figures.sizes[name] / 1e6:.1f} MB"
        lines.append(
            f"{name}: {phases}, {size}; together {sum(parts):.3f} s (mark: under 1): {verdict(sum(parts) < 1)}"
        )
    with capsys.disabled():
        print("\n".join(lines))


def verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


# --- one coordinate, in the sum of four peers (claim C7) -------------------------------------------------------------

FOUR = 4
COORDINATES: dict[str, tuple[Scheme, int]] = {
    "CKKS, 8192 [60, 40, 40, 60]": (Approximate(FOUR, degree=8192), 100_000),
    "CKKS, additions only": (Approximate(FOUR), 100_000),
    "BFV, 16-bit lanes": (Lanes(16, FOUR), 100_000),
    "Paillier, 2048 bits, packed": (Paillier.fixed_point(FOUR), 780),
    "Paillier, 2048 bits": (Paillier.fixed_point(FOUR, packed=False), 60),
    "Paillier, 512 bits (insecure)": (Paillier.fixed_point(FOUR, key_bits=512, packed=False), 300),
}
"""Schemes, and as long a vector as says what a coordinate costs."""


@dataclass(frozen=True)
class Coordinate:
    """Microseconds of one coordinate, bytes, and the largest error in the sum of four."""

    encrypt: float
    add: float
    decrypt: float
    size: float
    error: float

    @property
    def together(self) -> float:
        return self.encrypt + self.add + self.decrypt


def seconds_of(act: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds of the fastest of some rounds."""
    taken = []
    for _ in range(rounds):
        begun = time.process_time()
        act()
        taken.append(time.process_time() - begun)
    return min(taken)


def coordinate(scheme: Scheme, dimension: int) -> Coordinate:
    keys, xs = scheme.keys(), [update(i)[:dimension] for i in range(FOUR)]
    sent = [scheme.encrypt(keys.public, x) for x in xs]
    total = scheme.add(keys.public, sent)
    acts = (
        lambda: scheme.encrypt(keys.public, xs[0]),
        lambda: scheme.add(keys.public, sent),
        lambda: scheme.decrypt(keys, total, dimension, FOUR),
    )
    encrypt, add, decrypt = (1e6 * seconds_of(act) / dimension for act in acts)
    error = float(np.abs(scheme.decrypt(keys, total, dimension, FOUR) - np.sum(xs, axis=0, dtype=np.float64)).max())
    return Coordinate(encrypt, add, decrypt, len(total) / dimension, error)


def test_one_coordinate(capsys: pytest.CaptureFixture[str]) -> None:
    found = {name: coordinate(*of) for name, of in COORDINATES.items()}
    paper, *_, smallest = found.values()
    lines = ["", "", "one coordinate in the sum of four peers, CPU microseconds:"]
    for name, one in found.items():
        parts = f"encrypt {one.encrypt:.2f}, add {one.add:.2f}, decrypt {one.decrypt:.2f}"
        size = f"{one.size:.1f} bytes, off by {one.error:.1e} at most"
        lines.append(f"  {name}: {parts}; {size}; {one.together / paper.together:.1f} times the first")
    ratio, most = smallest.together / paper.together, paper.error
    lines.append(f"C7: the sum under CKKS is off by {most:.1e} (mark: at most 1e-5): {verdict(most <= 1e-5)}")
    lines.append(f"C7: the paper's Paillier takes {ratio:.0f} times as long (mark: 50 or more): {verdict(ratio >= 50)}")
    with capsys.disabled():
        print("\n".join(lines))


# --- noise (claim C8) ------------------------------------------------------------------------------------------------

ADDS = int(os.environ.get("ADDS", "2000"))
SLOTS = 4096


def largest_error(vector: Any, plain: np.ndarray[Any, Any]) -> float:
    return float(np.abs(np.array(vector.decrypt()) - plain).max())


def plus_and_minus(context: Any, x: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The paper's: one ciphertext, added and taken off again, as often as ADDS. Errors fresh and after."""
    total, one = tenseal.ckks_vector(context, x), tenseal.ckks_vector(context, x)
    fresh = largest_error(total, x)
    for _ in range(ADDS):
        total += one
        total -= one
    return fresh, largest_error(total, x)


def random_walk(context: Any, xs: np.ndarray[Any, Any]) -> float:
    """Different ciphertexts with random signs, so that errors do not cancel and sums stay small."""
    sent = [tenseal.ckks_vector(context, x) for x in xs]
    drawn = generator(1, "walk")
    which, signs = drawn.integers(len(xs), size=ADDS), drawn.choice([-1, 1], size=ADDS)
    total = tenseal.ckks_vector(context, np.zeros(SLOTS))
    for place, sign in zip(which.tolist(), signs.tolist(), strict=True):
        total = total + sent[place] if sign > 0 else total - sent[place]
    weights = np.bincount(which, weights=signs, minlength=len(xs))
    return largest_error(total, weights @ xs)


def all_the_same(context: Any, x: np.ndarray[Any, Any]) -> float:
    """One ciphertext, added as often as ADDS: its error is added as often."""
    total, one = tenseal.ckks_vector(context, np.zeros(SLOTS)), tenseal.ckks_vector(context, x)
    for _ in range(ADDS):
        total += one
    return largest_error(total, ADDS * x)


def test_noise_of_many_additions(capsys: pytest.CaptureFixture[str]) -> None:
    context, xs = tutorial_context(), generator(0, "noise").uniform(-1, 1, size=(20, SLOTS))
    fresh, after = plus_and_minus(context, xs[0])
    walk, same = random_walk(context, xs), all_the_same(context, xs[0])
    lines = [
        "",
        "",
        f"CKKS noise after {ADDS} additions (and as many subtractions), fresh {fresh:.1e}:",
        f"  C8: one ciphertext added and taken off again: {after:.1e} (mark: below 1e-4): {verdict(after < 1e-4)};",
        "  modulo the primes that is nothing at all, so this experiment could not have found any growth",
        f"  twenty ciphertexts with random signs: {walk:.1e} (mark: below 1e-4): {verdict(walk < 1e-4)}",
        f"  one ciphertext, only added: {same:.1e}, {same / ADDS:.1e} of what one addition adds",
    ]
    with capsys.disabled():
        print("\n".join(lines))
