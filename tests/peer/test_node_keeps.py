"""What a node does with its machine's checkpoints: one at a time, in order, and the last before it ends."""

import threading
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.crypto import Identity, Mailroom
from veilmesh.peer.machine import Effect, Event, Keep, Note, Stop, Work
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.transports.memory import Memory
from veilmesh.peer.worker import InlineWorker


class Rounds:
    """Works, keeps, works ..., and notes when it got as far."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._round = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        kept: list[Effect] = [Keep(self._round, {"round": self._round}), Note("kept", {})] if self._round else []
        if self._round == self._rounds:
            return [*kept, Stop("done")]
        self._round += 1
        return [*kept, Work("work", None)]


def run(rounds: int, keep: Callable[[Keep, float], Awaitable[None]] | None, notes: list[Note]) -> object:
    async def live() -> object:
        identity = Identity.generate()
        transport = Memory().make(identity)
        node = Node(
            machine=Rounds(rounds),
            mailroom=Mailroom(identity, X25519PrivateKey.generate(), bytes(16), kinds=frozenset(Kind)),
            transport=transport,
            worker=InlineWorker(lambda tasks: [None for _ in tasks]),
            neighbours=frozenset(),
            note=lambda note, now: notes.append(note),
            keep=keep,
            limits=Limits(settle=0.0, linger=0.0),
        )
        async with transport.open() as inbox:
            return await node.run(inbox)

    return anyio.run(live, backend="trio")


def test_checkpoints_are_written_one_at_a_time_in_order_and_the_last_before_the_end() -> None:
    begun: list[int] = []
    ended: list[int] = []
    machine_at: list[int] = []
    notes: list[Note] = []

    async def keep(kept: Keep, now: float) -> None:
        assert begun == ended, "another is being written"
        begun.append(kept.round)
        for _ in range(50):  # a slow disk: the machine could have gone far meanwhile
            await anyio.lowlevel.checkpoint()
        machine_at.append(len(notes))
        ended.append(kept.round)

    assert run(5, keep, notes) == "done"
    assert begun == ended == [1, 2, 3, 4, 5]
    # It went on while a checkpoint was written, but never beyond the next one.
    assert all(at <= round_ for at, round_ in zip(machine_at, begun, strict=True))


def test_a_blocking_disk_can_be_waited_for_in_a_thread() -> None:
    threads: set[int] = set()

    async def keep(kept: Keep, now: float) -> None:
        await anyio.to_thread.run_sync(lambda: threads.add(threading.get_ident()))

    assert run(3, keep, []) == "done"
    assert threads
    assert threading.get_ident() not in threads


def test_without_a_place_to_keep_them_checkpoints_are_nothing() -> None:
    assert run(3, None, []) == "done"
