"""A run in virtual time: a scenario's members on one `network`, its taps, checkpoints and record."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from veilmesh.core import LocalError
from veilmesh.peer.machine import Keep, Note, PeerId
from veilmesh.peer.outcome import Outcome
from veilmesh.sim.cast import Cast
from veilmesh.sim.network import Player, VirtualNetwork
from veilmesh.sim.passing import Passing, protections_of
from veilmesh.sim.record import Ended, Recorder, Watch
from veilmesh.sim.resume import Counted, Keeper, Resumption, resumed_machine
from veilmesh.sim.tap import Tap

__all__ = ["run_in_virtual_time"]


def run_in_virtual_time(cast: Cast, folder: Path, watch: Watch, resumed: Resumption | None = None) -> dict[str, Any]:
    """Run a scenario in virtual time, from its beginning or from where it is taken up again; its summary."""
    ids = tuple(PeerId(name) for name in cast.names)
    recorder = Recorder(folder, cast, ids, resumed=resumed)
    players = {
        ids[i]: Player(
            resumed_machine(cast.machine(i, ids), resumed.kept[i]) if resumed else cast.machine(i, ids),
            cast.executor(i),
            frozenset(ids[n] for n in cast.neighbours(i)),
            slow=cast.scenario.links.slow.get(cast.names[i], 1.0),
            decoys=frozenset(ids[n] for n in cast.decoys(i)),
        )
        for i in range(cast.size)
    }
    rounds = dict.fromkeys(ids, 0)

    def note(peer: PeerId, what: Note, now: float) -> None:
        index = ids.index(peer)
        if what.kind == "round":
            rounds[peer] = int(str(what.data["round"])) + 1
        traffic = (players[peer].sent, players[peer].received)
        recorder.note(index, what, now, traffic)
        watch(index, what, now, traffic)

    def full(peer: PeerId, what: Note) -> None:
        note(peer, what, network.now)

    def keep(peer: PeerId, kept: Keep, now: float) -> None:
        player = players[peer]
        counted = (player.sent, player.received, player.messages_sent, player.messages_received)
        keepers[ids.index(peer)].write(kept, Counted(now, *counted))
        note(peer, Note("kept", {"round": kept.round}), now)

    again = resumed is not None
    taps = [Tap.for_member(folder, cast, i, partial(full, peer), again) for i, peer in enumerate(ids)]
    passing = {
        peer: Passing.for_member(folder, cast, i, peer, partial(full, peer), again) for i, peer in enumerate(ids)
    }
    keepers = [Keeper(folder, cast, i, ids[i], resumed, tap.flush) for i, tap in enumerate(taps)]
    links, timing, envelope = cast.scenario.links, cast.scenario.timing, cast.scenario.envelope
    network = VirtualNetwork(
        players,
        latency=links.latency,
        work_time=links.step,
        faults=[(ids[cast.names.index(fault.whom)], fault) for fault in cast.scenario.faults],
        grace=timing.grace,
        silence=timing.silence,
        note=note,
        keep=keep,
        start=resumed.seconds if resumed else 0.0,
        padding=envelope.padding,
        cover=envelope.cover.cover if envelope.cover else None,
        tap=lambda record: taps[ids.index(record.at)].keep(record),
        passed=lambda record: passing[record.sender].keep(record),
        sighted=lambda sighting: passing[sighting.who].sight(sighting),
    )
    begin = monotonic()
    with ExitStack() as open_taps:
        for tap, way_out in zip(taps, passing.values(), strict=True):
            open_taps.enter_context(tap)
            open_taps.enter_context(way_out)
        network.run(cast.scenario.timing.run)
    members = [_ended(cast, i, ids, players[ids[i]], recorder, rounds[ids[i]]) for i in range(cast.size)]
    protections = {"envelope": "none: simulated", **protections_of(envelope)}
    return recorder.finish(members, monotonic() - begin, protections, "simulated")


def _ended(cast: Cast, index: int, ids: Sequence[PeerId], player: Player, recorder: Recorder, rounds: int) -> Ended:
    outcome = player.result
    if isinstance(outcome, Outcome):
        recorder.model(index, outcome)
    elif not player.killed:
        raise LocalError(f"{ids[index]} ended without an outcome: everything it waited for is used up")
    came = outcome if isinstance(outcome, Outcome) else None
    return Ended(
        index=index,
        name=cast.names[index],
        id=str(ids[index]),
        role=cast.role(index),
        ended=came.reason if came else "killed",
        rounds=came.rounds if came else rounds,
        accuracy=came.accuracy if came else None,
        bytes_sent=player.sent,
        bytes_received=player.received,
        messages_sent=player.messages_sent,
        messages_received=player.messages_received,
        refusals=player.refusals,
        cover_bytes=player.cover_bytes,
    )
