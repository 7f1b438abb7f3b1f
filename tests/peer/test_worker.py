"""Workers: results in order, failures told, and nobody waits for a worker that has died.

Forking needs a process without threads, and pytest's own may have some: every scene runs in an interpreter of its own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio
import numpy as np
import pytest

from veilmesh.core import LocalError
from veilmesh.peer.worker import Executor, InlineWorker, ProcessWorker, with_errands

PATIENCE = 30.0


def execute(tasks: Sequence[object]) -> list[object]:
    return [do(task) for task in tasks]


def do(task: object) -> object:
    match task:
        case ("double", x):
            return x * 2
        case ("fail", why):
            raise ValueError(why)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(5)
        case "lambda":
            return lambda: 0
        case "wait":
            signal.pause()
        case "nap":
            time.sleep(0.2)
    return os.getpid()


def with_worker(
    scene: Callable[[ProcessWorker], Awaitable[None]], prepare: Callable[[], Executor] = lambda: execute
) -> None:
    worker = ProcessWorker(prepare)  # before any event loop

    async def patiently() -> None:
        with anyio.fail_after(PATIENCE):
            await scene(worker)

    try:
        anyio.run(patiently, backend="trio")
    finally:
        worker.close()


async def failure(worker: ProcessWorker, task: object) -> str:
    with pytest.raises(LocalError) as caught:
        await worker.run([task])
    return str(caught.value)


def scene_results_are_in_order() -> None:
    async def scene(worker: ProcessWorker) -> None:
        assert await worker.run([("double", n) for n in range(5)]) == [0, 2, 4, 6, 8]
        assert await worker.run([]) == []
        assert await worker.run(["who"]) == [worker.pid]
        assert worker.pid != os.getpid()

    with_worker(scene)


def scene_large_things_travel() -> None:
    large = b"x" * (8 << 20)

    async def scene(worker: ProcessWorker) -> None:
        assert await worker.run([("double", large)]) == [large * 2]

    with_worker(scene)


def scene_vectors_of_every_kind_travel() -> None:
    whole = np.arange(3_000_000, dtype=np.float32)
    frozen = np.arange(5, dtype=np.int64)
    frozen.flags.writeable = False
    kinds = [whole, whole[::2], np.zeros(0, np.float32), frozen, np.ones((3, 4), ">f8", order="F")]

    async def scene(worker: ProcessWorker) -> None:
        for kind in kinds:
            [found] = await worker.run([("double", kind)])
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.shape) == ((kind * 2).dtype, kind.shape)
            assert (found == kind * 2).all()
            assert found.flags.writeable
        assert await worker.run([("double", [b"", "both"])]) == [[b"", "both"] * 2]

    with_worker(scene)


def scene_what_is_asked_is_asked_as_it_was() -> None:
    """Whoever asks may go on with its vectors at once."""
    large = np.ones(4_000_000, np.float32)

    async def scene(worker: ProcessWorker) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, worker)
            for _ in range(3):  # it has begun to send, and waits for the worker to read
                await anyio.lowlevel.checkpoint()
            large.fill(7)

    async def ask(worker: ProcessWorker) -> None:
        [found] = await worker.run([("double", large)])
        assert isinstance(found, np.ndarray)
        assert (found == found[-1]).all()

    with_worker(scene)


def scene_everybody_gets_their_own() -> None:
    async def scene(worker: ProcessWorker) -> None:
        async def one(n: int) -> None:
            assert await worker.run([("double", [n])]) == [[n, n]]

        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(one, n)

    with_worker(scene)


def scene_a_failure_is_told_and_the_worker_goes_on() -> None:
    async def scene(worker: ProcessWorker) -> None:
        assert await failure(worker, ("fail", "no such luck")) == "the worker failed: ValueError: no such luck"
        assert await worker.run([("double", 4)]) == [8]

    with_worker(scene)


def scene_a_worker_that_dies_is_no_hang() -> None:
    for task, words in {"die": "killed (SIGKILL)", "exit": "failed (exit code 5)"}.items():

        async def scene(worker: ProcessWorker, task: str = task, words: str = words) -> None:
            for _ in range(2):  # and the next one is told too
                assert await failure(worker, task) == f"the worker process has ended: {words}"

        with_worker(scene)


def scene_a_worker_that_is_killed_while_it_waits() -> None:
    async def scene(worker: ProcessWorker) -> None:
        async def kill() -> None:
            await anyio.sleep(0.2)
            os.kill(worker.pid, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            assert "killed (SIGKILL)" in await failure(worker, "wait")

    with_worker(scene)


def scene_a_peer_that_dies_before_its_answer_ends_its_worker_quietly() -> None:
    async def scene(worker: ProcessWorker) -> None:
        with anyio.move_on_after(0.1):
            await worker.run(["nap"])
        await anyio.wait_readable(worker.child.link.socket)
        worker.child.link.close()  # as when a process ends; what it never read is a reset for the other end
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # nothing else runs here
        assert worker.child.poll()
        assert worker.child.ended() == "finished"

    with_worker(scene)


def scene_an_answer_that_cannot_travel_is_told() -> None:
    async def scene(worker: ProcessWorker) -> None:
        assert "failed (exit code 70)" in await failure(worker, "lambda")

    with_worker(scene)


def scene_a_worker_that_cannot_begin_is_told() -> None:
    def prepare() -> Executor:
        raise MemoryError("no room")

    async def scene(worker: ProcessWorker) -> None:
        assert "failed (exit code 70)" in await failure(worker, "who")

    with_worker(scene, prepare)


SCENES = [name for name in dir() if name.startswith("scene_")]


@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene: str) -> None:
    ran = subprocess.run([sys.executable, __file__, scene], capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stderr


@dataclass(frozen=True)
class Sum:
    terms: tuple[int, ...]

    def run(self) -> object:
        return sum(self.terms)


def test_errands_are_done_beside_whatever_a_trainer_does_and_in_order() -> None:
    assert with_errands(execute)([("double", 4), Sum((1, 2)), "who", Sum(())]) == [8, 3, os.getpid(), 0]
    batches: list[int] = []

    def counting(tasks: Sequence[object]) -> list[object]:
        batches.append(len(tasks))
        return list(tasks)

    assert with_errands(counting)(["a", "b"]) == ["a", "b"]
    assert batches == [2]  # what is asked for together stays together


def test_an_inline_worker_keeps_the_order() -> None:
    async def scene() -> None:
        worker = InlineWorker(execute)
        assert await worker.run([("double", n) for n in range(4)]) == [0, 2, 4, 6]
        assert await worker.run(["who"]) == [os.getpid()]

    anyio.run(scene, backend="trio")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
