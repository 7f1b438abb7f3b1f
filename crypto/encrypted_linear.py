"""A linear layer y = x W + b on ciphertexts: evaluated by somebody without a key, for the key's owner alone.

Encryption is SEAL's: BFV's fresh encryptions of zero under a public key (N = 8192, three primes of 40 bits and a
special one of 41: 161 bits of the 218 that 128-bit security allows), to which each side adds what is its own, as fixed
point of `INPUT_BITS` or `WEIGHT_BITS` fractional bits. The message is at the top of the modulus, |y| < `RANGE`, and
noise at the bottom. Weights multiply as plain integers (`negacyclic`, `linear_packing`): no rotation, no rescaling, no
key but the public one. Outputs are good to 2^-14 beside the rounding of x and W.

The evaluator learns sizes, nothing else. The key's owner, if it follows the protocol, learns of W what x W + b tells
to 2^-14 (circuit privacy). The noise of a product is linear in W, with coefficients that the key's owner knows, so it
is hidden three times. A fresh encryption of zero is added: c1 is new, by RLWE. The noise is flooded with numbers
uniform over 2^`FLOOD_BITS` (Gentry 2009, section 21.2; Li and Micciancio 2021, section 5): that of fresh inputs is
below 2^34 where W is within `NORM`, so the statistical distance is 2^-60 a number, and 2^-40 for a million of them. And
of c0 only those coefficients are sent that hold outputs, rounded to one prime. Whoever sends what is no fresh
ciphertext learns more: all this is for semi-honest parties. And x W + b itself tells W to whoever has it for F
independent x: what a layer answers, it teaches.

With a `mask` the key's owner has not even y, but y + r modulo 2 RANGE: uniform, a share of y; the evaluator keeps r.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput
from veilmesh.crypto import linear_frames as frames
from veilmesh.crypto import negacyclic
from veilmesh.crypto.linear_frames import INPUT_BITS, INPUTS, OUTPUTS, SCHEME, WEIGHT_BITS
from veilmesh.crypto.linear_packing import DEGREE, Packing, packing
from veilmesh.crypto.masking import keystream
from veilmesh.crypto.negacyclic import Integers
from veilmesh.crypto.ring import Ring

__all__ = [
    "FLOOD_BITS", "LARGEST", "NORM", "RANGE", "LinearKeys", "check_public", "draw_mask", "encrypt", "evaluate", "sizes",
    "wrapped",
]  # fmt: skip

Floats: TypeAlias = NDArray[np.float64]

RANGE: Final = 2048.0
"""Outputs are below this in magnitude, or wrap around."""
LARGEST: Final = 63.0
"""Inputs are at most this in magnitude."""
NORM: Final = 256.0
"""The weights' Euclidean norm is at most this: what the flooding is measured by."""
FLOOD_BITS: Final = 94

_MASK_BITS: Final = 47  # 2 RANGE in steps of an output's last bit


@dataclass(frozen=True, slots=True)
class LinearKeys:
    """A key pair. `public` goes to whoever encrypts and evaluates; the secret polynomial stays inside.

    Pickles, so that a worker process may decrypt; `repr` leaves the secret out.
    """

    public: bytes
    _secret: NDArray[np.int8] = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> "LinearKeys":
        """A fresh pair, from the system's generator. Raises BadInput where TenSEAL is not installed."""
        pair = SCHEME.keys()
        first = Ring(DEGREE, frames.primes()[0])
        secret = first.inverse(SCHEME.secret_words(pair)[0, 0].astype(object))
        return cls(pair.public, secret.astype(np.int8))

    def encrypt(self, x: Floats, outputs: int) -> bytes:
        """As `encrypt`, under the own public key."""
        return encrypt(self.public, x, outputs)

    def decrypt(self, blob: bytes, batch: int, inputs: int, outputs: int) -> Floats:
        """Outputs (B, O) of what `evaluate` answered to inputs (B, F). Raises RemoteError for whatever is no answer."""
        packed, prime = packing(batch, inputs, outputs), frames.primes()[0]
        right, read = frames.read_down(blob, packed)
        phase = (read + negacyclic.times_ternary(right, self._secret, prime)[..., packed.read]) % prime
        centred = np.where(phase > prime // 2, phase - prime, phase)
        return packed.untiled(centred * (2.0 * RANGE / prime))


def check_public(public: bytes) -> None:
    """Raises RemoteError unless `public` has the form of a public key. Loads nothing."""
    SCHEME.check_public(public)


def sizes(batch: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Bytes of the inputs' and of the outputs' blob. Raises BadInput for sizes out of range."""
    packed = packing(batch, inputs, outputs)
    return frames.size(INPUTS, packed), frames.size(OUTPUTS, packed)


def encrypt(public: bytes, x: Floats, outputs: int) -> bytes:
    """Ciphertexts of `x` (B, F) for a layer of so many `outputs`.

    Raises BadInput for values beyond `LARGEST`, RemoteError for what is no public key.
    """
    if x.ndim != 2 or not (np.abs(x) <= LARGEST).all():
        raise BadInput(f"An encrypted layer takes inputs (B, F), each within +-{LARGEST:g}; scale them down.")
    packed = packing(*x.shape, outputs)
    parts = [frames.header(INPUTS, packed)]
    for polynomial in packed.polynomials(_fixed(x, INPUT_BITS)).reshape(-1, DEGREE):
        words = frames.zero(public)
        for i, prime in enumerate(frames.primes()):
            words[0, i] = (words[0, i] + negacyclic.times(polynomial, frames.unit(), prime)) % prime
        parts.append(frames.write_up(words))
    return b"".join(parts)


def evaluate(
    public: bytes, blob: bytes, weights: Floats, bias: Floats, entropy: bytes, mask: Floats | None = None
) -> bytes:
    """Ciphertexts of x W + b, or of x W + b + r with a `mask` r (B, O), for the x (B, F) in `blob`.

    Args:
        public: the key that `blob` was made under.
        weights, bias: W (F, O) and b (O,), the evaluator's own.
        entropy: 32 secret bytes, drawn for this call and no other: the flooding follows from them. Never from a
            simulation's generator, whose state can be solved for and the flooding taken off.
        mask: what `draw_mask` gave; used once.

    Raises RemoteError for what is no inputs of this layer, BadInput for weights beyond `NORM` or outputs that wrap.
    """
    _check(weights, bias)
    packed = frames.asked(blob, *weights.shape)
    words, integers, stream = frames.read_up(blob, packed), _fixed(weights, WEIGHT_BITS), keystream(entropy)
    constants = packed.tiled(_constants(packed, bias, mask))
    parts = [frames.header(OUTPUTS, packed)]
    for row, tiles in zip(words, constants, strict=True):
        for result, constant in zip(_products(packed, row, integers), tiles, strict=True):
            parts.append(_answer(public, packed, result, constant, stream))
    return b"".join(parts)


def draw_mask(batch: int, outputs: int, entropy: bytes) -> Floats:
    """A mask (B, O), uniform over the outputs' whole range. `entropy`: 32 secret bytes of its own."""
    words = np.frombuffer(keystream(entropy)(8 * batch * outputs), "<u8") >> np.uint64(64 - _MASK_BITS)
    return words.reshape(batch, outputs).astype(np.float64) * (2 * RANGE / (1 << _MASK_BITS)) - RANGE


def wrapped(values: Floats) -> Floats:
    """`values` modulo 2 RANGE, centred at 0: `wrapped(masked - mask)` are the outputs."""
    centred: Floats = (values + RANGE) % (2 * RANGE) - RANGE
    return centred


def _check(weights: Floats, bias: Floats) -> None:
    if weights.ndim != 2 or bias.shape != weights.shape[1:]:
        raise BadInput(f"A layer takes weights (F, O) and a bias (O,), not {weights.shape} and {bias.shape}.")
    if not (float(np.linalg.norm(weights)) <= NORM and (np.abs(bias) < RANGE).all()):
        raise BadInput(f"An encrypted layer takes weights of norm {NORM:g} at most and biases below {RANGE:g}.")


def _fixed(x: Floats, bits: int) -> Integers:
    return np.rint(x * np.float64(1 << bits)).astype(np.int64)


def _constants(packed: Packing, bias: Floats, mask: Floats | None) -> Integers:
    """What is added to every output (B, O), in its last bit."""
    total = np.broadcast_to(_fixed(bias, INPUT_BITS + WEIGHT_BITS), (packed.batch, packed.outputs))
    if mask is None:
        return total
    if mask.shape != total.shape:
        raise BadInput(f"A mask for {packed.batch} examples of {packed.outputs} outputs is not of shape {mask.shape}.")
    return total + _fixed(mask, INPUT_BITS + WEIGHT_BITS)


def _products(packed: Packing, row: Integers, weights: Integers) -> Iterator[Integers]:
    """Ciphertexts (2, 3, N) of one tile of examples (feature_tiles, 2, 3, N) times every tile of columns."""
    if packed.scalar:
        yield from negacyclic.times_scalars(row, weights, frames.primes())
        return
    transforms = negacyclic.halved(row)
    for column in packed.columns_of(weights):
        yield negacyclic.rounded(negacyclic.product(transforms, negacyclic.spectra(column)), frames.primes())


def _answer(
    public: bytes, packed: Packing, words: Integers, constant: Integers, stream: Callable[[int], bytes]
) -> bytes:
    """One ciphertext (2, 3, N) with all added that hides what it came from, as far as it is sent."""
    fresh, right, read = frames.zero(public), [], []
    limbs = negacyclic.flood(constant.size, FLOOD_BITS, stream)
    for i, prime in enumerate(frames.primes()):
        right.append((words[1, i] + fresh[1, i]) % prime)
        own = negacyclic.times(constant, frames.unit(), prime) + negacyclic.horner(limbs, negacyclic.LIMB_BITS, prime)
        read.append((words[0, i, packed.read] + fresh[0, i, packed.read] + own) % prime)
    return frames.write_down(packed, _first(right), _first(read))


def _first(residues: list[Integers]) -> Integers:
    """Residues modulo all primes, divided by all but the first and rounded: modulo the first alone."""
    kept, moduli = list(residues), list(frames.primes())
    while len(moduli) > 1:
        last, prime = kept.pop(), moduli.pop()
        centred = np.where(last > prime // 2, last - prime, last)
        kept = [negacyclic.times(part - centred, pow(prime, -1, m), m) for part, m in zip(kept, moduli, strict=True)]
    return kept[0]
