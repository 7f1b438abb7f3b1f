"""A member in a process of its own: from its first line after the fork to its last word to the supervisor."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import psutil

from veilmesh.core import BadInput, LocalError
from veilmesh.crypto.envelope import Card
from veilmesh.peer.confinement import Exhausted, confine, give_back, keep, peak_memory, require_room, watch_memory
from veilmesh.peer.machine import Keep, Note
from veilmesh.peer.processes import Link
from veilmesh.peer.shaping_relay import Relay
from veilmesh.peer.transports.base import TRANSPORTS, Traffic, Transport, TransportKind
from veilmesh.peer.transports.shaped import shaped
from veilmesh.peer.worker import Executor, ProcessWorker
from veilmesh.sim.cast import Cast
from veilmesh.sim.continuation import identity_of
from veilmesh.sim.edge import Edge
from veilmesh.sim.entry import Entry
from veilmesh.sim.feet import on_foot, standing
from veilmesh.sim.lean import Belongings, alone, can_be_lean, go_lean, slim
from veilmesh.sim.member import Surroundings, sentence_of, take_part
from veilmesh.sim.passing import Passing
from veilmesh.sim.record import save_model
from veilmesh.sim.resume import Counted, Keeper, Resumption
from veilmesh.sim.tap import Tap

__all__ = ["MemberProcess"]


@dataclass(frozen=True)
class MemberProcess:
    """Member `index` of a run. Everything here came through the fork; nothing is sent but over the link.

    To the supervisor: a {"report"} of what it is held to, {"card", "protections"}, then {"note", ...} as often as there
    is one, at last the whole {"report"}, or {"failed"} for a sentence that ends the whole run, or {"broken"} for one
    that ends this member only. From it: the {"roster"}, and perhaps {"leave"}.
    """

    cast: Cast
    index: int
    folder: Path
    run: bytes  # the run's id
    origin: float  # when the run began, on this machine's monotonic clock
    resumed: Resumption | None = None  # where it is taken up again, if it is
    entry: Entry = Entry()

    def main(self, link: Link) -> None:
        """Live. The worker is forked before any event loop runs, and so is the slow link of an edge device."""
        lean, relay = self._edge() is not None and can_be_lean(self.cast, self.index), self._slow_link(link)
        try:
            limits = self._confined(relay, lean)
            worker = ProcessWorker(self._executor, close=[link, relay.link] if relay else [link])
        except BadInput as error:
            link.send({"failed": str(error)})
            return
        mine = Belongings(link, worker, relay, limits)
        if lean:
            go_lean(replace(self, cast=slim(self.cast), resumed=alone(self.resumed, self.index)), mine)
        self.go_on(mine)

    def go_on(self, mine: Belongings) -> None:
        """Live, with all that was forked, here or in the process that this one was before."""
        try:
            self._run(mine.link, mine.worker, mine.relay, mine.limits)
        finally:
            mine.worker.close()
            if mine.relay:
                mine.relay.close()

    def _run(self, link: Link, worker: ProcessWorker, relay: Relay | None, limits: Mapping[str, str]) -> None:
        kind = self._kind()
        link.send({"report": {"limits": dict(limits)}})  # now: it may not come to another report
        try:
            kind.prepare()
            if (found := self._edge()) and found[0].memory:
                give_back()  # also where this is a fresh interpreter
                require_room((os.getpid(), worker.pid), found[0].memory)
            else:
                keep()
            anyio.run(self._live, kind, link, worker, relay, backend=kind.backend)
        except* BadInput as group:
            link.send({"failed": sentence_of(group)})
        except* (Exhausted, MemoryError) as group:  # as on a small machine: the others go on
            link.send({"broken": sentence_of(group) or "out of memory"})
        except* LocalError as group:  # our own mistake: the others go on, and the record says what it was
            link.send({"broken": sentence_of(group)})
            raise

    def _edge(self) -> tuple[Edge, int] | None:
        """What this member is held to, and the how-manieth edge device it is; None: it is none."""
        edge = self.cast.scenario.edge
        place = edge.place(self.cast.names[self.index]) if edge else None
        return None if edge is None or place is None else (edge, place)

    def _slow_link(self, link: Link) -> Relay | None:
        """The process that is its link: started first, so that it is not held to what the member is."""
        found = self._edge()
        if found is None or (pace := found[0].pace) is None:
            return None
        host = self.cast.scenario.transport.options.get("listen", "127.0.0.1")
        return Relay(pace, host, [link])

    def _confined(self, relay: Relay | None, lean: bool) -> dict[str, str]:
        if (found := self._edge()) is None:
            return {}
        edge, place = found
        where = "between it and its broker" if self.cast.scenario.transport.name == "mqtt" else "in front of its port"
        link = {"link": f"{edge.pace} (a relay {where})"} if relay else {}
        return confine(edge.cores, edge.memory, place, 1 if lean else 2) | link

    def _kind(self) -> TransportKind:
        table = standing(self.cast.scenario, self.cast.names[self.index])
        options = table["libp2p"] if table["name"] == "bridge" else table
        if options.get("port"):
            options["port"] += self.index  # one port each, counted up from the one that was asked for
        if options.get("discovery"):
            options.setdefault("namespace", self.run.hex())  # what this mesh is looked for under
        return TRANSPORTS.build_from(table)

    def _executor(self) -> Executor:
        import torch

        torch.set_num_threads(1)
        execute = self.cast.executor(self.index)
        factor = self.cast.scenario.links.slow.get(self.cast.names[self.index], 1.0)
        return execute if factor == 1 else _slowed(execute, factor)

    def _now(self) -> float:
        return time.monotonic() - self.origin

    async def _live(self, kind: TransportKind, link: Link, worker: ProcessWorker, relay: Relay | None) -> None:
        identity = self.entry.identity or identity_of(self.folder, self.cast, self.index)
        made = on_foot(kind.make(identity), self.cast.scenario, self.cast.names[self.index])
        again = self.resumed is not None
        passing = Passing.for_member(
            self.folder, self.cast, self.index, identity.peer, lambda what: note_now(what), again, self._now
        )
        transport: Transport = passing.over(shaped(made, relay) if relay else made)

        def note(what: Note, now: float, traffic: Traffic) -> None:
            counted = {"sent": traffic.sent, "received": traffic.received}
            link.send({"note": what.kind, "data": what.data, "t": now, **counted})

        def note_now(what: Note) -> None:
            note(what, self._now(), transport.traffic)

        async def announce(card: Card, protections: Mapping[str, str]) -> list[Card]:
            link.send({"card": card.to_bytes(), "protections": dict(protections)})
            cards = await self._roster(link)
            return cards

        def told_to_leave(leave: Callable[[], None]) -> None:
            watchers.start_soon(_obey, link, leave)

        async with anyio.create_task_group() as watchers:
            if (found := self._edge()) and found[0].memory:
                watchers.start_soon(watch_memory, (os.getpid(), worker.pid), found[0].memory)
            with Tap.for_member(self.folder, self.cast, self.index, note_now, again) as tap, passing:
                keeper = Keeper(self.folder, self.cast, self.index, identity.peer, self.resumed, tap.flush)

                async def keep(kept: Keep, counted: Counted) -> None:
                    await anyio.to_thread.run_sync(keeper.write, kept, counted)  # a disk can take its time

                around = Surroundings(
                    run=self.run,
                    identity=identity,
                    transport=transport,
                    worker=worker,
                    announce=announce,
                    note=note,
                    tap=tap.keep if tap.keeps else None,
                    clock=self._now,
                    keep=keep,
                    resumed=self.resumed,
                    entry=self.entry,
                    told_to_leave=told_to_leave,
                )
                report = await take_part(self.cast, self.index, around)
            if report.outcome:
                save_model(self.folder, self.cast, self.index, identity.peer, report.outcome)
            link.send({"report": {**report.figures(), **_used(relay)}})
            watchers.cancel_scope.cancel()

    async def _roster(self, link: Link) -> list[Card]:
        """Everybody's card, verified. Raises BadInput when it does not come in time."""
        patience = self.cast.scenario.timing.start
        with anyio.move_on_after(patience):
            while True:
                await anyio.wait_readable(link.socket)
                messages, alive = link.drain()
                if messages:
                    return [_verified(raw) for raw in messages[0]["roster"]]
                if not alive:
                    raise LocalError("the supervisor has gone")
        raise BadInput(f"Waited {patience:g} s for the roster, in vain; raise timing.start.")


def _slowed(execute: Executor, factor: float) -> Executor:
    """The same work, as on a machine that takes `factor` times as long for it."""

    def run(tasks: Sequence[object]) -> list[object]:
        begin = time.monotonic()
        results = execute(tasks)
        time.sleep((factor - 1) * (time.monotonic() - begin))
        return results

    return run


def _verified(raw: bytes) -> Card:
    card = Card.from_bytes(raw)
    card.verify()
    return card


def _used(relay: Relay | None) -> dict[str, float | None]:
    """What the member and its worker took of the machine; its slow link is no part of it."""
    me = psutil.Process()
    own = [me, *(child for child in me.children(recursive=True) if relay is None or child.pid != relay.pid)]
    peak = peak_memory(process.pid for process in own)
    return {
        "memory_mb": _memory_mb(own),
        "peak_memory_mb": round(peak / 1e6, 1) if peak else None,
        "cpu_seconds": round(sum(sum(process.cpu_times()[:2]) for process in own), 3),
    }


def _memory_mb(own: Sequence[psutil.Process]) -> float | None:
    """Their own share of memory (PSS), in MB; None where the system does not say."""
    pages = [Path(f"/proc/{process.pid}/smaps_rollup") for process in own]
    try:
        lines = [line for page in pages for line in page.read_text().splitlines() if line.startswith("Pss:")]
    except OSError:
        return None
    return round(sum(int(line.split()[1]) for line in lines) / 1024, 1)


async def _obey(link: Link, leave: Callable[[], None]) -> None:
    """Leave when the supervisor says so, and end when it has ended: for systems whose kernel does not see to it."""
    while True:
        await anyio.wait_readable(link.socket)
        messages, alive = link.drain()
        if not alive:
            os._exit(1)
        if any("leave" in message for message in messages):
            leave()
