"""A slow link: its arithmetic on a clock of its own, and the relay that carries real connections over it."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmesh.peer.processes import Link
from veilmesh.peer.shaping import BUFFER_SECONDS, PIECE, Lane, Pace
from veilmesh.peer.shaping_relay import Relay, Shaper

MEGABIT = 1e6


def offered(lane: Lane, size: int) -> tuple[float, float]:
    """Put `size` bytes on a lane as the relay does, on a clock that jumps; when the last arrived, and the last wait."""
    now, last, waited = 0.0, 0.0, 0.0
    for at in range(0, size, lane.piece):
        waited = lane.opens(now)
        now += waited
        last = lane.put(1, bytes(min(lane.piece, size - at)), now)
    return last, waited


@pytest.mark.parametrize("rate", [64e3, MEGABIT, 100 * MEGABIT])
def test_bytes_take_their_time_at_the_rate_and_the_delay(rate: float) -> None:
    lane = Lane(Pace(rate, 0.05))
    size = int(rate / 8 * 3)  # three seconds of it
    last, waited = offered(lane, size)
    assert last == pytest.approx(3 + 0.05, abs=1e-3)
    assert waited > 0  # whoever sends had to wait, rather than be buffered without end
    assert lane.carried == size


def test_a_link_without_a_rate_only_delays() -> None:
    lane = Lane(Pace(delay=0.2))
    assert [lane.put(1, b"x" * 10_000_000, 1.0) for _ in range(3)] == [1.2] * 3
    assert lane.opens(1.0) == 0
    assert lane.arrived(1.1) == []
    assert len(lane.arrived(1.2)) == 3
    assert lane.next(1.2) is None


def test_what_waits_is_bounded() -> None:
    lane = Lane(Pace(MEGABIT))
    taken = 0
    while not lane.opens(0.0):
        lane.put(1, bytes(PIECE), 0.0)
        taken += PIECE
    assert taken <= BUFFER_SECONDS * MEGABIT / 8 + 2 * PIECE
    assert lane.opens(lane.opens(0.0)) == 0


def test_a_connection_that_is_not_there_yet_delivers_nothing() -> None:
    lane = Lane(Pace(delay=0.05))
    assert lane.put(1, b"hello", 0.0, not_before=0.15) == 0.15
    assert lane.put(2, b"long there", 0.01) == pytest.approx(0.06)
    assert lane.arrived(0.1) == [(2, b"long there")]


pieces = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=4000), st.floats(0, 0.3)), max_size=60)


@given(pieces, st.sampled_from([0.0, 9600.0, MEGABIT]), st.sampled_from([0.0, 0.05]))
def test_every_connection_gets_its_bytes_in_order(
    put: list[tuple[int, bytes, float]], rate: float, late: float
) -> None:
    lane, now, last = Lane(Pace(rate, late)), 0.0, 0.0
    for flow, data, pause in put:
        now += pause
        last = max(last, lane.put(flow, data, now, not_before=flow * 0.1))
    found: dict[int, bytes] = {}
    for flow, data in lane.arrived(last):
        found[flow] = found.get(flow, b"") + data
    for flow in {flow for flow, _, _ in put}:
        assert found[flow] == b"".join(data for of, data, _ in put if of == flow)


# --- the relay, on loopback ----------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        yield server


class Running:
    """A shaper in a thread of this process, and what the peer says to it."""

    def __init__(self, pace: Pace) -> None:
        ours, theirs = socket.socketpair()
        self.link, other = Link(ours), Link(theirs)
        self.thread = threading.Thread(target=lambda: Shaper(pace, "127.0.0.1", other).run(), daemon=True)
        self.thread.start()

    def ask(self, what: str, port: int = 0, host: str = "127.0.0.1") -> int:
        self.link.send({what: [host, port]})
        return int(self.link.receive()["port"])

    def carried(self) -> list[int]:
        self.link.send({"carried": True})
        return list(self.link.receive()["carried"])


@pytest.fixture
def fast() -> Iterator[Running]:
    running = Running(Pace(50 * MEGABIT, 0.005))
    yield running
    running.link.close()
    running.thread.join(20)
    assert not running.thread.is_alive()


def everything(end: socket.socket) -> bytes:
    end.settimeout(20)
    found = b""
    while data := end.recv(1 << 16):
        found += data
    return found


def connected(running: Running, what: str, listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    port = running.ask(what, listening.getsockname()[1])
    dialled = socket.create_connection(("127.0.0.1", port), timeout=20)
    accepted, _ = listening.accept()
    return dialled, accepted


@pytest.mark.parametrize(("what", "lane"), [("way", 0), ("front", 1)])
def test_bytes_cross_whole_and_are_counted_on_their_lane(
    fast: Running, listening: socket.socket, what: str, lane: int
) -> None:
    dialled, accepted = connected(fast, what, listening)
    question, answer = bytes(range(256)) * 2000, b"yes" * 1000
    with dialled, accepted:
        threading.Thread(target=lambda: (dialled.sendall(question), dialled.shutdown(socket.SHUT_WR))).start()
        assert everything(accepted) == question  # its end came through, behind its last byte
        accepted.sendall(answer)
        accepted.shutdown(socket.SHUT_WR)
        assert everything(dialled) == answer
    assert fast.carried()[lane] == len(question)
    assert fast.carried()[1 - lane] == len(answer)


def test_a_side_that_breaks_breaks_the_other(fast: Running, listening: socket.socket) -> None:
    dialled, accepted = connected(fast, "way", listening)
    with dialled:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        dialled.settimeout(20)
        with pytest.raises(ConnectionResetError):
            dialled.recv(1)


def test_nobody_at_the_other_end_is_told_as_such(fast: Running, listening: socket.socket) -> None:
    port = fast.ask("way", listening.getsockname()[1])
    listening.close()
    reset = contextlib.suppress(ConnectionResetError)  # while it dials, or after
    with reset, socket.create_connection(("127.0.0.1", port), timeout=20) as dialled:
        assert dialled.recv(1) == b""


def test_a_name_is_looked_up_and_one_that_is_nobodys_is_said_to_be(fast: Running, listening: socket.socket) -> None:
    port = fast.ask("way", listening.getsockname()[1], "localhost")
    with socket.create_connection(("127.0.0.1", port), timeout=20):
        listening.accept()[0].close()
    fast.link.send({"way": ["nobody.invalid", 1]})
    assert "nobody.invalid" in fast.link.receive()["failed"]
    assert fast.carried() == [0, 0]  # it goes on


def test_a_slow_link_is_shared_by_all_connections(listening: socket.socket) -> None:
    """Two senders at once, each with more than the link takes: neither keeps the other from getting on."""
    running = Running(Pace(MEGABIT))
    port = running.ask("way", listening.getsockname()[1])
    dialled = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
    accepted = [listening.accept()[0] for _ in range(2)]
    sending = [threading.Thread(target=_pour, args=(end,), daemon=True) for end in dialled]
    for thread in sending:
        thread.start()
    got = [len(_read(end, 20_000)) for end in accepted]
    assert got == [20_000] * 2
    up, down = running.carried()
    assert (up >= 40_000, down) == (True, 0)
    running.link.close()
    for end in (*dialled, *accepted):
        end.close()


def _pour(end: socket.socket) -> None:
    try:
        for _ in range(100):
            end.sendall(bytes(5000))
    except OSError:  # the test has seen enough
        return


def _read(end: socket.socket, size: int) -> bytes:
    end.settimeout(20)
    found = b""
    while len(found) < size:
        found += end.recv(size - len(found))
    return found


def scene_relay_ends_with_its_link() -> None:
    relay = Relay(Pace(MEGABIT, 0.01), "127.0.0.1", [])
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = relay.way(server.getsockname())
        assert first == relay.way(server.getsockname())  # one port for one neighbour
        with socket.create_connection(first) as dialled:
            accepted, _ = server.accept()
            dialled.sendall(b"over")
            assert accepted.recv(4) == b"over"
        assert relay.carried()[0] == 4
    relay.close()
    try:
        socket.create_connection(first, timeout=1)
    except OSError:
        return
    raise AssertionError("the relay still listens")


def test_scene() -> None:
    """Forking needs a process without threads, and pytest's own may have some."""
    ran = subprocess.run(
        [sys.executable, __file__, "scene_relay_ends_with_its_link"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


if __name__ == "__main__":
    globals()[sys.argv[1]]()
