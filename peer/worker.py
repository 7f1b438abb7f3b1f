"""Where slow things run: off the event loop, because a training thread starves it.

A worker takes several tasks at once (a simulator has many). A process worker is a warm forked child with one torch
thread; an inline one serves simulations and tests. What a task means is the executor's business, never the worker's.
"""

import os
import pickle  # only between this process and the child it forked itself
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias, runtime_checkable

import anyio

from veilmesh.core import LocalError
from veilmesh.peer.processes import Child, Link, fork

__all__ = ["Errand", "Executor", "InlineWorker", "ProcessWorker", "Worker", "with_errands"]

Executor: TypeAlias = Callable[[Sequence[object]], list[object]]
"""Runs tasks, in order, and returns their results."""

_HEADER = 8


@runtime_checkable
class Errand(Protocol):
    """A task that brings all it needs, and is done alike wherever it runs: encryption, and whatever else is slow and no
    trainer's business. A frozen, picklable dataclass; a remote peer's bytes that are wrong are part of its result, for
    what it raises ends the machine that asked."""

    def run(self) -> object:
        """Do it."""
        ...


def with_errands(execute: Executor) -> Executor:
    """An executor that does errands itself, and has `execute` do everything else."""

    def run(tasks: Sequence[object]) -> list[object]:
        if not any(isinstance(task, Errand) for task in tasks):
            return execute(tasks)
        return [task.run() if isinstance(task, Errand) else execute([task])[0] for task in tasks]

    return run


class Worker(Protocol):
    """Runs tasks away from the loop."""

    async def run(self, tasks: Sequence[object]) -> list[object]:
        """The results of `tasks`, in order. Raises LocalError if they could not be run."""
        ...


class InlineWorker:
    """Runs tasks where it stands: for simulations and tests."""

    def __init__(self, execute: Executor) -> None:
        self._execute = execute

    async def run(self, tasks: Sequence[object]) -> list[object]:
        await anyio.lowlevel.checkpoint()
        return self._execute(tasks)


class ProcessWorker:
    """A warm child process. Start it before any event loop runs.

    Tasks and results travel by pickle over a socket pair between this process and its own child: nothing a remote peer
    can write to.
    """

    def __init__(self, prepare: Callable[[], Executor], close: Sequence[Link] = ()) -> None:
        self._keep(fork("worker", lambda link: _serve(link, prepare), close))

    @classmethod
    def kept(cls, child: Child) -> "ProcessWorker":
        """The worker that this process forked before it became another program."""
        made = cls.__new__(cls)
        made._keep(child)
        return made

    def _keep(self, child: Child) -> None:
        self._child = child
        self._child.link.socket.setblocking(False)
        self._lock = anyio.Lock(fast_acquire=True)  # a turn of the loop less for every task; waiting for it is fair

    @property
    def child(self) -> Child:
        """The process itself."""
        return self._child

    @property
    def pid(self) -> int:
        return self._child.pid

    async def run(self, tasks: Sequence[object]) -> list[object]:
        async with self._lock:
            # Whoever asks goes on while this is sent, and may change its vectors: what is sent is a copy.
            for part in [bytes(part) for part in _parts(tasks)]:
                await self._write(part)
            answer = await self._read()
        if isinstance(answer, str):
            raise LocalError(f"the worker failed: {answer}")
        assert isinstance(answer, list)
        return answer

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    async def _write(self, part: bytes) -> None:
        data = memoryview(part)
        end = self._child.link.socket
        while data:
            try:
                data = data[end.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(end)
            except OSError:
                raise LocalError(f"the worker process has ended: {self._ended()}") from None

    async def _read(self) -> object:
        await anyio.wait_readable(self._child.link.socket)
        count = int.from_bytes(await self._exactly(_HEADER), "big")
        sizes = _sizes(await self._exactly(_HEADER * count))
        body, *vectors = [await self._exactly(size) for size in sizes]
        return pickle.loads(body, buffers=vectors)

    async def _exactly(self, size: int) -> bytearray:
        end = self._child.link.socket
        buffer = bytearray(size)
        view, at = memoryview(buffer), 0
        while at < size:
            try:
                got = end.recv_into(view[at:])
            except BlockingIOError:  # asked first, waited for then: mostly it is all there
                await anyio.wait_readable(end)
                continue
            except OSError:
                got = 0
            if not got:
                raise LocalError(f"the worker process has ended: {self._ended()}")
            at += got
        return buffer

    def _ended(self) -> str:
        self._child.kill()  # its socket is closed, so it is ending: reap it, and how it ended is known
        return self._child.ended()


def _serve(link: Link, prepare: Callable[[], Executor]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    execute = prepare()
    with suppress(EOFError, ConnectionError):  # the peer has closed, or died before it took an answer: it wants no more
        while True:
            tasks = _received(link.socket)
            try:
                answer: object = execute(tasks)
            except Exception as error:  # noqa: BLE001  # the process edge: the asking peer is told, and decides
                answer = f"{type(error).__name__}: {error}"
            del tasks  # a model; there may be no room for two
            for part in _parts(answer):
                link.socket.sendall(part)
            del answer


def _parts(value: object) -> list[bytes | memoryview]:
    """`value` as it travels: how many parts follow, how long each is, the pickle, and the vectors of it as they lie in
    memory: a model is not copied to be said."""
    vectors: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=vectors.append)
    parts: list[bytes | memoryview] = [body, *(vector.raw() for vector in vectors)]
    sizes = [len(parts), *(len(part) for part in parts)]
    return [b"".join([*(size.to_bytes(_HEADER, "big") for size in sizes), body]), *parts[1:]]


def _sizes(raw: bytes | bytearray) -> list[int]:
    return [int.from_bytes(raw[at : at + _HEADER], "big") for at in range(0, len(raw), _HEADER)]


def _received(end: socket.socket) -> Any:
    """The next value. Raises EOFError once the other end has closed."""
    count = int.from_bytes(_exactly(end, _HEADER), "big")
    body, *vectors = [_exactly(end, size) for size in _sizes(_exactly(end, _HEADER * count))]
    return pickle.loads(body, buffers=vectors)


def _exactly(end: socket.socket, size: int) -> bytearray:
    """The next `size` bytes, in one call where they are all there. Raises EOFError."""
    buffer = bytearray(size)
    view, at = memoryview(buffer), 0
    while at < size:
        if not (got := end.recv_into(view[at:], 0, socket.MSG_WAITALL)):
            raise EOFError
        at += got
    return buffer
