"""All members as nodes in one process, over memory: the real node, envelopes and machines, without sockets."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from veilmesh.core import BadInput
from veilmesh.crypto.envelope import Card
from veilmesh.peer.machine import Keep, Note
from veilmesh.peer.transports.base import Traffic
from veilmesh.peer.transports.memory import Memory
from veilmesh.peer.worker import InlineWorker
from veilmesh.sim.cast import Cast
from veilmesh.sim.continuation import identity_of
from veilmesh.sim.member import MemberReport, Surroundings, sentence_of, take_part
from veilmesh.sim.passing import Passing
from veilmesh.sim.record import Ended, Recorder, Watch
from veilmesh.sim.resume import Counted, Keeper, Resumption
from veilmesh.sim.tap import Tap

__all__ = ["run_in_memory"]


def run_in_memory(cast: Cast, folder: Path, watch: Watch, resumed: Resumption | None = None) -> dict[str, Any]:
    """Run a scenario, or go on with it, with every node in this process; its summary.

    Bytes are those of the sealed frames.
    """
    try:
        return anyio.run(_run, cast, folder, watch, resumed, backend="trio")
    except* BadInput as group:
        sentence = sentence_of(group)
    raise BadInput(sentence)


async def _run(cast: Cast, folder: Path, watch: Watch, resumed: Resumption | None) -> dict[str, Any]:
    run, kind, origin = os.urandom(16), Memory(), time.monotonic() - (resumed.seconds if resumed else 0.0)
    identities = [identity_of(folder, cast, i) for i in range(cast.size)]
    recorder = Recorder(folder, cast, tuple(i.peer for i in identities), resumed=resumed)
    cards: dict[int, Card] = {}
    complete = anyio.Event()
    protections: dict[str, str] = {}
    reports: dict[int, MemberReport] = {}

    async def member(index: int) -> None:
        async def announce(card: Card, protected: Mapping[str, str]) -> list[Card]:
            cards[index] = card
            protections.update(protected)
            if len(cards) == cast.size:
                complete.set()
            await complete.wait()
            return [cards[i] for i in range(cast.size)]

        def note(what: Note, now: float, traffic: Traffic) -> None:
            recorder.note(index, what, now, (traffic.sent, traffic.received))
            watch(index, what, now, (traffic.sent, traffic.received))

        def now_noted(what: Note) -> None:
            note(what, time.monotonic() - origin, transport.traffic)

        me, again = identities[index].peer, resumed is not None
        passing = Passing.for_member(folder, cast, index, me, now_noted, again, clock=lambda: time.monotonic() - origin)
        transport = passing.over(kind.make(identities[index]))
        with Tap.for_member(folder, cast, index, now_noted, again) as tap, passing:
            keeper = Keeper(folder, cast, index, identities[index].peer, resumed, tap.flush)

            async def keep(kept: Keep, counted: Counted) -> None:
                keeper.write(kept, counted)

            around = Surroundings(
                run=run,
                identity=identities[index],
                transport=transport,
                worker=InlineWorker(cast.executor(index)),
                announce=announce,
                note=note,
                tap=tap.keep if tap.keeps else None,
                clock=lambda: time.monotonic() - origin,
                keep=keep,
                resumed=resumed,
            )
            reports[index] = await take_part(cast, index, around)

    with anyio.move_on_after(cast.scenario.timing.run) as limit:
        async with anyio.create_task_group() as tasks:
            for index in range(cast.size):
                tasks.start_soon(member, index)
    if limit.cancelled_caught:
        late = [cast.names[i] for i in range(cast.size) if i not in reports]
        raise BadInput(f"Waited in vain for the end of {', '.join(late)}; raise timing.run.")
    members = []
    for index, report in sorted(reports.items()):
        assert report.outcome is not None  # nobody is told to leave here
        recorder.model(index, report.outcome)
        who = (index, cast.names[index], str(identities[index].peer), cast.role(index))
        members.append(Ended(*who, **report.figures()))
    return recorder.finish(members, time.monotonic() - origin, protections, "frames")
