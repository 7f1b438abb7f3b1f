"""Who spoke to whom in a round, where that follows from a public seed; and what a coalition has on record of it.

Push-sum and epidemic learning draw the receivers of every round anew (`swarm/schedule.py`), alike for everybody. So an
adversary knows who was told by whom, also of messages that it never saw. Whoever was late or gone is not in that: what
is read on the strength of it supposes that nobody was.
"""

from collections.abc import Mapping
from typing import TypeVar

from veilmesh.attacks.seen.heard import message_in
from veilmesh.attacks.view import Public, View
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.schedule import exponential_hops, exponential_out, random_out

__all__ = ["Schedule", "said_by_round"]

M = TypeVar("M", bound=messages.Message)


class Schedule:
    """The out-peers of everybody in every round: `count` drawn ones, or with 0 those of the exponential graph."""

    def __init__(self, public: Public, count: int) -> None:
        self._public = public
        self._count = count
        self._place = {peer: place for place, peer in enumerate(public.peers)}
        self._rows = {
            self._place[peer]: {self._place[other]: weight for other, weight in row.items()}
            for peer, row in public.weights.items()
        }
        self._hops = () if count else exponential_hops(self._rows)

    @property
    def known(self) -> bool:
        """Whether it can be drawn from what is public."""
        return self._public.draws is not None or not self._count

    def receivers(self, round_: int, peer: PeerId) -> tuple[PeerId, ...]:
        """Whom `peer` speaks to in a round, in roster order; nobody where that is not known."""
        place, peers = self._place[peer], self._public.peers
        if not self._count:
            out = exponential_out(self._hops, round_, place, len(peers))
        elif self._public.draws is not None:
            out = random_out(self._rows, self._public.draws, round_, place, self._count)
        else:
            out = ()
        return tuple(peers[other] for other in out)

    def senders(self, round_: int, peer: PeerId) -> tuple[PeerId, ...]:
        """Who speaks to `peer` in a round, in roster order."""
        return tuple(p for p in self._public.peers if p != peer and peer in self.receivers(round_, p))


def said_by_round(view: View, kind: type[M]) -> Mapping[int, Mapping[PeerId, M]]:
    """The messages of one kind on record, by round and sender: the first of each, for all receivers are told the same.
    Senders that are no peers are left out."""
    found: dict[int, dict[PeerId, M]] = {}
    for record in view.records:
        message = message_in(record.body)
        if isinstance(message, kind) and record.sender in view.public.weights:
            found.setdefault(message.round, {}).setdefault(record.sender, message)
    return dict(sorted(found.items()))
