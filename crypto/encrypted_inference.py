"""A small network on ciphertexts from end to end: linear, square, linear, by somebody without a key (CryptoNets' shape:
Gilad-Bachrach et al. 2016).

CKKS with the batch in the slots, one ciphertext a feature: N = 16384, 8192 examples at once, seven primes of 40 bits
and a special one of 41: 321 bits of the 438 that 128-bit security allows. Keys, encoding, encryption and decryption are
TenSEAL's. Whoever evaluates needs no key but the public one: weights multiply as integers, a square is one pointwise in
the transform's domain, and makes a ciphertext of three polynomials, which the key's owner opens as it is; so there is
nothing to relinearise, to rotate or to rescale.

Circuit privacy, as in `encrypted_linear`, for parties that follow the protocol: to every output an encryption of zero
is added, and the product of two of them, so that all three polynomials are new; and the noise, which depends on the
weights, is flooded. Inputs are encoded at a scale of 2^100, so that ten deviations of the noise are below 2^(24 - 100)
of an output's unit where the layers are within `GAIN`; the flooding is uniform over +-2^-23 of it, 2^53 times as much:
statistical distance 2^-40 a ciphertext. What remains is the answers: 8192 of them tell a small network by solving for
it, as any interface does.

    b"VI"  version 1  kind u8  tag, 8 bytes  batch u32  features u32 | residues, ciphertext after ciphertext

Kinds: 1 inputs, 2 outputs. A blob's size follows from its figures, and is checked before anything else in it.
"""

import dataclasses
import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput, Refusal, RemoteError
from veilmesh.crypto.ciphertexts import Framed, Keys
from veilmesh.crypto.linear_frames import public_context, read_all
from veilmesh.crypto.masking import keystream
from veilmesh.crypto.negacyclic import LIMB_BITS, Integers, flood, horner, times, times_scalars, transform
from veilmesh.crypto.residues import Residues
from veilmesh.crypto.seal import Parameters, Template, template

__all__ = ["GAIN", "SLOTS", "Dense", "InferenceKeys", "encrypt", "infer", "sizes"]

Floats: TypeAlias = NDArray[np.float64]

SLOTS: Final = 8192
"""The largest batch."""
GAIN: Final = 16384.0
"""The most that a unit of noise may grow to: sum over hidden units of |W2| times the largest |h| times the norm of W1's
column, and half of what it grows to. Outputs wrap around at 2^25."""
FEATURES: Final = 4096
"""The most features and the most outputs."""

_INPUT_BITS, _WEIGHT_BITS, _FLOOD_BITS = 100, 18, 23
_OUTPUT_BITS: Final = 2 * (_INPUT_BITS + _WEIGHT_BITS) + _WEIGHT_BITS
_PARAMETERS: Final = Parameters(2 * SLOTS, (40,) * 7 + (41,), scale_bits=_INPUT_BITS)
_FRAME: Final = struct.Struct("!2sBB8sII")
_MAGIC, _VERSION, _INPUTS, _OUTPUTS = b"VI", 1, 1, 2
_SCALE: Final = slice(57, 65)  # where SEAL's ciphertext says its scale


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A layer: `weights` (F, O), `bias` (O,)."""

    weights: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class _Scheme(Framed):
    """The frames of public and secret keys."""

    @property
    def template(self) -> Template:
        return template(_PARAMETERS)

    @property
    def capacity(self) -> int:
        return SLOTS

    def _figures(self) -> tuple[float, ...]:
        return _INPUT_BITS, _WEIGHT_BITS, _FLOOD_BITS, *_PARAMETERS.prime_bits


_SCHEME: Final = _Scheme()


@dataclass(frozen=True, slots=True)
class InferenceKeys:
    """A key pair. `public` goes to whoever encrypts and evaluates; the secret half stays inside."""

    public: bytes
    _pair: Keys = field(repr=False)

    @classmethod
    def generate(cls) -> "InferenceKeys":
        """A fresh pair, from the system's generator. Raises BadInput where TenSEAL is not installed."""
        pair = _SCHEME.keys()
        return cls(pair.public, pair)

    def decrypt(self, blob: bytes, batch: int, outputs: int) -> Floats:
        """Outputs (B, O) of what `infer` answered. Raises RemoteError for whatever is no answer."""
        made, secret = _answers(), _SCHEME.secret_words(self._pair)
        context = made.secret_context(secret)
        bodies = read_all(blob, _header(_OUTPUTS, batch, outputs), outputs, _residues(_OUTPUTS))
        columns = [made.decrypt(context, _two(words, secret[0].astype(np.int64))) for words in bodies]
        return np.array(columns, np.float64)[:, :batch].T


def sizes(batch: int, features: int, outputs: int) -> tuple[int, int]:
    """Bytes of the inputs' and of the outputs' blob; `batch` changes neither."""
    return _FRAME.size + features * _residues(_INPUTS).size, _FRAME.size + outputs * _residues(_OUTPUTS).size


def encrypt(public: bytes, x: Floats) -> bytes:
    """Ciphertexts of `x` (B, F), each value within +-1. Raises BadInput for other values or more than `SLOTS`."""
    if x.ndim != 2 or not (1 <= len(x) <= SLOTS and 1 <= x.shape[1] <= FEATURES and (np.abs(x) <= 1).all()):
        raise BadInput(f"Encrypted inference takes up to {SLOTS} examples (B, F) of values within +-1.")
    made, context = _SCHEME.template, public_context(_SCHEME, public)
    slots = np.zeros((x.shape[1], SLOTS))
    slots[:, : len(x)] = x.T
    body = (made.ciphertext.write(made.encrypt(context, column)) for column in slots)
    return b"".join([_header(_INPUTS, *x.shape), *body])


def infer(public: bytes, blob: bytes, layers: tuple[Dense, Dense], entropy: bytes) -> bytes:
    """Ciphertexts of (x W1 + b1)^2 W2 + b2 of the x in `blob`, which were made under `public`.

    `entropy`: 32 secret bytes, drawn for this call: what the flooding follows from. Raises RemoteError for what are no
    inputs of this network, BadInput for layers beyond `GAIN`.
    """
    first, second = layers
    _check(first, second)
    batch, features, outputs = _batch(blob), first.weights.shape[0], second.weights.shape[1]
    words = read_all(blob, _header(_INPUTS, batch, features), features, _residues(_INPUTS))
    hidden = _dense(np.stack(words), first, _INPUT_BITS + _WEIGHT_BITS)
    results = _dense(_squared(hidden), second, _OUTPUT_BITS)
    stream = keystream(entropy)
    body = (_hidden(public, result, stream).astype(np.uint64) for result in results)
    return b"".join([_header(_OUTPUTS, batch, outputs), *map(_residues(_OUTPUTS).write, body)])


def _check(first: Dense, second: Dense) -> None:
    (inputs, width), (again, outputs) = first.weights.shape, second.weights.shape
    if width != again or first.bias.shape != (width,) or second.bias.shape != (outputs,) or inputs > FEATURES:
        raise BadInput("Encrypted inference takes two layers, (F, H) and (H, O), each with its bias.")
    largest = np.abs(first.weights).sum(0) + np.abs(first.bias)  # of the hidden layer, for inputs within 1
    grown = (largest * np.linalg.norm(first.weights, axis=0)) @ np.abs(second.weights)
    if not ((grown <= GAIN).all() and (np.abs(second.bias) <= GAIN).all() and max(width, outputs) <= FEATURES):
        raise BadInput(f"The layers amplify noise beyond {GAIN:g}; train with weight decay.")


def _dense(words: Integers, layer: Dense, bits: int) -> Integers:
    """Ciphertexts (O, k, P, N) at a scale of 2^bits of ciphertexts (F, k, P, N)."""
    out = times_scalars(words, np.rint(layer.weights * (1 << _WEIGHT_BITS)).astype(np.int64), _primes())
    for i, prime in enumerate(_primes()):
        constant = [(int(b) << (bits - 40)) % prime for b in np.rint(layer.bias * float(1 << 40))]
        out[:, 0, i] = (out[:, 0, i] + np.array(constant, np.int64)[:, None]) % prime  # a constant's transform
    return out


def _squared(words: Integers) -> Integers:
    """Ciphertexts (H, 3, P, N) of the squares of ciphertexts (H, 2, P, N)."""
    return _product(words, words)


def _product(left: Integers, right: Integers) -> Integers:
    """Ciphertexts (..., 3, P, N) of the products of ciphertexts (..., 2, P, N), pointwise."""
    parts = []
    for i, prime in enumerate(_primes()):
        (a, b), (c, d) = (np.moveaxis(words[..., i, :], -2, 0) for words in (left, right))
        middle = (times(a, d, prime) + times(b, c, prime)) % prime
        parts.append(np.stack([times(a, c, prime), middle, times(b, d, prime)], axis=-2))
    return np.stack(parts, axis=-2)


def _hidden(public: bytes, words: Integers, stream: Callable[[int], bytes]) -> Integers:
    """A ciphertext (3, P, N) of the same, with all added that hides what it came from."""
    fresh = _product(_zero(public), _zero(public))
    fresh[:2] += _zero(public)
    limbs = flood(2 * SLOTS, _OUTPUT_BITS - _FLOOD_BITS + 1, stream)
    for i, prime in enumerate(_primes()):
        fresh[0, i] += transform(horner(limbs, LIMB_BITS, prime), prime)
    total: Integers = (words + fresh) % np.array(_primes())[:, None]
    return total


def _two(words: Integers, secret: Integers) -> NDArray[np.uint64]:
    """c0 + c2 s^2 and c1 of a ciphertext (3, P, N), by the key's owner."""
    left = []
    for i, prime in enumerate(_primes()):
        squared = times(times(words[2, i], secret[i], prime), secret[i], prime)
        left.append((words[0, i] + squared) % prime)
    return np.stack([np.stack(left), words[1]]).astype(np.uint64)


def _primes() -> tuple[int, ...]:
    return _SCHEME.template.ciphertext.primes


def _residues(kind: int) -> Residues:
    return Residues(2 * SLOTS, _primes(), polynomials=2 if kind == _INPUTS else 3)


def _zero(public: bytes) -> Integers:
    return _SCHEME.template.encrypt(public_context(_SCHEME, public), np.zeros(SLOTS)).astype(np.int64)


def _header(kind: int, batch: int, features: int) -> bytes:
    return _FRAME.pack(_MAGIC, _VERSION, kind, _SCHEME.tag, batch, features)


def _batch(blob: bytes) -> int:
    if len(blob) < _FRAME.size:
        raise RemoteError(Refusal.TRUNCATED, "shorter than a header")
    batch = int(_FRAME.unpack_from(blob)[4])
    if not 1 <= batch <= SLOTS:
        raise RemoteError(Refusal.MALFORMED, f"a batch of {batch}")
    return batch


@functools.lru_cache(maxsize=1)
def _answers() -> Template:
    """The template of outputs: that of inputs at another scale."""
    made = _SCHEME.template
    head = bytearray(made.ciphertext_head)
    head[_SCALE] = struct.pack("<d", 2.0**_OUTPUT_BITS)
    parameters = dataclasses.replace(made.parameters, scale_bits=_OUTPUT_BITS)
    return dataclasses.replace(made, ciphertext_head=bytes(head), parameters=parameters)
