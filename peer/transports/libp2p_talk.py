"""Questions and answers over a libp2p stream: protobuf messages, each preceded by its length.

What discovery and relaying say to other hosts goes through here, so that the bounds are in one place: the length of a
message, how many questions a stream may ask, how long it may stay, and how many strangers may ask at once.
"""

import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.peer.transports import libp2p_host

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream

__all__ = ["MESSAGE_BYTES", "Asked", "Visits", "ask", "receive", "tell"]

MESSAGE_BYTES: Final = 64 << 10
"""The longest message, in bytes: what the relay specification allows, and ample for a page of addresses."""

ASK_SECONDS: Final = 5.0
STREAM_SECONDS: Final = 20.0
QUESTIONS: Final = 16  # on one stream
AT_ONCE: Final = 32  # streams of one protocol
AT_ONCE_A_PEER: Final = 4

M = TypeVar("M")


async def ask(
    host: "IHost", peer: PeerId, address: str | None, protocol: str, question: Any, answer: type[M]
) -> M | None:
    """What `peer` answers to one question on a stream of its own; None if nothing, nonsense, or too late."""
    found: list[M] = []

    async def exchange() -> None:
        stream = await libp2p_host.new_stream(host, peer, address, protocol)
        if stream is None:
            return
        try:
            await tell(stream, question)
            found.append(await receive(stream, answer))
        finally:
            await libp2p_host.give_up(stream)

    with anyio.move_on_after(ASK_SECONDS):
        await libp2p_host.attempt(exchange())
    return found[0] if found else None


async def tell(stream: "INetStream", message: Any) -> None:
    """Write one message. Raises what the library does."""
    from libp2p.utils.varint import encode_varint_prefixed

    await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def receive(stream: "INetStream", kind: type[M]) -> M:
    """Read one message. Raises what the library does; RemoteError(MALFORMED): it is not of this `kind`."""
    from google.protobuf.message import DecodeError
    from libp2p.utils.varint import read_varint_prefixed_bytes_limited

    octets = await read_varint_prefixed_bytes_limited(stream, MESSAGE_BYTES)
    message = kind()
    try:
        message.ParseFromString(octets)  # type: ignore[attr-defined]  # a protobuf message
    except DecodeError:
        raise RemoteError(Refusal.MALFORMED, f"not a {kind.__name__}") from None
    return message


class Visits:
    """The handler of a protocol that strangers use: `converse(sender, stream)`, for a while, and so many at once.

    When one stream too many comes, of a peer or of all of them, the oldest makes room: whoever opens streams and says
    nothing shuts out nobody. What `converse` raises ends the stream, and is counted by the host.
    """

    def __init__(self, converse: "Callable[[PeerId, INetStream], Awaitable[None]]") -> None:
        self._converse = converse
        self._numbers = itertools.count()
        self._open: dict[int, tuple[PeerId, anyio.CancelScope]] = {}

    async def __call__(self, stream: "INetStream") -> None:
        sender = PeerId(str(stream.muxed_conn.peer_id))
        self._make_room(sender)
        number = next(self._numbers)
        with anyio.move_on_after(STREAM_SECONDS) as scope:
            self._open[number] = sender, scope
            try:
                await self._converse(sender, stream)
            finally:
                del self._open[number]
        if scope.cancelled_caught:
            await libp2p_host.give_up(stream)

    def _make_room(self, sender: PeerId) -> None:
        own = [scope for peer, scope in self._open.values() if peer == sender and not scope.cancel_called]
        if len(own) >= AT_ONCE_A_PEER:
            own[0].cancel()
            return
        everybody = [scope for _, scope in self._open.values() if not scope.cancel_called]
        if len(everybody) >= AT_ONCE:
            everybody[0].cancel()


class Asked:
    """The handler of a protocol of questions: `answer(sender, question)` is what is answered, or None for nothing."""

    def __init__(self, kind: type[Any], answer: Callable[[PeerId, Any], Any]) -> None:
        self._kind = kind
        self._answer = answer
        self._visits = Visits(self._converse)

    async def __call__(self, stream: "INetStream") -> None:
        await self._visits(stream)

    async def _converse(self, sender: PeerId, stream: "INetStream") -> None:
        for _ in range(QUESTIONS):
            question = await _next(stream, self._kind)
            if question is None:
                break
            if (answer := self._answer(sender, question)) is not None:
                await tell(stream, answer)
        await libp2p_host.attempt(stream.close())


async def _next(stream: "INetStream", kind: type[M]) -> M | None:
    """The next message; None where the other side has none, and has said so."""
    from libp2p.io.exceptions import IncompleteReadError
    from libp2p.network.stream.exceptions import StreamEOF, StreamReset

    try:
        return await receive(stream, kind)
    except (StreamEOF, StreamReset, IncompleteReadError):
        return None
