"""One member of a mesh on a real transport: from opening its socket to its last word."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from veilmesh.core import LocalError
from veilmesh.crypto.envelope import MAX_BODY, PROTECTIONS, Card, Mailroom
from veilmesh.crypto.frame import frame_size
from veilmesh.crypto.identity import Identity
from veilmesh.peer.door import Door
from veilmesh.peer.lobby import Lobby
from veilmesh.peer.machine import Keep, Note, PeerId
from veilmesh.peer.node import Kind, Limits, Node
from veilmesh.peer.outcome import Outcome
from veilmesh.peer.transcript import Record
from veilmesh.peer.transports.base import Traffic, Transport
from veilmesh.peer.worker import Worker
from veilmesh.sim.cast import Cast
from veilmesh.sim.entry import Entry
from veilmesh.sim.passing import protections_of
from veilmesh.sim.resume import Counted, Resumption, resumed_machine

__all__ = ["LEFT", "Announce", "MemberReport", "Surroundings", "sentence_of", "take_part"]

LEFT = "left"
"""How a member ended that was told to leave."""

Announce = Callable[[Card, Mapping[str, str]], Awaitable[list[Card]]]
"""Say my card and what protects me; get everybody's cards, in roster order."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a member finds around it: everything that differs between one process for all and one for each."""

    run: bytes  # 16 bytes that name this run
    identity: Identity
    transport: Transport
    worker: Worker
    announce: Announce
    note: Callable[[Note, float, Traffic], None]
    tap: Callable[[Record], None] | None
    clock: Callable[[], float]  # seconds since the run began
    keep: Callable[[Keep, Counted], Awaitable[None]]  # puts a checkpoint on disk
    resumed: Resumption | None = None  # where the run is taken up again, if it is
    entry: Entry = Entry()  # where others may join
    told_to_leave: Callable[[Callable[[], None]], None] = lambda leave: None  # handed what makes this member leave


@dataclass(frozen=True, slots=True)
class MemberReport:
    """What a member leaves behind and counted; no outcome where it was told to leave."""

    outcome: Outcome | None
    traffic: Traffic
    refusals: dict[str, int]
    messages_sent: int
    messages_received: int
    dropped: int
    cover_bytes: int = 0
    missed_slots: int = 0

    def figures(self) -> dict[str, Any]:
        """The report as the run's record has it: fields of its `Ended`, plain data."""
        outcome, traffic = self.outcome, self.traffic
        came_to = {"ended": outcome.reason, "rounds": outcome.rounds, "accuracy": outcome.accuracy} if outcome else {}
        return {
            "ended": LEFT,
            **came_to,
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "messages_sent": self.messages_sent,
            "messages_received": self.messages_received,
            "dropped": self.dropped,
            "cover_bytes": self.cover_bytes,
            "missed_slots": self.missed_slots,
            "refusals": self.refusals | ({"transport": traffic.refused} if traffic.refused else {}),
        }


async def take_part(cast: Cast, index: int, around: Surroundings) -> MemberReport:
    """Take part in a run as member `index`. Raises BadInput if the mesh does not come up in time."""
    timing, transport = cast.scenario.timing, around.transport
    sealing = X25519PrivateKey.generate()  # fresh for every run: what was recorded cannot be opened afterwards
    padding, cover = cast.scenario.envelope.padding, cast.scenario.envelope.cover
    mailroom = Mailroom(around.identity, sealing, around.run, kinds=frozenset(Kind), padding=padding)
    async with transport.open() as inbox:
        # The serial tells a restarted peer's new card from a replay of its old one.
        public, serial = sealing.public_key().public_bytes_raw(), time.time_ns()
        card = Card.issue(around.identity, public, around.run, transport.address, serial)
        in_force = {**PROTECTIONS, **protections_of(cast.scenario.envelope), **transport.protections}
        cards = await around.announce(card, in_force)
        lobby = _lobby(cast, mailroom, card, cards, around)
        near = [cards[n] for n in (set(range(len(cards))) - {index} if lobby else cast.neighbours(index))]
        decoys = [cards[n] for n in cast.decoys(index)] if cover else []
        for other in (*near, *decoys):
            mailroom.admit(other)
        transport.introduce({c.peer: c.address for c in (*near, *decoys)})

        async def keep(kept: Keep, now: float) -> None:
            traffic, tally = transport.traffic, node.tally
            counted = Counted(now, traffic.sent, traffic.received, tally.messages_sent, tally.messages_received)
            await around.keep(kept, counted)
            around.note(Note("kept", {"round": kept.round}), now, traffic)

        machine = cast.machine(index, [c.peer for c in cards], late=bool(around.entry.contacts))
        node = Node(
            machine=resumed_machine(machine, around.resumed.kept[index]) if around.resumed else machine,
            mailroom=mailroom,
            transport=transport,
            worker=around.worker,
            neighbours=frozenset(c.peer for c in near),
            note=lambda note, now: around.note(note, now, transport.traffic),
            tap=around.tap,
            keep=keep if cast.scenario.checkpoints.every else None,
            limits=Limits(start=timing.start, patience=timing.silence, grace=timing.grace),
            clock=around.clock,
            lobby=lobby,
            contacts=around.entry.contacts,
            cover=cover.cover if cover else None,
            decoys=frozenset(c.peer for c in decoys),
        )
        around.told_to_leave(node.leave)
        outcome = await node.run(inbox)
    if outcome is not None and not isinstance(outcome, Outcome):
        raise LocalError("a machine leaves an Outcome behind")
    return MemberReport(
        outcome,
        transport.traffic,
        dict(node.tally.refusals),
        node.tally.messages_sent,
        node.tally.messages_received,
        node.tally.congested + node.tally.flooded + transport.traffic.dropped_frames,
        cover_bytes=node.tally.idle_slots * _slot_size(cast),
        missed_slots=node.tally.missed_slots,
    )


def _slot_size(cast: Cast) -> int:
    """Bytes of a frame of cover traffic; the first ones of a link say hello besides."""
    envelope = cast.scenario.envelope
    octets = envelope.cover.bytes if envelope.cover else 0
    return frame_size(octets, with_hello=False, padding=envelope.padding, cap=MAX_BODY)


def _lobby(cast: Cast, mailroom: Mailroom, card: Card, cards: Sequence[Card], around: Surroundings) -> Lobby | None:
    """Where others come in, if this mesh lets them. Those who began it are on every list."""
    door, entry = cast.scenario.door, around.entry
    if not door.open:
        return None
    founders = {c.peer for c in cards} | entry.contacts.keys()
    allowed = frozenset({PeerId(peer) for peer in door.allow} | founders) if door.allow else None
    return Lobby(mailroom, Door(around.run, entry.secret, allowed), card, cards)


def sentence_of(group: BaseExceptionGroup[Exception]) -> str:
    """The first sentence in a group: task groups wrap what their tasks raise."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
