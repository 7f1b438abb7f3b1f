"""Signs of life: to whom, how often, and what they say."""

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from veilmesh.peer.allowance import Allowance
from veilmesh.peer.limits import IN_CLEAR, Kind, Limits
from veilmesh.peer.machine import PeerId
from veilmesh.peer.outbox import Outbox
from veilmesh.peer.presence import HEARD, NOT_YET, Presence

A, B = PeerId("a"), PeerId("b")


class House:
    """A presence, and everything it said."""

    def __init__(self, tasks: TaskGroup, founders: frozenset[PeerId], hello: Callable[[], bytes] | None) -> None:
        self.said: list[tuple[PeerId, int, bytes]] = []
        self.changes = 0
        self.outbox = Outbox(Allowance(9, 99), self.carry, lambda: None)
        self.presence = Presence(founders, frozenset(), Limits(), self.outbox, self.changed, hello)
        self.outbox.start([A, B], tasks)

    async def carry(self, to: PeerId, kind: int, body: bytes) -> None:
        self.said.append((to, kind, body))

    def changed(self) -> None:
        self.changes += 1

    async def beats(self, number: int) -> list[tuple[PeerId, int, bytes]]:
        self.said.clear()
        for _ in range(number):
            self.presence.beat()
            await anyio.wait_all_tasks_blocked()
        return self.said


def play(scene: Callable[[TaskGroup], Awaitable[None]]) -> None:
    async def patiently() -> None:
        async with anyio.create_task_group() as tasks:
            await scene(tasks)
            tasks.cancel_scope.cancel()

    anyio.run(patiently, backend="trio")


def test_a_newcomer_is_told_who_we_are_ever_more_rarely_until_it_is_heard() -> None:
    async def scene(tasks: TaskGroup) -> None:
        house = House(tasks, frozenset(), lambda: b"who we are")
        house.presence.expect(A, 0.0)
        called = await house.beats(31)
        assert called == [(A, IN_CLEAR, b"who we are"), (A, Kind.PRESENCE, NOT_YET)] * 5  # at 1, 2, 4, 8, 16
        assert house.presence.heard(A, 1.0)
        assert await house.beats(40) == [(A, Kind.PRESENCE, HEARD)] * 40
        assert house.changes == 1

    play(scene)


def test_one_that_fell_silent_is_called_with_every_heartbeat_and_one_that_left_is_not() -> None:
    async def scene(tasks: TaskGroup) -> None:
        house = House(tasks, frozenset({A, B}), None)
        for peer in (A, B):
            house.presence.heard(peer, 0.0)
        house.presence.left(B)
        assert len(await house.beats(3)) == 6  # it still waits for our goodbye
        house.presence.tick(1000.0)
        assert await house.beats(3) == [(A, Kind.PRESENCE, NOT_YET)] * 3

    play(scene)


def test_the_mesh_is_up_when_each_hears_the_other_and_not_before() -> None:
    async def scene(tasks: TaskGroup) -> None:
        house = House(tasks, frozenset({A, B}), None)
        for peer in (A, B):
            house.presence.heard(peer, 0.0)
        house.presence.answer(A, HEARD)
        house.presence.answer(B, NOT_YET)
        assert not house.presence.up.is_set()
        assert house.presence.awaited == [B]
        house.presence.answer(B, HEARD)
        assert house.presence.up.is_set()
        assert house.changes == 0  # the machine is told by `Started`

    play(scene)
