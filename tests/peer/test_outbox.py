"""What waits to leave: order, what may overtake, and what a neighbour that goes leaves behind."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.abc import TaskGroup

from veilmesh.core import LocalError
from veilmesh.peer.allowance import Allowance
from veilmesh.peer.machine import PeerId
from veilmesh.peer.outbox import Outbox

A, B = PeerId("a"), PeerId("b")
SIGN, DATA = 2, 1


class Carrier:
    """Carries nothing while its gate is shut."""

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.carried: list[tuple[PeerId, int, bytes]] = []
        self.emptied = 0
        self.allowance = Allowance(3, 1000)
        self.outbox = Outbox(self.allowance, self.carry, self.on_empty)

    async def carry(self, to: PeerId, kind: int, body: bytes) -> None:
        await self.gate.wait()
        self.carried.append((to, kind, body))

    def on_empty(self) -> None:
        self.emptied += 1


def play(scene: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def patiently() -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                await scene(tasks)
                tasks.cancel_scope.cancel()

    anyio.run(patiently, backend="trio")


async def until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110  # what is waited for sets no event
        await anyio.sleep(0.005)


def test_a_sign_of_life_passes_what_waits_and_only_the_newest_is_said() -> None:
    async def scene(tasks: TaskGroup) -> None:
        way = Carrier()
        way.outbox.start([A], tasks)
        way.outbox.post(A, DATA, b"large")
        await anyio.wait_all_tasks_blocked()  # it is being carried: that is not interrupted
        way.outbox.post(A, DATA, b"second")
        for number in range(100):
            way.outbox.hasten(A, SIGN, b"%d" % number)
        way.outbox.hasten(A, 0, b"hello")
        way.gate.set()
        await until(lambda: way.outbox.empty)
        assert way.carried == [(A, DATA, b"large"), (A, 0, b"hello"), (A, SIGN, b"99"), (A, DATA, b"second")]
        assert way.emptied == 1

    play(scene)


def test_a_neighbour_that_goes_leaves_nothing_behind_and_may_come_again() -> None:
    async def scene(tasks: TaskGroup) -> None:
        way = Carrier()
        way.outbox.start([A, B], tasks)
        way.outbox.post(A, DATA, b"being carried")
        await anyio.wait_all_tasks_blocked()
        assert way.outbox.post(A, DATA, b"waits")
        assert way.outbox.post(A, DATA, b"waits too")
        assert not way.outbox.post(A, DATA, b"no room")
        way.outbox.hasten(A, SIGN, b"here")
        way.outbox.stop(A)
        assert A not in way.outbox
        await until(lambda: way.outbox.empty)
        assert not way.allowance._count
        with pytest.raises(LocalError, match="not a neighbour"):
            way.outbox.post(A, DATA, b"anybody there")
        way.outbox.start([A], tasks)
        assert all(way.outbox.post(A, DATA, b"%d" % n) for n in range(3))
        way.gate.set()
        await until(lambda: way.outbox.empty)
        assert [body for _, _, body in way.carried] == [b"0", b"1", b"2"]

    play(scene)


def test_stopping_and_starting_at_once_carries_only_what_came_after() -> None:
    async def scene(tasks: TaskGroup) -> None:
        way = Carrier()
        way.gate.set()
        way.outbox.start([A], tasks)
        way.outbox.post(A, DATA, b"for the process that is no more")
        way.outbox.stop(A)
        way.outbox.start([A], tasks)
        way.outbox.post(A, DATA, b"for the new one")
        await until(lambda: way.outbox.empty)
        assert way.carried == [(A, DATA, b"for the new one")]

    play(scene)
