"""The frame that homomorphic ciphertexts and public keys travel in, and what the schemes of SEAL share.

    b"VH"  version 1  kind u8  tag, 8 bytes  dimension u32 | body: residues, chunk after chunk

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

__all__ = ["CIPHERTEXT", "HEADER", "PUBLIC", "SECRET", "Framed", "Frames", "Keys"]

_FRAME: Final = struct.Struct("!2sBB8sI")
_MAGIC, _VERSION = b"VH", 1

PUBLIC, CIPHERTEXT, SECRET = 1, 2, 3
"""Kinds of frames."""

HEADER: Final = _FRAME.size


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


class Frames:
    """Frames of one scheme: written with its tag, and checked before anything in them is looked at."""

    __slots__ = ()

    @property
    def tag(self) -> bytes:
        """8 bytes that name the scheme and all its parameters."""
        name = repr((type(self).__name__, *map(float, self._figures())))
        return hashlib.blake2b(name.encode(), digest_size=8).digest()

    def _figures(self) -> tuple[float, ...]:
        """All parameters of the scheme."""
        raise NotImplementedError

    def _size(self, kind: int, dimension: int) -> int:
        """Bytes of a whole frame."""
        raise NotImplementedError

    def _frame(self, kind: int, dimension: int) -> bytes:
        return _FRAME.pack(_MAGIC, _VERSION, kind, self.tag, dimension)

    def _check_frame(self, raw: bytes, kind: int, dimension: int) -> None:
        """Size first, then what the frame says of itself; the body is for whoever reads it."""
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


class Framed(Frames):
    """What the schemes of SEAL share: keys, frames, addition and every check of remote bytes. See
    `homomorphic.Scheme`."""

    __slots__ = ()

    @property
    def template(self) -> Template:
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        raise NotImplementedError

    def ready(self) -> None:
        _ = self.template  # says what to install

    def keys(self) -> Keys:
        made = self.template
        public, secret = made.keys()
        return Keys(
            self._frame(PUBLIC, 0) + made.public.write(public), self._frame(SECRET, 0) + made.secret.write(secret)
        )

    def keys_of(self, public: bytes, secret: bytes) -> Keys:
        """A pair that somebody else made, from `public` and `serialise_secret`. Raises RemoteError."""
        self.check_public(public)
        self._check_frame(secret, SECRET, 0)
        self.template.secret.read(memoryview(secret)[HEADER:])
        return Keys(public, secret)

    def add(self, public: bytes, ciphertexts: Sequence[bytes]) -> bytes:
        if not ciphertexts:
            raise LocalError("there is no sum of no ciphertexts")
        dimension = int.from_bytes(ciphertexts[0][HEADER - 4 : HEADER], "big")
        for raw in ciphertexts:
            self._check_frame(raw, CIPHERTEXT, dimension)
        residues, columns = self.template.ciphertext, zip(*map(self._chunks, ciphertexts), strict=True)
        sums = (functools.reduce(residues.add, map(residues.read, parts)) for parts in columns)
        return self._joined(dimension, map(residues.write, sums))

    def check_public(self, public: bytes) -> None:
        self._check_frame(public, PUBLIC, 0)
        self.template.public.read(memoryview(public)[HEADER:])

    def check_ciphertext(self, ciphertext: bytes, dimension: int) -> None:
        self._check_frame(ciphertext, CIPHERTEXT, dimension)
        for part in self._chunks(ciphertext):
            self.template.ciphertext.read(part)

    def public_size(self) -> int:
        return HEADER + self.template.public.size

    def ciphertext_size(self, dimension: int) -> int:
        return HEADER + -(-dimension // self.capacity) * self.template.ciphertext.size

    def _size(self, kind: int, dimension: int) -> int:
        if kind == CIPHERTEXT:
            return self.ciphertext_size(dimension)
        return HEADER + (self.template.public if kind == PUBLIC else self.template.secret).size

    def words(self, ciphertext: bytes, dimension: int) -> list[Words]:
        """The residues of every chunk. Raises RemoteError for what is no ciphertext of a vector (dimension,)."""
        self._check_frame(ciphertext, CIPHERTEXT, dimension)
        return [self.template.ciphertext.read(part) for part in self._chunks(ciphertext)]

    def secret_words(self, keys: Keys) -> Words:
        """The residues (1, primes, N) of the secret half."""
        return self.template.secret.read(memoryview(keys.serialise_secret())[HEADER:])

    def _chunks(self, raw: bytes) -> Iterator[memoryview]:
        view, size = memoryview(raw), self.template.ciphertext.size
        return (view[start : start + size] for start in range(HEADER, len(raw), size))

    def _write(self, public: bytes, dimension: int, slots: Iterable[NDArray[Any]]) -> bytes:
        """The ciphertext of all `slots`: one chunk at a time, so that memory stays flat."""
        self._check_frame(public, PUBLIC, 0)
        made, residues = self.template, self.template.ciphertext
        context = made.public_context(made.public.read(memoryview(public)[HEADER:]))
        return self._joined(dimension, (residues.write(made.encrypt(context, chunk)) for chunk in slots))

    def _joined(self, dimension: int, chunks: Iterable[bytes]) -> bytes:
        """The frame of `chunks`, of which never two copies are held: they may be hundreds of megabytes."""
        buffer = BytesIO()
        buffer.write(self._frame(CIPHERTEXT, dimension))
        for chunk in chunks:
            buffer.write(chunk)
        return buffer.getvalue()

    def _read(self, keys: Keys, ciphertext: bytes, dimension: int) -> Iterator[list[Any]]:
        """The slots of every chunk."""
        self._check_frame(ciphertext, CIPHERTEXT, dimension)
        made = self.template
        context = made.secret_context(self.secret_words(keys))
        for part in self._chunks(ciphertext):
            yield made.decrypt(context, made.ciphertext.read(part))
