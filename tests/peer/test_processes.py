"""Children: they end with their parent, however it ends; how they ended is told; messages to them arrive whole.

Forking needs a process without threads, and pytest's own may have some: every scene runs in an interpreter of its own.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmesh.core import LocalError
from veilmesh.peer.processes import Link, fork

DEADLINE = 30.0


def until(met: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE
    while not met():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Ended; where nobody reaps orphans, what is left is a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(link: Link) -> None:
    while link.receive() is not None:
        pass


def for_ever(link: Link) -> None:
    time.sleep(1000)


# --- scenes: each in an interpreter of its own ---------------------------------------------------------------------


def scene_how_it_ended() -> None:
    def fails(link: Link) -> None:
        raise ValueError("on purpose")

    for main, words in {
        (lambda link: None): "finished",
        fails: "failed (exit code 70)",
        (lambda link: os._exit(3)): "failed (exit code 3)",
        (lambda link: os.kill(os.getpid(), signal.SIGKILL)): "killed (SIGKILL)",
        (lambda link: os.kill(os.getpid(), signal.SIGSEGV)): "killed (SIGSEGV)",
        (lambda link: os.kill(os.getpid(), signal.SIGRTMIN + 6)): f"killed (signal {signal.SIGRTMIN + 6})",
    }.items():
        child = fork("child", main)
        until(child.poll)
        assert child.ended() == words, (child.ended(), words)
        child.kill()  # harmless


def scene_kill_ends_and_reaps() -> None:
    child = fork("child", for_ever)
    assert (child.poll(), child.ended()) == (False, "running")
    child.kill()
    assert child.ended() == "killed (SIGKILL)"
    assert not psutil.pid_exists(child.pid)
    child.kill()


def scene_fork_is_refused_with_threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        fork("child", for_ever)
    except LocalError as error:
        refusal = str(error)
    finally:
        stop.set()
        thread.join()
    assert "threads" in refusal


def scene_messages_go_both_ways() -> None:
    def echo(link: Link) -> None:
        while (message := link.receive()) is not None:
            link.send(["echo", message])

    child = fork("child", echo)
    large = b"x" * (3 << 20)
    for message in (1, "two", {"three": [3.0, None]}, large):
        child.link.send(message)
        assert child.link.receive() == ["echo", message]
    child.link.close()
    until(child.poll)
    assert child.ended() == "finished"


def scene_no_sibling_holds_a_link_open() -> None:
    first = fork("first", wait_for_end)
    second = fork("second", for_ever, close=[first.link])
    first.link.close()
    until(first.poll)
    assert first.ended() == "finished"
    second.kill()


def scene_the_parents_exit_handlers_are_the_parents() -> None:
    parent = os.getpid()
    atexit.register(lambda: os.getpid() == parent or os.kill(parent, signal.SIGABRT))
    child = fork("child", lambda link: sys.exit(0))
    until(child.poll)


def scene_ctrl_c_is_the_parents_and_sigterm_the_childs() -> None:
    def ready(link: Link) -> None:
        link.send("ready")
        wait_for_end(link)

    child = fork("child", ready)
    assert child.link.receive() == "ready"
    os.kill(child.pid, signal.SIGINT)
    child.link.send("still there?")
    assert not child.poll()
    os.kill(child.pid, signal.SIGTERM)
    until(child.poll)
    assert child.ended() == "killed (SIGTERM)"


def scene_parent() -> None:
    """Says its child's and its grandchild's process ids, and waits to be killed."""

    def child_main(link: Link) -> None:
        grandchild = fork("grandchild", for_ever, close=[link])
        link.send(grandchild.pid)
        time.sleep(1000)

    child = fork("child", child_main)
    print(child.pid, child.link.receive(), flush=True)
    time.sleep(1000)


SCENES = [name for name in dir() if name.startswith("scene_") and name != "scene_parent"]


@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene: str) -> None:
    ran = subprocess.run([sys.executable, __file__, scene], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_what_a_child_says_last_is_seen() -> None:
    ran = subprocess.run([sys.executable, __file__, "scene_how_it_ended"], capture_output=True, text=True, timeout=60)
    assert "ValueError: on purpose" in ran.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_grandchildren_end_with_a_killed_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, __file__, "scene_parent"], stdout=subprocess.PIPE, text=True)
    pids: list[int] = []
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(map(is_gone, pids))
        parent.send_signal(how)
        parent.wait(DEADLINE)
        until(lambda: all(map(is_gone, pids)))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


# --- links, in this process ----------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Link]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, Link(there)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), messages=st.lists(st.integers(0, 9) | st.binary(max_size=40) | st.lists(st.text(max_size=5))))
def test_messages_arrive_whole_however_they_are_cut(data: st.DataObject, messages: list[object]) -> None:
    packed = [msgspec.msgpack.encode(m) for m in messages]
    raw = b"".join(len(p).to_bytes(4, "big") + p for p in packed)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    here, there = socket.socketpair()
    link, found = Link(there), []
    with here, there:
        for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            if stop > start:
                here.sendall(raw[start:stop])
                got, alive = link.drain()
                found += got
                assert alive
        here.close()
        assert link.drain() == ([], False)
    assert found == messages


def test_half_a_message_is_none_when_the_other_end_closes(ends: tuple[socket.socket, Link]) -> None:
    here, link = ends
    here.sendall(b"\x00\x00\x00\x09half")
    here.close()
    assert link.receive() is None


def test_what_was_said_before_the_end_is_still_had(ends: tuple[socket.socket, Link]) -> None:
    here, link = ends
    Link(here).send("last words")
    here.close()
    assert link.drain() == (["last words"], True)
    assert link.drain() == ([], False)


def test_speaking_to_one_that_has_gone_is_not_an_error(ends: tuple[socket.socket, Link]) -> None:
    here, link = ends
    here.close()
    for _ in range(3):
        link.send("anybody?")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
