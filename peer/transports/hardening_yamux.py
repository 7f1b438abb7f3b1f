"""The fixes to py-libp2p's multiplexer (Yamux). See `hardening`, and `hardening_noise` for the channel under it.

A Yamux frame of a stream is encrypted as one or more Noise messages, each under the next nonce, and sent. Three things
follow, and the library misses each: a frame must be sent whole or the connection is lost; the fewer messages and sends
a frame takes the better; and what a peer sends without being read must be bounded by us, because it is not by it.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import trio

__all__ = [
    "CREDIT_SECONDS", "UNREAD_BYTES", "WRITE_SECONDS", "batched_updates", "patient_writes", "receive_limit",
    "whole_buffers", "whole_frames",
]  # fmt: skip

WRITE_SECONDS: Final = 20.0
"""How long sending one frame may take before the connection is given up."""

CREDIT_SECONDS: Final = 30.0
"""How long a writer waits for a reader that reads nothing."""

UNREAD_BYTES: Final = 32 << 20
"""How many bytes a connection may hold that nobody has read: two full windows of 16 MiB."""

UPDATE_BYTES: Final = 64 << 10
"""How many bytes are read, at least, before the window is opened again by that much: a quarter of the smallest one."""

MESSAGES_A_FRAME: Final = 8
"""How many full Noise messages (65519 bytes each) a full frame of ours fills, its header included."""

SWAPPED_BYTES: Final = 64 << 10  # a reader that asks for less wants bytes, and they cost little to copy
CREDIT_POLL_SECONDS: Final = 0.002

Method: TypeAlias = Callable[..., Awaitable[Any]]
_log = logging.getLogger("veilmesh.transports.hardening")


def whole_frames(stock: Method) -> Method:
    """A frame, once begun, is encrypted and sent by the connection's own task, whatever becomes of who asked for it.

    Between encrypting and sending, the nonce has moved on without the other side: cancelling a read or a write (any
    timeout does) killed 61 and 108 of 200 connections of the library, with all their streams. If sending takes too
    long, the connection is closed, and known to be.
    """
    import trio
    from libp2p.io.exceptions import ConnectionClosedError

    async def write_frame(self: Any, data: bytes) -> None:
        if self._nursery is None or self.event_shutting_down.is_set():
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        sending = _Sending(trio.Event())
        try:
            self._nursery.start_soon(_send, self, data, sending)
        except RuntimeError:  # the nursery has ended, the connection is about to say so
            raise ConnectionClosedError("the connection is closed", transport="tcp") from None
        await sending.ended.wait()
        if sending.failure is not None:
            raise sending.failure

    return write_frame


@dataclass(slots=True)
class _Sending:
    """A frame on its way: when that has ended, and what went wrong."""

    ended: "trio.Event"
    failure: Exception | None = None


async def _send(connection: Any, data: bytes, sending: _Sending) -> None:
    import trio
    from libp2p.io.exceptions import ConnectionClosedError

    with trio.CancelScope(deadline=trio.current_time() + WRITE_SECONDS, shield=True) as scope:
        try:
            await _in_turn(connection, data)
        except Exception as error:  # noqa: BLE001  # raised again where the frame came from
            sending.failure = error
    if scope.cancelled_caught:
        sending.failure = ConnectionClosedError(f"no frame could be sent for {WRITE_SECONDS:.0f} s", transport="tcp")
        with trio.CancelScope(shield=True):
            await connection.secured_conn.close()
    sending.ended.set()


async def _in_turn(connection: Any, data: bytes) -> None:
    """As the library sends a frame, without three turns of the event loop that it takes for it."""
    import trio

    lock: trio.Lock = connection._write_lock
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
    try:
        await connection.secured_conn.write(data)
    finally:
        lock.release()


def whole_buffers(stock: Method) -> Method:
    """A reader that has room for all that is there gets it as it is. The library copies it twice."""
    import trio

    async def read(self: Any, n: int | None = -1) -> bytes:
        buffers = self.conn.stream_buffers
        while n is not None and n >= SWAPPED_BYTES and not self.reset_received:
            buffer = buffers.get(self.stream_id)
            if self.closed or self.recv_closed or buffer is None or self.conn.event_shutting_down.is_set():
                break  # the end of a stream is the library's to say
            if buffer:
                buffers[self.stream_id] = bytearray()
                await self._auto_tune_and_send_window_update(bytes_read=len(buffer))
                taken: bytes = buffer  # a bytearray, of which nobody else knows any more
                return taken
            await self.conn.stream_events[self.stream_id].wait()
            if self.stream_id in self.conn.stream_events:
                self.conn.stream_events[self.stream_id] = trio.Event()
        ended: bytes = await stock(self, n)
        return ended

    return read


def batched_updates(stock: Method) -> Method:
    """The window is opened once a quarter of it has been read, while the reader already goes on with what it read. The
    library sends a frame about it after each read, of any size, and keeps what was read back meanwhile."""

    async def update(self: Any, *, bytes_read: int = 0) -> None:
        owed = getattr(self, "_owed_credit", 0) + bytes_read
        due = owed >= max(UPDATE_BYTES, self.target_recv_window // 4)
        self._owed_credit = 0 if due else owed
        if due and (nursery := self.conn._nursery) is not None:
            with contextlib.suppress(RuntimeError):  # the nursery has ended: nobody waits for credit any more
                nursery.start_soon(_open_window, self, stock, owed)

    return update


async def _open_window(stream: Any, stock: Method, octets: int) -> None:
    try:
        await stock(stream, bytes_read=octets)
    except Exception as error:  # noqa: BLE001  # as with any frame that cannot be sent: whoever reads next is told
        _log.debug("no window could be opened: %r", error)


def patient_writes(stock: Method) -> Method:
    """A writer waits 30 s for a reader that reads nothing, and sends frames that fill Noise messages exactly.

    The library resets the stream after 5 s: less than one homomorphic operation may hold a peer's interpreter for. Its
    full frames, of 65536 bytes, take two messages each, of 65519 and 17 bytes.
    """
    import struct

    from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
    from libp2p.stream_muxer.yamux.yamux import HEADER_SIZE, TYPE_DATA, YAMUX_HEADER_FORMAT

    most = MESSAGES_A_FRAME * MAX_PLAINTEXT_LENGTH - HEADER_SIZE

    async def write(self: Any, data: bytes) -> None:
        view = memoryview(data)
        while view:
            size = min(await _credit(self), most, len(view))
            self.send_window -= size  # no checkpoint from here to the shielded send: a cancelled write owes no credit
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self.stream_id, size)
            await self.conn._write_frame(b"".join((header, view[:size])))
            view = view[size:]

    return write


async def _credit(stream: Any) -> int:
    """How many bytes the other side is ready to take, at least one. Raises MuxedStreamError: closed, or too slow."""
    import trio
    from libp2p.stream_muxer.exceptions import MuxedStreamError

    patience = trio.current_time() + CREDIT_SECONDS
    while True:
        if stream.closed or stream.send_closed:
            raise MuxedStreamError("the stream is closed for sending")
        if stream.send_window > 0:
            return int(stream.send_window)
        if trio.current_time() > patience:
            raise MuxedStreamError(f"the reader has read nothing for {CREDIT_SECONDS:.0f} s")
        await trio.sleep(CREDIT_POLL_SECONDS)  # the library has no event for it


def receive_limit(stock: Method) -> Method:
    """A connection that holds 32 MiB nobody has read is dropped. The library warns, and lets the peer fill the memory.

    A peer that respects its windows never gets there.
    """
    import trio
    from libp2p.io.exceptions import IncompleteReadError
    from libp2p.stream_muxer.yamux.yamux import _yamux_data_read_timeout

    async def read_data_body(self: Any, length: int) -> bytes:
        unread = sum(len(buffer) for buffer in self.stream_buffers.values())
        if unread + length > UNREAD_BYTES:
            # the one error on which the library drops the connection, from every place a frame's body is read at
            raise trio.TooSlowError(f"{unread} bytes are unread and {length} more were announced")
        with trio.fail_after(_yamux_data_read_timeout()):
            body: bytes = await self.secured_conn.read(length)
        if len(body) < length:
            raise IncompleteReadError("the connection ended in a frame", length, len(body))
        return body

    return read_data_body
