"""Fixes to py-libp2p 0.8.1, made by replacing parts of it: one small function a fix, its reason in its docstring.

Each function takes what the library has and returns what takes its place, so `harden` can put all of them in force,
say which are, and refuse any other version of the library: a fix to internals is only a fix to the internals it was
made for. The replacements are process-wide, as the classes are; all of them keep the wire format. What belongs to one
host (the bytes it moves, the socket it listens on, what it offers) is not here but in `wire` and `libp2p`.

libp2p and trio are imported inside the functions: whoever lists the transports must not pay for one that is not used.
"""

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from veilmesh.core import LocalError
from veilmesh.peer.transports import hardening_noise as noise
from veilmesh.peer.transports import hardening_yamux as yamux

__all__ = ["SUPPORTED", "Fix", "fixes", "harden", "in_force", "without"]

SUPPORTED: Final = "0.8.1"
"""The one release of py-libp2p these fixes were made for, and tried with."""

STREAMS: Final = 16
"""How many streams one connection may have open at once."""

NEGOTIATION_BYTES: Final = 1024
"""The longest message of a protocol negotiation (libp2p specification, multistream-select)."""

Method: TypeAlias = Callable[..., Awaitable[Any]]
_log = logging.getLogger("veilmesh.transports.hardening")
_replaced: dict[tuple[str, str], tuple[Any, Any]] = {}  # (fix, attribute) -> (the library's, ours)


@dataclass(frozen=True, slots=True)
class Fix:
    """`owner.attribute` of the library is replaced by `make(what the library has)`; several may share a name."""

    name: str
    owner: Any
    attribute: str
    make: Callable[[Any], Any]


def handler_errors(stock: Method) -> Method:
    """An exception in a stream's handler ends that stream. In the library it ends the host.

    A peer can cause one at will: a protocol name that is not UTF-8 is enough. The replacement answers False if there
    was one.
    """

    async def handle(self: Any, stream: Any) -> bool:
        try:
            await stock(self, stream)
        except* Exception as errors:  # noqa: BLE001  # the kinds are the remote peer's choice
            _log.info("a stream of %s failed: %r", stream.muxed_conn.peer_id, errors.exceptions)
        else:
            return True
        await _briefly(stream.reset)
        return False

    return handle


def connection_errors(stock: Method) -> Method:
    """An exception in a connection's own task ends that connection. In the library it ends the host."""

    async def start(self: Any) -> None:
        try:
            await stock(self)
        except* Exception as errors:  # noqa: BLE001  # the kinds are the remote peer's choice
            _log.info("a connection failed: %r", errors.exceptions)
            await _briefly(self.close)

    return start


def dead_peers(stock: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """A peer that vanished without a word is noticed within 15 s, by TCP: keepalive when idle, a limit when writing.

    In the library an idle connection to it stays for ever, and a write to it waits for minutes.
    """

    def init(self: Any, stream: Any) -> None:
        stock(self, stream)
        for level, option, value in _liveness():
            with contextlib.suppress(OSError):  # the other side may have closed already
                stream.socket.setsockopt(level, option, value)

    return init


def _liveness() -> Iterator[tuple[int, int, int]]:
    """(level, option, value) for sockets, as far as this platform has them."""
    wanted = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": 5,  # seconds of silence before the first probe
        "TCP_KEEPALIVE": 5,  # the same, as macOS calls it
        "TCP_KEEPINTVL": 3,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 15_000,  # milliseconds that sent bytes may stay unacknowledged; Linux only
    }
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    for name, value in wanted.items():
        if (option := getattr(socket, name, None)) is not None:
            yield socket.IPPROTO_TCP, option, value


def dial_delay(stock: float) -> float:
    """A dial ends when it has succeeded. In the library it takes 250 ms more, for peers of several addresses."""
    return min(stock, 0.0)


def dial_again(stock: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """A peer that could not be dialled may be dialled again. The library blacklists it for 60 s, even if it is back.

    Peers of a mesh start at about the same time, so that the first dial of one to another often comes too early.
    """

    def mark_failed(self: Any, peer_id: str) -> None:
        return None

    return mark_failed


def inbound_slots(stock: Method) -> Method:
    """An incoming connection gives its slot back when it ends. The library keeps the slot until the host ends.

    So it is deaf after its 250th incoming connection, however short each was. (The library's connection gate, unused
    here, is not asked any more.)
    """
    from libp2p.network.connection.raw_connection import RawConnection

    async def handle(self: Any, stream: Any, address: Any, failure: Any) -> None:
        raw = RawConnection(stream, False)
        try:
            connection = await self.upgrade_inbound_raw_conn(raw, address)
            await connection.event_closed.wait()
        finally:
            await _briefly(raw.close)

    return handle


def stream_limit(stock: Method) -> Method:
    """A connection has at most STREAMS streams; further ones are reset. The library lets one peer open thousands.

    A connection that is to carry more (between a relay and a peer that has a place there) says so: `streams_allowed`.
    """

    async def handle(self: Any, stream: Any) -> None:
        if len(self.streams) >= getattr(self, "streams_allowed", STREAMS):
            await _briefly(stream.reset)
        else:
            await stock(self, stream)

    return handle


def negotiation_limit(stock: Method) -> Method:
    """A negotiation message is at most 1 KiB. The library reads as many bytes as a stranger announces."""
    from libp2p.utils.varint import read_varint_prefixed_bytes_limited

    async def read(reader: Any) -> bytes:
        return await read_varint_prefixed_bytes_limited(reader, NEGOTIATION_BYTES)

    return read


def own_log(stock: Any) -> Any:
    """Whoever hosts the library decides what is logged. Its connections log to the root, which configures it.

    And its errors (a failed dial, a stranger's bad handshake) go to the terminal unless somebody listens.
    """
    logging.getLogger("libp2p").addHandler(logging.NullHandler())
    return logging.getLogger("libp2p.network.connection.swarm_connection")


async def _briefly(close: Callable[[], Awaitable[None]]) -> None:
    """Close something that may be broken already: uncancelled, for at most two seconds, whatever it raises."""
    import trio

    with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
        try:
            await close()
        except Exception as error:  # noqa: BLE001  # it is given up either way
            _log.debug("closing failed: %r", error)


def fixes() -> list[Fix]:
    """Every replacement, in the order they are made."""
    from libp2p.host.basic_host import BasicHost
    from libp2p.io.trio import TrioTCPStream
    from libp2p.network import swarm
    from libp2p.network.connection import swarm_connection
    from libp2p.security.noise.io import NoiseTransportReadWriter
    from libp2p.security.secure_session import SecureSession
    from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
    from libp2p.utils import varint

    return [
        Fix("handler-errors", BasicHost, "_swarm_stream_handler", handler_errors),
        Fix("connection-errors", swarm_connection.SwarmConn, "start", connection_errors),
        Fix("connection-errors", Yamux, "start", connection_errors),
        Fix("whole-frames", Yamux, "_write_frame", yamux.whole_frames),
        Fix("dead-peers", TrioTCPStream, "__init__", dead_peers),
        Fix("dialling", swarm, "_HAPPY_EYEBALLS_DELAY", dial_delay),
        Fix("dialling", swarm._NegativePeerCache, "mark_failed", dial_again),
        Fix("throughput", NoiseTransportReadWriter, "write_msg", noise.one_send_a_frame),
        Fix("throughput", NoiseTransportReadWriter, "read_msg", noise.buffered_reads),
        Fix("throughput", SecureSession, "read", noise.whole_reads),
        Fix("throughput", YamuxStream, "read", yamux.whole_buffers),
        Fix("throughput", YamuxStream, "_auto_tune_and_send_window_update", yamux.batched_updates),
        Fix("slow-readers", YamuxStream, "write", yamux.patient_writes),
        Fix("receive-limit", Yamux, "_read_data_body", yamux.receive_limit),
        Fix("inbound-slots", swarm.Swarm, "_do_handle_inbound_connection", inbound_slots),
        Fix("stream-limit", swarm_connection.SwarmConn, "_handle_muxed_stream", stream_limit),
        Fix("negotiation-limit", varint, "read_varint_prefixed_bytes", negotiation_limit),
        Fix("own-log", swarm_connection, "logging", own_log),
    ]


def harden() -> tuple[str, ...]:
    """Put every fix in force, before a host is made; doing it again changes nothing.

    Returns the names of the fixes in force, for the run's record. Raises LocalError: another version of the library is
    installed, or something else has replaced one of the parts; then no host must be made.
    """
    import libp2p

    if libp2p.__version__ != SUPPORTED:
        raise LocalError(
            f"the libp2p hardening was made for version {SUPPORTED}, and {libp2p.__version__} is installed"
        )
    for fix in fixes():
        _replace(fix)
    if missing := {fix.name for fix in fixes()} - set(in_force()):
        raise LocalError(f"the libp2p hardening is not in force: {', '.join(sorted(missing))}")
    return in_force()


def _replace(fix: Fix) -> None:
    key = fix.name, f"{fix.owner.__name__}.{fix.attribute}"
    current = getattr(fix.owner, fix.attribute)
    stock, ours = _replaced.get(key) or (current, fix.make(current))
    if current is not stock and current is not ours:
        raise LocalError(f"something else has replaced {key[1]} of libp2p, so that {fix.name} cannot be in force")
    setattr(fix.owner, fix.attribute, ours)
    _replaced[key] = stock, ours


def in_force() -> tuple[str, ...]:
    """The names of the fixes that are in force now, all their parts, sorted."""
    missing = set()
    names = set()
    for fix in fixes():
        names.add(fix.name)
        _, ours = _replaced.get((fix.name, f"{fix.owner.__name__}.{fix.attribute}"), (None, None))
        if ours is None or getattr(fix.owner, fix.attribute) is not ours:
            missing.add(fix.name)
    return tuple(sorted(names - missing))


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """The library as it is, as far as these fixes go: for the tests that show what each is for. Hardens at the end."""
    for fix in fixes():
        if fix.name in names and (pair := _replaced.get((fix.name, f"{fix.owner.__name__}.{fix.attribute}"))):
            setattr(fix.owner, fix.attribute, pair[0])
    try:
        yield
    finally:
        harden()
