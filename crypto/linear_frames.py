"""What an encrypted layer's bytes are: keys, and the blobs that go up and come down.

    b"VE"  version 1  kind u8  tag, 8 bytes  batch u32  inputs u32  outputs u32 | residues of 5 bytes

Kinds: 1 inputs, 2 outputs. Inputs are ciphertexts of two polynomials modulo three primes, a tile of features after the
other. Outputs are, one ciphertext after the other, c1 modulo the first prime, then c0 modulo the same, but only those
coefficients that hold outputs. A blob's size follows from its figures, and is checked before anything else in it.
"""

import functools
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.ciphertexts import Framed
from veilmesh.crypto.linear_packing import DEGREE, MOST, Packing, packing
from veilmesh.crypto.negacyclic import Integers
from veilmesh.crypto.residues import Residues
from veilmesh.crypto.seal import Parameters, Template, template

__all__ = [
    "INPUTS", "INPUT_BITS", "OUTPUTS", "SCHEME", "WEIGHT_BITS", "asked", "header", "primes", "public_context",
    "read_all", "read_down", "read_up", "size", "unit", "write_down", "write_up", "zero",
]  # fmt: skip

INPUT_BITS: Final = 17
WEIGHT_BITS: Final = 18
INPUTS, OUTPUTS = 1, 2

_PARAMETERS: Final = Parameters(DEGREE, (40, 40, 40, 41), plain_bits=20)  # nothing here uses the plain modulus
_FRAME: Final = struct.Struct("!2sBB8sIII")
_MAGIC, _VERSION = b"VE", 1
_LEVELS: Final = 47  # bits: 2 RANGE in steps of 2^-(INPUT_BITS + WEIGHT_BITS)


@dataclass(frozen=True, slots=True)
class _Scheme(Framed):
    """The frames of public and secret keys."""

    @property
    def template(self) -> Template:
        return template(_PARAMETERS)

    @property
    def capacity(self) -> int:
        return DEGREE

    def _figures(self) -> tuple[float, ...]:
        return INPUT_BITS, WEIGHT_BITS, _LEVELS, *_PARAMETERS.prime_bits


SCHEME: Final = _Scheme()


def primes() -> tuple[int, ...]:
    """The primes of a ciphertext's modulus."""
    return SCHEME.template.ciphertext.primes


def unit() -> int:
    """What one output of 1 / 2^(INPUT_BITS + WEIGHT_BITS) is in the modulus."""
    modulus = functools.reduce(int.__mul__, primes())
    return modulus >> _LEVELS


def zero(public: bytes) -> Integers:
    """A fresh encryption of zero, residues (2, 3, N). Raises RemoteError for what is no public key."""
    return SCHEME.template.encrypt(public_context(SCHEME, public), np.zeros(1, np.int64)).astype(np.int64)


def header(kind: int, packed: Packing) -> bytes:
    return _FRAME.pack(_MAGIC, _VERSION, kind, SCHEME.tag, packed.batch, packed.inputs, packed.outputs)


def size(kind: int, packed: Packing) -> int:
    """Bytes of a blob."""
    return _FRAME.size + (packed.up * _whole().size if kind == INPUTS else packed.down * _part(packed).size)


def asked(blob: bytes, inputs: int, outputs: int) -> Packing:
    """The packing of inputs for a layer (F, O). Raises RemoteError for inputs of another layer."""
    if len(blob) < _FRAME.size:
        raise RemoteError(Refusal.TRUNCATED, "shorter than a header")
    batch = int(_FRAME.unpack_from(blob)[4])
    if not 1 <= batch <= MOST[0]:
        raise RemoteError(Refusal.MALFORMED, f"a batch of {batch}")
    return packing(batch, inputs, outputs)


def read_up(blob: bytes, packed: Packing) -> Integers:
    """Residues (row_tiles, feature_tiles, 2, 3, N) of inputs. Raises RemoteError where `blob` is none of them."""
    words = read_all(blob, header(INPUTS, packed), packed.up, _whole())
    return np.stack(words).reshape(packed.row_tiles, packed.feature_tiles, *words[0].shape)


def read_down(blob: bytes, packed: Packing) -> tuple[Integers, Integers]:
    """c1 (row_tiles, column_tiles, N) and what is read of c0 (row_tiles, column_tiles, rows * columns). Raises
    RemoteError where `blob` is no outputs of this packing."""
    words = read_all(blob, header(OUTPUTS, packed), packed.down, _part(packed))
    tiles = np.stack(words).reshape(packed.row_tiles, packed.column_tiles, -1)
    return tiles[..., :DEGREE], tiles[..., DEGREE:]


def write_up(words: Integers) -> bytes:
    """One ciphertext (2, 3, N) of inputs."""
    return _whole().write(words.astype(np.uint64))


def write_down(packed: Packing, right: Integers, read: Integers) -> bytes:
    """One ciphertext of outputs: c1 (N,) and what is read of c0 (rows * columns,)."""
    return _part(packed).write(np.concatenate([right, read]).astype(np.uint64))


def _whole() -> Residues:
    return SCHEME.template.ciphertext


def _part(packed: Packing) -> Residues:
    return Residues(DEGREE + packed.rows * packed.columns, primes()[:1], polynomials=1)


def read_all(blob: bytes, head: bytes, count: int, residues: Residues) -> list[Integers]:
    """`count` polynomials, or ciphertexts, behind the header `head`. Raises RemoteError where `blob` is anything else.

    Size first, then what the header says, of which the first four bytes are magic, version and kind.
    """
    expected = len(head) + count * residues.size
    if len(blob) != expected:
        refusal = Refusal.OVERSIZED if len(blob) > expected else Refusal.TRUNCATED
        raise RemoteError(refusal, f"{len(blob)} bytes where {expected} belong")
    if blob[:4] != head[:4]:
        raise RemoteError(Refusal.MALFORMED, "not a blob of this protocol, version and kind")
    if blob[: len(head)] != head:
        raise RemoteError(Refusal.MISMATCH, "a blob of another layer, batch or parameters")
    view = memoryview(blob)
    parts = (view[start : start + residues.size] for start in range(len(head), len(blob), residues.size))
    return [residues.read(part).astype(np.int64) for part in parts]


@functools.lru_cache(maxsize=8)
def public_context(scheme: Framed, public: bytes) -> Any:
    """TenSEAL's context of a public key of `scheme`: 13 ms or more to make. Raises RemoteError for what is none."""
    scheme.check_public(public)
    made = scheme.template
    return made.public_context(made.public.read(memoryview(public)[-made.public.size :]))
