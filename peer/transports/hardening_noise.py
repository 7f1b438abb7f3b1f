"""The fixes to py-libp2p's encrypted channel (Noise): the same bytes on the wire, in fewer calls and copies.

What a frame costs here is mostly what it is copied: from the socket, out of the encryption, through the layers above.
So a message is encrypted into its place in one buffer, decrypted where it lies, and put together once.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

__all__ = ["buffered_reads", "one_send_a_frame", "whole_reads"]

READ_BYTES: Final = 256 << 10
LENGTH_BYTES: Final = 2  # before each Noise message
TAG_BYTES: Final = 16

Method: TypeAlias = Callable[..., Awaitable[Any]]


def one_send_a_frame(stock: Method) -> Method:
    """A frame is encrypted into one buffer, and goes to the socket in one call. The library copies and calls for each
    Noise message."""
    from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH

    async def write_msg(self: Any, msg: bytes, prefix_encoded: bool = False) -> None:
        if prefix_encoded:
            await stock(self, msg, prefix_encoded)
            return
        state = self.noise_state.noise_protocol.cipher_state_encrypt
        messages = max(1, -(-len(msg) // MAX_PLAINTEXT_LENGTH))
        needed = len(msg) + messages * (LENGTH_BYTES + TAG_BYTES)
        if needed > len(buffer := self.__dict__.setdefault("_sealed", bytearray())):
            self._sealed = buffer = bytearray(needed)  # kept: what the system gives anew, it has to clear
        plain, sealed = memoryview(msg), memoryview(buffer)[:needed]
        at = 0
        for start in range(0, max(len(msg), 1), MAX_PLAINTEXT_LENGTH):
            piece = plain[start : start + MAX_PLAINTEXT_LENGTH]
            size = len(piece) + TAG_BYTES
            sealed[at : at + LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
            at += LENGTH_BYTES
            cipher = state.cipher
            cipher.cipher.encrypt_into(cipher.format_nonce(state.n), piece, None, sealed[at : at + size])
            state.n += 1
            at += size
        await self.read_writer.read_write_closer.write(sealed)

    return write_msg


def buffered_reads(stock: Method) -> Method:
    """The socket is read in large pieces, and messages are decrypted where they lie. The library reads twice for each,
    and copies it as often."""
    from cryptography.exceptions import InvalidTag
    from noise.exceptions import NoiseInvalidMessage  # type: ignore[import-untyped]  # the package has no types

    async def read_msg(self: Any, prefix_encoded: bool = False) -> bytes:
        unparsed: _Unparsed = self.__dict__.setdefault("_unparsed", _Unparsed())
        while (sealed := unparsed.message()) is None:
            piece = await self.read_writer.read_write_closer.read(READ_BYTES)
            if not piece:
                return b""  # as the library says that the connection has ended
            unparsed.add(piece)
        state = self.noise_state.noise_protocol.cipher_state_decrypt
        try:
            plain: bytes = state.cipher.cipher.decrypt(state.cipher.format_nonce(state.n), sealed, None)
        except InvalidTag:
            raise NoiseInvalidMessage("a message that is not from the other end of the channel") from None
        state.n += 1
        return plain

    return read_msg


class _Unparsed:
    """What came from a socket and is not decrypted yet: Noise messages, each after its length of two bytes."""

    __slots__ = ("_at", "_held")

    def __init__(self) -> None:
        self._held: bytes = b""
        self._at = 0  # the beginning of the first message

    def add(self, piece: bytes) -> None:
        """What has come next; of what was held, only the last message, not whole yet, is copied."""
        self._held, self._at = (self._held[self._at :] + piece if self._at < len(self._held) else piece), 0

    def message(self) -> memoryview | None:
        """The first message, once all of it is there."""
        begin = self._at + LENGTH_BYTES
        end = begin + int.from_bytes(self._held[self._at : begin], "big")
        if len(self._held) < max(begin, end):
            return None
        self._at = end
        return memoryview(self._held)[begin:end]


def whole_reads(stock: Method) -> Method:
    """What is asked of the decrypted channel is put together once. The library copies it four times on the way."""
    from libp2p.io.exceptions import ConnectionClosedError

    async def read(self: Any, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        parts: list[bytes | memoryview] = []
        missing = 1 if n is None else n
        while missing > 0:
            part = self.__dict__.pop("_rest", None) or await self.conn.read_msg()
            if not part:
                if parts:
                    break  # what came before the end, as in the library
                raise ConnectionClosedError("Connection closed")
            if n is not None and len(part) > missing:
                part = memoryview(part)
                self._rest, part = part[missing:], part[:missing]
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    return read
