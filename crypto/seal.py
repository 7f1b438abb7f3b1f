"""The one place that knows Microsoft SEAL's bytes, and TenSEAL's around them.

Remote bytes are residues (see `residues`), of exactly the size that the parameters have, each below its prime.
Everything else that TenSEAL's deserialiser is shown (headers, lengths, parameters, scale, flags) is copied from a
context that this process made itself, uncompressed. So no byte a remote peer wrote reaches the C++ parser but
range-checked numbers, where a number was expected.

The layout (SEAL 4, native/src/seal/{serialization,ciphertext,dynarray}.cpp): a header of 16 bytes (magic 5e a1, header
size, version, compression, total size u64), then parms_id 32, is_ntt 1, size u64, N u64, primes u64, scale f64,
correction u64, and an inner header, a count u64 and the numbers u64; a secret key is parms_id, count, scale, and the
same from the inner header on.
"""

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from veilmesh.core import BadInput, LocalError, Refusal, RemoteError
from veilmesh.crypto.protobuf import field, first_field, varint
from veilmesh.crypto.residues import Residues, Words

__all__ = ["Parameters", "Template", "load", "new_context", "template"]

_HEADER, _COUNT = 16, 8
_HEAD: Final = 32 + 1 + 5 * 8 + _HEADER + _COUNT  # before the numbers
_SECRET_HEAD: Final = 32 + 2 * 8 + _HEADER + _COUNT
_DEGREE, _PRIMES = slice(41, 49), slice(49, 57)
_NO_COMPRESSION: Final = bytes([0])


@dataclass(frozen=True, slots=True)
class Parameters:
    """Ring degree N, bits of the primes of the modulus (the last one is SEAL's special prime), and either the bits of
    the plain modulus (BFV) or of the scale (CKKS); the other is 0. All within the 128-bit bound of the Homomorphic
    Encryption Standard (2018, table 1), which TenSEAL holds to."""

    degree: int
    prime_bits: tuple[int, ...]
    plain_bits: int = 0
    scale_bits: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """What this process made for `parameters`: the bytes around residues, and the moduli. Holds no key."""

    parameters: Parameters
    ciphertext: Residues
    public: Residues
    secret: Residues
    plain_modulus: int
    version: bytes  # what every object of SEAL begins with
    context_head: bytes  # the encryption parameters, as a field of TenSEAL's context
    context_tail: bytes  # flags and scale, as TenSEAL writes them behind the public key
    ciphertext_head: bytes
    public_head: bytes
    secret_head: bytes
    secret_flags: bytes  # what TenSEAL says of a context that has no public key
    secret_tail: bytes

    def public_context(self, key: Words) -> Any:
        """A TenSEAL context that encrypts under the public key `key`, (2, primes, N). Raises RemoteError(MALFORMED)."""
        body = field(1, _sealed(self.version, self.public_head, key)) + self.context_tail
        return load(self.context_head + field(2, body))

    def secret_context(self, key: Words) -> Any:
        """A TenSEAL context that decrypts with the secret key `key`, (1, primes, N). Raises RemoteError(MALFORMED)."""
        body = field(1, _sealed(self.version, self.secret_head, key)) + self.secret_tail
        return load(self.context_head + field(2, self.secret_flags) + field(3, body))

    def encrypt(self, context: Any, values: NDArray[Any]) -> Words:
        """The residues of a ciphertext of `values` (slots,), integers for BFV and floats for CKKS."""
        import tenseal

        make = tenseal.ckks_vector if self.parameters.scale_bits else tenseal.bfv_vector
        return self.ciphertext_words(make(context, values))

    def decrypt(self, context: Any, words: Words) -> list[Any]:
        """All slots of the ciphertext `words`. Raises RemoteError(MALFORMED) for whatever TenSEAL does not like."""
        import tenseal

        make = tenseal.ckks_vector_from if self.parameters.scale_bits else tenseal.bfv_vector_from
        try:
            values: list[Any] = make(context, self.ciphertext_bytes(words)).decrypt()
        except (ValueError, RuntimeError) as error:
            raise RemoteError(Refusal.MALFORMED, f"not a ciphertext: {error}") from None
        return values

    def ciphertext_bytes(self, words: Words) -> bytes:
        """A TenSEAL vector of one ciphertext, as TenSEAL writes it but for the compression."""
        raw = field(1, varint(self.slots)) + field(2, _sealed(self.version, self.ciphertext_head, words))
        return raw + b"\x19" + struct.pack("<d", 2.0**self.parameters.scale_bits) if self.parameters.scale_bits else raw

    def ciphertext_words(self, vector: Any) -> Words:
        """The residues of a TenSEAL vector that this process made."""
        return _words(_plain(first_field(vector.serialize(), 2)), self.parameters.degree)

    def keys(self) -> tuple[Words, Words]:
        """A fresh public and secret key, drawn from the system's generator."""
        context, _ = new_context(self.parameters)
        public = first_field(first_field(_serialise(context), 2), 1)
        secret = first_field(first_field(_serialise(context, secret=True), 3), 1)
        degree = self.parameters.degree
        return _words(_plain(public), degree), _numbers(_plain(secret), _SECRET_HEAD, 1, degree)

    @property
    def slots(self) -> int:
        """Numbers that one ciphertext holds: N (BFV), N / 2 (CKKS)."""
        return self.parameters.degree // (2 if self.parameters.scale_bits else 1)


@functools.lru_cache(maxsize=16)
def template(parameters: Parameters) -> Template:
    """The template of `parameters`; made once. Raises BadInput if TenSEAL is not installed or refuses them."""
    context, plain_modulus = new_context(parameters)
    raw, secret = _serialise(context), _serialise(context, secret=True)
    public, private = first_field(raw, 2), first_field(secret, 3)
    cipher, key = _plain(_one(context, parameters)), first_field(public, 1)
    primes = tuple(int(prime.value()) for prime in _moduli(context))
    used = primes[: int.from_bytes(cipher[_PRIMES], "little")]
    return Template(
        parameters,
        ciphertext=Residues(parameters.degree, used),
        public=Residues(parameters.degree, primes),
        secret=Residues(parameters.degree, primes, polynomials=1),
        plain_modulus=plain_modulus,
        version=key[:5],
        context_head=field(1, first_field(raw, 1)),
        context_tail=public[len(field(1, key)) :],
        ciphertext_head=cipher[:_HEAD],
        public_head=_plain(key)[:_HEAD],
        secret_head=_plain(first_field(private, 1))[:_SECRET_HEAD],
        secret_flags=first_field(secret, 2),
        secret_tail=private[len(field(1, first_field(private, 1))) :],
    )


def new_context(parameters: Parameters) -> tuple[Any, int]:
    """A fresh TenSEAL context with fresh keys, drawn from the system, and its plain modulus (0 for CKKS)."""
    try:
        import tenseal
        from tenseal import sealapi
    except ImportError:
        raise BadInput(
            "Homomorphic encryption needs TenSEAL, which is not installed here: pip install 'veilmesh[he]'."
        ) from None
    bits = list(parameters.prime_bits)
    try:
        if parameters.scale_bits:
            context = tenseal.context(
                tenseal.SCHEME_TYPE.CKKS, parameters.degree, coeff_mod_bit_sizes=bits, n_threads=1
            )
            context.global_scale = 2.0**parameters.scale_bits
            return context, 0
        plain = int(sealapi.PlainModulus.Batching(parameters.degree, parameters.plain_bits).value())
        scheme = tenseal.SCHEME_TYPE.BFV
        return tenseal.context(
            scheme, parameters.degree, plain_modulus=plain, coeff_mod_bit_sizes=bits, n_threads=1
        ), plain
    except ValueError as error:
        raise BadInput(f"TenSEAL refuses {parameters}: {error}.") from None


def load(raw: bytes) -> Any:
    """A TenSEAL context of bytes that this program composed. Raises RemoteError(MALFORMED): all in them that can be
    wrong is a remote peer's key."""
    import tenseal

    try:
        return tenseal.context_from(raw, n_threads=1)
    except (ValueError, RuntimeError) as error:
        raise RemoteError(Refusal.MALFORMED, f"not a public key: {error}") from None


def _one(context: Any, parameters: Parameters) -> bytes:
    """SEAL's bytes of some ciphertext."""
    import tenseal

    vector = tenseal.ckks_vector(context, [1.0]) if parameters.scale_bits else tenseal.bfv_vector(context, [1])
    return first_field(vector.serialize(), 2)


def _serialise(context: Any, secret: bool = False) -> bytes:
    """TenSEAL's bytes of a context: with its public key, or with its secret key alone."""
    raw: bytes = context.serialize(
        save_public_key=not secret, save_secret_key=secret, save_galois_keys=False, save_relin_keys=False
    )
    return raw


def _moduli(context: Any) -> Sequence[Any]:
    moduli: Sequence[Any] = context.seal_context().data.key_context_data().parms().coeff_modulus()
    return moduli


def _words(plain: bytes, degree: int) -> Words:
    """The numbers of a SEAL ciphertext, without compression and header."""
    if int.from_bytes(plain[_DEGREE], "little") != degree:
        raise LocalError("SEAL wrote another ring degree than it was made with")
    return _numbers(plain, _HEAD, 2, degree)


def _numbers(plain: bytes, head: int, polynomials: int, degree: int) -> Words:
    return np.frombuffer(plain, "<u8", offset=head).astype(np.uint64).reshape(polynomials, -1, degree)


def _sealed(version: bytes, head: bytes, words: Words) -> bytes:
    """A SEAL object without compression: our own head, then the residues."""
    plain = head + np.ascontiguousarray(words, "<u8").tobytes()
    return version + _NO_COMPRESSION + b"\x00\x00" + struct.pack("<Q", _HEADER + len(plain)) + plain


def _plain(raw: bytes) -> bytes:
    """What SEAL wrote here, uncompressed. Never for remote bytes: those are never compressed."""
    import zstandard

    if raw[:4] != b"\x5e\xa1\x10\x04" or raw[5] not in (0, 2):
        raise LocalError("SEAL's serialisation has changed: only its version 4, with zstd, is known here")
    return raw[_HEADER:] if raw[5] == 0 else zstandard.ZstdDecompressor().decompressobj().decompress(raw[_HEADER:])
