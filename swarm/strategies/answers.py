"""What a peer of a gossip owes to those who ask: its whole public copy, and what it holds of others.

A question is small and a copy is not, so nobody gets more than one copy of a round. In an elastic mesh questions are
remembered, one of a kind for each asker: who asks for a copy before there is one, or is not known to be there yet, gets
it as soon as it can be given. In a fixed mesh a copy is only asked for when an update is missing, and is not answered
before that update was said.
"""

import numpy as np

from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import Effect, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.copies import AHEAD, Copies
from veilmesh.swarm.strategies.links import Links

__all__ = ["Answers"]

_REMEMBERED = 64
"""Of how many that are not known to be there a question is remembered."""


class Answers:
    """One peer's open answers."""

    def __init__(self, me: PeerId, held: Copies, links: Links) -> None:
        self._me = me
        self._held = held
        self._links = links
        self._given: dict[PeerId, int] = {}  # the round of the last copy that each was given
        self._owed: dict[PeerId, int] = {}  # who waits for a copy, and of which round at least
        self._attests: dict[PeerId, dict[PeerId, int]] = {}  # who waits to hear what we hold, of whom, of which round

    # --- our public copy ---------------------------------------------------------------------------------------

    def ask(self, sender: PeerId, round_: int) -> list[Effect]:
        """`sender` never got our update of `round_`."""
        if not self._links.elastic:
            return self.give([sender]) if self._can_be_given(sender, round_) else []
        if sender in self._links.present or len(self._owed) < _REMEMBERED:
            self._owed[sender] = round_
        return self.give(self.due())

    def due(self) -> list[PeerId]:
        """Who waits for a copy that can be given now."""
        hearers = self._links.hearers
        return sorted(p for p, round_ in self._owed.items() if p in hearers and self._can_be_given(p, round_))

    def give(self, to: "list[PeerId] | tuple[PeerId, ...]") -> list[Effect]:
        """Our public copy, to each of `to`."""
        if not to:
            return []
        blob = table.encode(Dense(), self._held.copies[self._me], np.random.default_rng(0))
        body = messages.encode(messages.Copy(self._held.said, blob))
        for peer in to:
            self._given[peer] = self._held.said
            self._owed.pop(peer, None)
        return [Send(p, body) for p in to]

    def _can_be_given(self, peer: PeerId, round_: int) -> bool:
        return self._held.said >= round_ and self._given.get(peer) != self._held.said

    # --- what we hold of others --------------------------------------------------------------------------------

    def attest(self, sender: PeerId, message: messages.Attest) -> list[Effect]:
        """Say what we hold; nothing, if it will never be that; later, if it is on its way.

        Of rounds far beyond our own we know nothing, whatever we were told of them: else who says the same to
        everybody would have everybody vouch for any round.
        """
        about, round_ = PeerId(message.peer), message.round
        if about not in self._held.digests.keys() | self._held.next.keys() or round_ > self._held.said + AHEAD:
            return [self.nothing(sender, message)]
        if self._held.is_synced(about):
            self._held.apply(about, min(round_, self._held.said + 1))  # what is here need not wait for the mixing
        self._attests.setdefault(sender, {})[about] = round_
        return self.vouch()

    def nothing(self, sender: PeerId, message: messages.Attest) -> Send:
        """That we hold nothing of it: so is it with a newcomer, whatever it has been given."""
        return _vouch(sender, PeerId(message.peer), message.round, b"")

    def vouch(self) -> list[Effect]:
        """Answer what can be answered by now."""
        effects: list[Effect] = []
        for sender, open_ in sorted(self._attests.items()):
            for about, round_ in sorted(open_.items()):
                found = self._held.digests.get(about, {}).get(round_)
                if found is None and self._comes(about, round_):
                    continue
                effects.append(_vouch(sender, about, round_, found or b""))
                del open_[about]
        self._attests = {p: open_ for p, open_ in self._attests.items() if open_}
        return effects

    def _comes(self, about: PeerId, round_: int) -> bool:
        return self._held.said < round_ if about == self._me else self._held.next.get(about, round_ + 1) <= round_

    # --- who is there ------------------------------------------------------------------------------------------

    def refresh(self, appeared: frozenset[PeerId]) -> None:
        """Links to those that appeared are new; whoever is gone is owed nothing."""
        self._attests = {p: open_ for p, open_ in self._attests.items() if p in self._links.present}
        self._given = {p: r for p, r in self._given.items() if p in self._links.present - appeared}
        self._owed = {p: r for p, r in self._owed.items() if p in self._links.present}


def _vouch(to: PeerId, about: PeerId, round_: int, found: bytes) -> Send:
    return Send(to, messages.encode(messages.Vouch(round_, about, found)))
