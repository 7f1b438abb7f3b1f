"""Blocking sockets of this machine, with and without TLS: what nothing above them can reach."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from transports_turn import Drive, Given, Words  # beside this file

__all__ = ["receive", "run", "send"]

LENGTH = 8


def run(given: Given, main: Callable[[], Awaitable[None]]) -> None:
    """In asyncio, which has nothing to do here."""
    asyncio.run(main())  # type: ignore[arg-type]  # a coroutine


async def receive(given: Given, words: Words) -> None:
    """One connection; every payload after its length."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words.tell(str(server.getsockname()[1]))
        plain, _ = server.accept()
    with _quick(plain) as quick:
        if given.variant == "tls":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(given.folder / "cert.pem", given.folder / "key.pem")
            quick = context.wrap_socket(quick, server_side=True)
        while length := _whole(quick, LENGTH):
            _whole(quick, int.from_bytes(length, "big"))
            quick.sendall(b"!")


async def send(given: Given, words: Words, drive: Drive) -> None:
    """As `receive`."""
    [port] = words.ask()
    connection = _quick(socket.create_connection(("127.0.0.1", int(port))))
    if given.variant == "tls":
        context = ssl.create_default_context(cafile=str(given.folder / "cert.pem"))
        connection = context.wrap_socket(connection, server_hostname="127.0.0.1")

    async def exchange(payload: bytes) -> None:
        connection.sendall(len(payload).to_bytes(LENGTH, "big"))
        connection.sendall(payload)
        _whole(connection, 1)

    await drive(exchange)


def _quick(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _whole(connection: socket.socket, size: int) -> bytearray:
    """So many bytes; none where the other side has ended."""
    buffer = bytearray(size)
    with memoryview(buffer) as view:
        at = 0
        while at < size:
            if not (got := connection.recv_into(view[at:])):
                return bytearray()
            at += got
    return buffer
