"""The frame that homomorphic ciphertexts and public keys travel in, and what both schemes share.

    b"VH"  version 1  kind u8  tag, 8 bytes  dimension u32 | residues, chunk after chunk

Kinds: 1 public key, 2 ciphertext, 3 secret key. The size follows from the scheme and the dimension, so there is nothing
to believe about lengths: a frame is of exactly that many bytes or it is refused, before anything in it is looked at. A
chunk is one of SEAL's ciphertexts.
"""

import functools
import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from numpy.typing import NDArray

from veilmesh.core import LocalError, Refusal, RemoteError
from veilmesh.crypto.residues import Words
from veilmesh.crypto.seal import Template

__all__ = ["Framed", "Keys"]

_FRAME: Final = struct.Struct("!2sBB8sI")
_MAGIC, _VERSION, _PUBLIC, _CIPHERTEXT, _SECRET = b"VH", 1, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Keys:
    """A key pair. `public`: what neighbours need to encrypt; the secret half stays inside.

    Pickles, so that a worker process may decrypt; nothing else writes the secret half, and `repr` leaves it out.
    """

    public: bytes
    _secret: bytes = field(repr=False)

    def serialise_secret(self) -> bytes:
        """The secret key's frame. For the broken baseline alone: whoever has it reads everything."""
        return self._secret


class Framed:
    """What both schemes share: keys, frames, addition and every check of remote bytes. See `homomorphic.Scheme`."""

    __slots__ = ()

    @property
    def tag(self) -> bytes:
        name = repr((type(self).__name__, *map(float, self._figures())))
        return hashlib.blake2b(name.encode(), digest_size=8).digest()

    @property
    def template(self) -> Template:
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        raise NotImplementedError

    def _figures(self) -> tuple[float, ...]:
        """All parameters of the scheme."""
        raise NotImplementedError

    def keys(self) -> Keys:
        made = self.template
        public, secret = made.keys()
        return Keys(
            self._frame(_PUBLIC, 0) + made.public.write(public), self._frame(_SECRET, 0) + made.secret.write(secret)
        )

    def keys_of(self, public: bytes, secret: bytes) -> Keys:
        """A pair that somebody else made, from `public` and `serialise_secret`. Raises RemoteError."""
        self.check_public(public)
        self._check_frame(secret, _SECRET, 0)
        self.template.secret.read(memoryview(secret)[_FRAME.size :])
        return Keys(public, secret)

    def add(self, public: bytes, ciphertexts: Sequence[bytes]) -> bytes:
        if not ciphertexts:
            raise LocalError("there is no sum of no ciphertexts")
        dimension = int.from_bytes(ciphertexts[0][_FRAME.size - 4 : _FRAME.size], "big")
        for raw in ciphertexts:
            self._check_frame(raw, _CIPHERTEXT, dimension)
        residues, columns = self.template.ciphertext, zip(*map(self._chunks, ciphertexts), strict=True)
        sums = (functools.reduce(residues.add, map(residues.read, parts)) for parts in columns)
        return self._joined(dimension, map(residues.write, sums))

    def check_public(self, public: bytes) -> None:
        self._check_frame(public, _PUBLIC, 0)
        self.template.public.read(memoryview(public)[_FRAME.size :])

    def check_ciphertext(self, ciphertext: bytes, dimension: int) -> None:
        self._check_frame(ciphertext, _CIPHERTEXT, dimension)
        for part in self._chunks(ciphertext):
            self.template.ciphertext.read(part)

    def public_size(self) -> int:
        return _FRAME.size + self.template.public.size

    def ciphertext_size(self, dimension: int) -> int:
        return _FRAME.size + -(-dimension // self.capacity) * self.template.ciphertext.size

    def _frame(self, kind: int, dimension: int) -> bytes:
        return _FRAME.pack(_MAGIC, _VERSION, kind, self.tag, dimension)

    def _size(self, kind: int, dimension: int) -> int:
        if kind == _CIPHERTEXT:
            return self.ciphertext_size(dimension)
        return _FRAME.size + (self.template.public if kind == _PUBLIC else self.template.secret).size

    def _check_frame(self, raw: bytes, kind: int, dimension: int) -> None:
        """Size first, then what the frame says of itself; residues are for `Residues.read`."""
        expected = self._size(kind, dimension)
        if len(raw) > expected:
            raise RemoteError(Refusal.OVERSIZED, f"{len(raw)} bytes where {expected} belong")
        if len(raw) < expected:
            raise RemoteError(Refusal.TRUNCATED, f"{len(raw)} bytes where {expected} belong")
        magic, version, said, tag, says = _FRAME.unpack_from(raw)
        if (magic, version, said) != (_MAGIC, _VERSION, kind):
            raise RemoteError(Refusal.MALFORMED, "not a frame of homomorphic encryption of this version and kind")
        if (tag, says) != (self.tag, dimension):
            raise RemoteError(Refusal.MISMATCH, "a frame of another scheme, its parameters or another dimension")

    def words(self, ciphertext: bytes, dimension: int) -> list[Words]:
        """The residues of every chunk. Raises RemoteError for what is no ciphertext of a vector (dimension,)."""
        self._check_frame(ciphertext, _CIPHERTEXT, dimension)
        return [self.template.ciphertext.read(part) for part in self._chunks(ciphertext)]

    def secret_words(self, keys: Keys) -> Words:
        """The residues (1, primes, N) of the secret half."""
        return self.template.secret.read(memoryview(keys.serialise_secret())[_FRAME.size :])

    def _chunks(self, raw: bytes) -> Iterator[memoryview]:
        view, size = memoryview(raw), self.template.ciphertext.size
        return (view[start : start + size] for start in range(_FRAME.size, len(raw), size))

    def _write(self, public: bytes, dimension: int, slots: Iterable[NDArray[Any]]) -> bytes:
        """The ciphertext of all `slots`: one chunk at a time, so that memory stays flat."""
        self._check_frame(public, _PUBLIC, 0)
        made, residues = self.template, self.template.ciphertext
        context = made.public_context(made.public.read(memoryview(public)[_FRAME.size :]))
        return self._joined(dimension, (residues.write(made.encrypt(context, chunk)) for chunk in slots))

    def _joined(self, dimension: int, chunks: Iterable[bytes]) -> bytes:
        """The frame of `chunks`, of which never two copies are held: they may be hundreds of megabytes."""
        buffer = BytesIO()
        buffer.write(self._frame(_CIPHERTEXT, dimension))
        for chunk in chunks:
            buffer.write(chunk)
        return buffer.getvalue()

    def _read(self, keys: Keys, ciphertext: bytes, dimension: int) -> Iterator[list[Any]]:
        """The slots of every chunk."""
        self._check_frame(ciphertext, _CIPHERTEXT, dimension)
        made = self.template
        context = made.secret_context(self.secret_words(keys))
        for part in self._chunks(ciphertext):
            yield made.decrypt(context, made.ciphertext.read(part))
