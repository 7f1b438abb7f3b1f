"""What members of an all-reduce see of each other: the part of everybody's vector that is theirs to average, in clear.

In a butterfly (`swarm/strategies/group_all_reduce.py`) the reducer of part k is told coordinates of every other model
in its group, one in m of them, before anything is averaged. With a lossless codec a part is of the model after
training, x + u, so that the update is what it differs by from where training began: the common beginning, or the
average that the victim's last group came to, which the coalition has if one of it was in that group. With a lossy
codec a part is of the change itself (and of what was left out before). Whoever is the reducer of the last coordinates
reads labels, or inputs of the last layer, exactly; from other parts an inversion matches what was seen, and what was
not seen is not zero: `Chunk.said`. Several controlled peers of a group pool their parts. Who is in a group follows from
who says parts and averages to whom.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from veilmesh.attacks.seen.update import Observed
from veilmesh.attacks.view import Public, View
from veilmesh.core import RemoteError
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Mask, Vector
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.butterfly import Butterfly

__all__ = ["Chunk", "in_parts", "seen_chunks"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of one update: `update` (d,), told where `said` (d,); `start` (d,): what training began from.

    `exact`: nothing but the victim's own guards and codec is between this and the truth; `known`: whether the group
    that `start` came from was seen.
    """

    victim: PeerId
    round: int
    start: Vector
    update: Vector
    said: Mask
    exact: bool
    known: bool


@dataclass(slots=True)
class _Round:
    """What one controlled peer was told, and said, in one round."""

    parts: dict[tuple[PeerId, int], bytes] = field(default_factory=dict)
    averages: dict[int, bytes] = field(default_factory=dict)
    group: set[PeerId] = field(default_factory=set)


def in_parts(view: View, across: bool = False) -> Iterator[Observed]:
    """Of an all-reduce: the coordinates that members of a group have to average, and no others."""
    samples = view.public.batch * view.public.local_steps
    for one in seen_chunks(view):
        known = float(one.known)
        yield Observed(one.victim, one.round, one.start, one.update, one.said, samples, one.exact, known)


def seen_chunks(view: View) -> Iterator[Chunk]:
    """Every part that was told to the coalition, by round and victim; parts of one vector are put together.

    Rounds in which a member of the group was heard of by nobody in the coalition are left out: what its parts are
    would be a guess.
    """
    public, rounds = view.public, _rounds(view)
    ends: dict[PeerId, Vector] = dict.fromkeys(public.peers, public.initial)
    for t in sorted({t for t, _ in rounds}):
        here = {at: one for (round_, at), one in rounds.items() if round_ == t}
        found: dict[PeerId, list[tuple[slice, bytes]]] = {}
        after: dict[PeerId, Vector] = {}
        for at, one in sorted(here.items()):
            butterfly = _butterfly(public, at, one)
            for (sender, part), blob in sorted(one.parts.items()):
                if part in butterfly.parts and sender not in view.vantage.controls:
                    found.setdefault(sender, []).append((butterfly.span(part), blob))
            if (mixed := _mixed(public, butterfly, one, ends.get(at))) is not None:
                after |= dict.fromkeys(butterfly.group, mixed)
        for victim in sorted(found):
            known = victim in ends
            start = ends[victim] if known else next(iter(ends.values()), public.initial)
            if (chunk := _chunk(public, victim, t, start, found[victim], known)) is not None:
                yield chunk
        ends = after


def _rounds(view: View) -> dict[tuple[int, PeerId], _Round]:
    found: dict[tuple[int, PeerId], _Round] = {}
    for record in view.records:
        if record.at not in view.vantage.controls or (message := _message(record.body)) is None:
            continue
        one = found.setdefault((message.round, record.at), _Round())
        one.group |= {record.sender, record.to}
        if isinstance(message, messages.Averaged):
            one.averages.setdefault(message.part, message.blob)
        elif record.sender != record.at:
            one.parts.setdefault((record.sender, message.part), message.blob)
    return found


def _message(body: bytes | None) -> messages.Part | messages.Averaged | None:
    try:
        message = None if body is None else messages.decode(body)
    except RemoteError:
        return None
    return message if isinstance(message, messages.Part | messages.Averaged) else None


def _butterfly(public: Public, at: PeerId, one: _Round) -> Butterfly:
    group = tuple(peer for peer in public.peers if peer in one.group or peer == at)
    return Butterfly(group, public.initial.size, 0, 1)


def _mixed(public: Public, butterfly: Butterfly, one: _Round, before: Vector | None) -> Vector | None:
    """What the group of a controlled peer goes on from (d,); None where a part of it was not told."""
    lossless = True
    values = np.zeros_like(public.initial)
    for part in butterfly.parts:
        if part not in one.averages:
            return None
        try:
            decoded = table.decode(one.averages[part], butterfly.length(part))
        except RemoteError:
            return None
        lossless &= table.WIRE_IDS[one.averages[part][0]].lossless
        values[butterfly.span(part)] = decoded.values
    if lossless:
        return values
    # Beside changes, levels bring groups nearer to each other; in one group of all, there is nothing to bring nearer.
    return before + values if before is not None and len(butterfly.group) == len(public.peers) else None


def _chunk(
    public: Public, victim: PeerId, round_: int, start: Vector, pieces: list[tuple[slice, bytes]], known: bool
) -> Chunk | None:
    update, said = np.zeros_like(public.initial), np.zeros(public.initial.size, bool)
    lossless = True
    for span, blob in pieces:
        try:
            decoded = table.decode(blob, span.stop - span.start)
        except RemoteError:
            continue
        whole = table.WIRE_IDS[blob[0]].lossless
        update[span] = decoded.values - start[span] if whole else decoded.values
        said[span] = True if decoded.said is None else decoded.said
        lossless &= whole
    if not said.any():
        return None
    return Chunk(victim, round_, start, update, said, known and (lossless or round_ == 0), known)
