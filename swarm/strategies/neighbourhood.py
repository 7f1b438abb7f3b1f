"""Whom a peer waits for, whom it takes for lost, and whom it asks for their copies, round by round."""

from veilmesh.peer.machine import Effect, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.copies import AHEAD, Copies
from veilmesh.swarm.strategies.links import Links

__all__ = ["Neighbourhood"]


class Neighbourhood:
    """The links of one peer of a gossip, and what is held of those at their other ends."""

    def __init__(self, held: Copies, links: Links) -> None:
        self._held = held
        self._links = links
        self._asked: dict[PeerId, tuple[int, int]] = {}  # in which round to ask again, and how many after that one
        self._silent: set[PeerId] = set()  # elastic: who let a whole patience pass, and has not made good for it

    # --- rounds ------------------------------------------------------------------------------------------------

    def waited_for(self, round_: int) -> list[PeerId]:
        """Who is there, in step with us, and has not said all up to `round_`.

        In an elastic mesh also those whose copy is still on its way, for one patience at most: a mesh that runs on
        would drown a neighbour that is far away, or behind a narrow link, in updates of rounds it can never reach.
        """
        held, links = self._held, self._links
        near = [p for p in links.neighbours if p in links.present and p not in self._silent]
        in_step = [p for p in near if held.is_synced(p) and not held.caught_up(p, round_)]
        return in_step + [p for p in near if links.elastic and held.is_open(p) and not held.is_synced(p)]

    def give_up(self, late: list[PeerId], round_: int) -> list[Effect]:
        """Ask for what did not come in time; in an elastic mesh nobody is waited for in vain twice running."""
        if self._links.elastic:
            self._silent.update(late)
        # To ask for round 0 would say that we have forgotten everything.
        wanted = {p: self._held.first_missing(p) if self._held.is_synced(p) else 1 for p in late}
        return [e for p, first in wanted.items() for e in self.ask(p, first, round_)]

    def made_good(self, peer: PeerId, round_: int) -> None:
        """Wait again for one that has said all before `round_`."""
        if self._held.caught_up(peer, round_ - 1):
            self._silent.discard(peer)

    def turn(self, round_: int) -> list[Effect]:
        """`round_` begins: take its row, close the links that it does not have, and ask whom we know nothing of."""
        if self._links.elastic:
            self._links.turn()
            near = self._links.neighbours
            self._held.keep_only(near, round_)
            self.void_far_behind(round_)
            self._silent.intersection_update(near)
            self._asked = {p: due for p, due in self._asked.items() if p in near}
        unknown = [p for p in self._links.hearers if not self._held.is_synced(p) or p in self._silent]
        return [e for p in unknown for e in self.ask_if_due(p, max(1, self._held.first_missing(p)), round_)]

    def enter(self, round_: int) -> None:
        """Begin anew in `round_`, with what is held that is near enough to it."""
        self.void_far_behind(round_)
        self._silent.clear()
        self._asked.clear()

    def void_far_behind(self, round_: int) -> None:
        """Whoever is too far behind has to tell its copy as a whole, when it is back."""
        for peer in self._links.hearers:
            if self._held.is_synced(peer) and self._held.position(peer) < round_ - 1 - AHEAD:
                self._held.open(peer)

    # --- who comes ---------------------------------------------------------------------------------------------

    def meet(self, appeared: frozenset[PeerId], round_: int) -> list[Effect]:
        """Ask those that are there now. What was held of those that came is void; in a fixed mesh, it may be old."""
        if not self._links.elastic:
            back = [p for p in self._links.hearers if p in appeared]
            return [e for p in back for e in self.ask(p, self._held.first_missing(p), round_)]
        self._silent -= appeared
        for peer in appeared:
            self._held.close(peer)
        new = [p for p in self._links.hearers if not self._held.is_open(p)]
        for peer in new:
            self._held.open(peer)
        return [e for p in new for e in self.ask(p, 0, round_)]

    def began_anew(self, peer: PeerId, asked: int, round_: int) -> list[Effect]:
        """Whether `peer`, who asks for the copy of round `asked`, has forgotten us; then we know nothing of it."""
        if asked or not self._links.elastic or not self._held.is_open(peer):
            return []
        known = self._held.position(peer) >= 0
        if known or not self._held.is_synced(peer):  # else it is at the common beginning, as we are
            self._held.open(peer)
        return self.ask(peer, 1, round_) if known and peer in self._links.hearers else []

    def synced(self, peer: PeerId) -> None:
        """Its copy has come."""
        self._silent.discard(peer)
        self._asked.pop(peer, None)

    # --- questions ---------------------------------------------------------------------------------------------

    def ask(self, peer: PeerId, wanted: int, round_: int) -> list[Effect]:
        """Ask for a copy that has the update of round `wanted`."""
        self._asked[peer] = (round_ + 1, 2)
        return [Send(peer, messages.encode(messages.Ask(wanted)))]

    def ask_if_due(self, peer: PeerId, wanted: int, round_: int) -> list[Effect]:
        """Ask again, less and less often: rounds may be shorter than the way there and back."""
        due, pause = self._asked.get(peer, (round_, 1))
        if round_ < due:
            return []
        self._asked[peer] = (round_ + pause, min(2 * pause, 2 * AHEAD))
        return [Send(peer, messages.encode(messages.Ask(wanted)))]
