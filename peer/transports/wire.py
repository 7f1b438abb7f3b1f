"""The TCP below a libp2p host: a listening socket of its own, and every byte counted where it meets the socket.

Given to the host as its only transport. It takes the place of the library's own, which opens its port with
SO_REUSEPORT (a second peer on the same port gets half of the first one's connections, instead of an error), leaves the
socket open when the host ends, and counts nothing.
"""

import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, cast

from veilmesh.core import BadInput
from veilmesh.peer.transports.base import Traffic

if TYPE_CHECKING:
    import trio
    from libp2p.network.connection.raw_connection import RawConnection
    from multiaddr import Multiaddr

__all__ = ["HANDSHAKES", "Wire", "bind", "multiaddress"]

HANDSHAKES: Final = 64
"""How many accepted sockets may have said nothing yet that says who they are; of one more, the first is closed."""

READ_BYTES = 256 << 10
BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `host` (an IP address of this machine) and `port` (0: a free one). Raises BadInput."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise BadInput(f"{host!r} is not an IP address; listen on one of this machine's, or on 0.0.0.0.") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed can be had again
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise BadInput(_why_not(host, port, error)) from None
    return listening


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"The port {port} on {host} is in use; choose another with --port, or leave it out for a free one."
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; listen on one that is, or on 0.0.0.0."
        case errno.EACCES:
            return f"The port {port} on {host} is reserved; choose one above 1023 with --port, or leave it out."
        case _:
            return f"It is not possible to listen on {host}, port {port}: {error.strerror}."


def multiaddress(bound: "socket.socket | trio.socket.SocketType") -> str:
    """Where a listening socket is reached, as a multiaddr without a peer id: /ip4/127.0.0.1/tcp/4001."""
    host, port = bound.getsockname()[:2]
    return f"/ip{6 if bound.family == socket.AF_INET6 else 4}/{host}/tcp/{port}"


class Wire:
    """A libp2p transport (ITransport) over one listening socket, that counts into `traffic`."""

    def __init__(self, listening: socket.socket, traffic: Traffic) -> None:
        import trio
        from libp2p.transport.tcp.tcp import TCP

        self._tcp = TCP()
        self._listening = trio.socket.from_stdlib_socket(listening)
        self._traffic = traffic
        self._streams: set[_Counted] = set()
        self._handshaking: dict[_Counted, None] = {}  # accepted, in the order they came

    async def dial(self, address: "Multiaddr") -> "RawConnection":
        """A raw connection to `address`. Raises OpenConnectionError."""
        raw: RawConnection = await self._tcp.dial(address)  # type: ignore[assignment]  # declared wider than it is
        raw.stream = cast(Any, self._counted(raw.stream))  # a ReadWriteCloser by its methods
        return raw

    def create_listener(self, handler: Callable[[Any], Awaitable[None]]) -> "_Listener":
        """The listener on the socket this transport was made with; `handler` gets every accepted stream."""
        return _Listener(self._listening, lambda stream: self._accepted(stream, handler))

    def can_dial(self, address: "Multiaddr") -> bool:
        """Whether `address` is plain TCP."""
        return self._tcp.can_dial(address)

    can_listen = can_dial

    def protocols(self) -> list[str]:
        """The multiaddr protocol this transport serves."""
        return ["tcp"]

    def settled(self, stream: Any) -> None:
        """The handshake over `stream` is done, or will not be."""
        self._handshaking.pop(stream, None)

    def abort(self) -> None:
        """Close every socket at once, whatever is being read or written on it."""
        self._listening.close()
        for stream in tuple(self._streams):
            stream.abort()

    async def _accepted(self, stream: "trio.SocketStream", handler: Callable[[Any], Awaitable[None]]) -> None:
        from libp2p.io.trio import TrioTCPStream

        accepted = self._counted(TrioTCPStream(stream))
        self._handshaking[accepted] = None
        if len(self._handshaking) > HANDSHAKES:
            first = next(iter(self._handshaking))
            self.settled(first)
            first.abort()
        try:
            await handler(accepted)
        except* Exception:  # noqa: BLE001  # a stranger's bytes chose it: a failed handshake, or no handshake at all
            self._traffic.refused += 1
        finally:
            self.settled(accepted)

    def _counted(self, inner: Any) -> "_Counted":
        stream = _Counted(inner, self._traffic, self._streams)
        self._streams.add(stream)
        return stream


class _Counted:
    """A TCP stream of the library (ReadWriteCloser), counted."""

    def __init__(self, inner: Any, traffic: Traffic, open_streams: "set[_Counted]") -> None:
        self._inner = inner
        self._traffic = traffic
        self._open_streams = open_streams

    async def read(self, n: int | None = None) -> bytes:
        data: bytes = await self._inner.read(READ_BYTES if n is None else min(n, READ_BYTES))
        self._traffic.received += len(data)
        return data

    async def write(self, data: bytes) -> None:
        self._traffic.sent += len(data)
        await self._inner.write(data)

    async def close(self) -> None:
        self._open_streams.discard(self)
        await self._inner.close()

    def abort(self) -> None:
        """Close the socket under whoever is reading or writing."""
        self._open_streams.discard(self)
        self._inner.stream.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._inner.get_remote_address()
        return address


class _Listener:
    """A libp2p listener (IListener) that serves one socket, in the nursery the swarm gives it."""

    background_nursery: "trio.Nursery"  # set by the swarm before it calls listen()

    def __init__(
        self, listening: "trio.socket.SocketType", accepted: "Callable[[trio.SocketStream], Awaitable[None]]"
    ) -> None:
        self._listening = listening
        self._accepted = accepted

    async def listen(self, address: "Multiaddr") -> None:
        """Accept from now on, until the socket is closed."""
        self.background_nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        import trio

        listeners = [trio.SocketListener(self._listening)]
        try:
            await trio.serve_listeners(self._accepted, listeners, handler_nursery=self.background_nursery)
        except* trio.ClosedResourceError:
            pass  # close() or abort()

    def get_addrs(self) -> "tuple[Multiaddr, ...]":
        """Where the socket listens; nowhere once it is closed."""
        from multiaddr import Multiaddr

        return (Multiaddr(multiaddress(self._listening)),) if self._listening.fileno() != -1 else ()

    async def close(self) -> None:
        """Stop listening."""
        self._listening.close()
