"""In which round a peer goes on that the others have left behind, or that has left all of them behind.

Forward: not as far as one neighbour says, where there is another. A round counts that a second neighbour has reached
too, or whose copy somebody else holds as well (`vouching.py`), who by then has to be near that round himself. (With one
neighbour there is nothing to hold its word against.)

Back: a peer that was alone for a while is to the others what a liar would be, and none of them comes after it. If no
neighbour is near, and most of them, two at least, gave copies of long ago, it goes back to the second highest of those.
(Elastic only: in a fixed mesh a public copy never becomes an older one.)
"""

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, PeerId
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.copies import AHEAD, Copies
from veilmesh.swarm.strategies.links import Links
from veilmesh.swarm.strategies.vouching import Opinions

__all__ = ["CatchingUp"]


class CatchingUp:
    """One peer's doubts about those that seem to be far ahead."""

    def __init__(self, held: Copies, links: Links) -> None:
        self._held = held
        self._links = links
        self._opinions = Opinions()
        self._stale: dict[PeerId, tuple[int, Vector]] = {}  # copies (d,) of neighbours that are far behind us

    def goal(self, round_: int) -> int | None:
        """The last round that the others have done, as we believe, if it is too far from ours, `round_`."""
        near = self._links.hearers
        positions = sorted((self._held.position(p) for p in near), reverse=True)
        vouched = [self._opinions.asked(p) for p in near if self._is_vouched_for(p)]
        goal = max([*positions[:2][-1:], *vouched], default=-1)
        return goal if goal > round_ + AHEAD else self._way_back(round_, max(positions, default=round_))

    def _way_back(self, round_: int, highest: int) -> int | None:
        behind = sorted(r for p, (r, _) in self._stale.items() if p in self._links.hearers and r < round_ - 2 * AHEAD)
        alone = self._links.elastic and highest < round_ - 1 - AHEAD and 2 * len(behind) > len(self._links.hearers)
        return behind[-2] if alone and len(behind) > 1 else None

    def is_far_behind(self, peer: PeerId, round_: int, copy: Vector) -> None:
        """`peer` gave a copy (d,) of a round long before ours."""
        self._stale[peer] = (round_, copy)

    def turn_to(self, goal: int) -> None:
        """We go on after `goal`: what is old for a later round is not old for that one."""
        for peer, (place, copy) in self._stale.items():
            if place >= goal - AHEAD and self._held.is_open(peer) and not self._held.is_synced(peer):
                self._held.take(peer, place, copy)
        self._stale = {}

    def second_opinion(self, peer: PeerId, round_: int) -> list[Effect]:
        """Ask everybody about the copy of one that is far ahead of us in `round_`, if that decides anything."""
        place = self._held.position(peer)
        if not self._links.elastic or place <= round_ + AHEAD or self.goal(round_) is not None:
            return []
        return self._opinions.ask(peer, place, self._held.digests[peer][place], self._links.present)

    def hear(self, voter: PeerId, vouch: messages.Vouch) -> None:
        self._opinions.hear(voter, vouch)

    def turn(self) -> None:
        """A round begins: forget what was asked about others than its neighbours, or given by them."""
        near = self._links.neighbours
        self._opinions.keep_only(near)
        self._stale = {p: found for p, found in self._stale.items() if p in near and not self._held.is_synced(p)}

    def _is_vouched_for(self, peer: PeerId) -> bool:
        vouched = self._opinions.verdict(peer, self._links.present)
        return bool(vouched) and self._opinions.asked(peer) <= self._held.position(peer)
