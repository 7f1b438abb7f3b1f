"""How a newcomer finds its place in a gossip that is under way.

Theory of operation: it asks its neighbours for their public copies (`Ask`, `Copy`), and everybody who is there what
they hold of those (`Attest`, `Vouch`; see `vouching.py`). Rounds go on meanwhile, so it asks about the round of the
copy it was given, of which the others still have the digest, and keeps what the givers say after it. Its model is the
mean of the copies that others vouch for (where the aggregator is a robust one: their median in every coordinate), its
place the round after the last of them. A copy that nobody vouches for in time is dropped and noted. With a single peer
there is nobody to vouch: its copy is taken as it is, and that is noted too.

What a liar can still do: to say the same lie to everybody is to have that model, and a newcomer takes its share of it
as all neighbours do. Two liars who agree can vouch for each other where no honest peer holds their copies; on a
complete graph all do.
"""

import numpy as np

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, Note, PeerId, Send, SetTimer
from veilmesh.swarm import messages
from veilmesh.swarm.aggregators.base import Needs
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.copies import AHEAD, Copies
from veilmesh.swarm.strategies.links import Links
from veilmesh.swarm.strategies.vouching import Opinions

__all__ = ["ATTEMPTS", "Joining"]

ATTEMPTS = 6
"""How often a newcomer asks before it gives up; it waits half a round's patience for each."""

_ASK = messages.encode(messages.Ask(0))


class Joining:
    """One newcomer's questions, until it has a model and a round."""

    def __init__(self, kit: Kit, held: Copies, links: Links) -> None:
        self._kit = kit
        self._held = held
        self._links = links
        self._empty: set[PeerId] = set()  # neighbours that have nothing to give themselves
        self._opinions = Opinions()
        self.attempts = 0

    def ask(self, now: float) -> list[Effect]:
        """Ask whoever has not given yet, and wait a while."""
        self.attempts += 1
        self._empty = set()
        missing = [p for p in self._links.hearers if not self._held.is_synced(p)]
        for peer in missing:
            self._held.open(peer)
        return [*(Send(p, _ASK) for p in missing), SetTimer("join", now + self._kit.patience / 2)]

    def meet(self, appeared: frozenset[PeerId]) -> list[Effect]:
        """Others are there now: of those that came, nothing is known."""
        hearers = self._links.hearers
        self._held.keep_only(hearers, 0)
        self._opinions.keep_only(hearers)
        new = [p for p in hearers if p in appeared or not self._held.is_open(p)]
        for peer in new:
            self._held.open(peer)
        return [Send(p, _ASK) for p in new]

    def take_update(self, sender: PeerId, round_: int, update: Vector) -> None:
        """What comes after the copy goes on top of it."""
        if self._held.position(sender) < round_ <= self._held.position(sender) + 2 * AHEAD or not self._given(sender):
            self._held.put(sender, round_, update)

    def take_copy(self, sender: PeerId, round_: int, copy: Vector) -> list[Effect]:
        """Hold a copy, and ask the others about it."""
        overtaking = self._held.take(sender, round_, copy)
        if overtaking > round_:
            return [Send(sender, messages.encode(messages.Ask(overtaking)))]
        return self._opinions.ask(sender, round_, self._held.digests[sender][round_], self._links.present)

    def take_vouch(self, sender: PeerId, vouch: messages.Vouch) -> None:
        if vouch.peer == sender and not vouch.digest:
            self._empty.add(sender)
        self._opinions.hear(sender, vouch)

    def accepted(self, over: bool) -> list[PeerId]:
        """Whose copies count; nobody's before all is clear, or the waiting is `over`."""
        verdicts = {p: self._verdict(p, over) for p in self._links.hearers}
        if not over and any(v is None and p not in self._empty for p, v in verdicts.items()):
            return []
        return [p for p, v in verdicts.items() if v]

    def refuse(self, accepted: list[PeerId]) -> list[Effect]:
        """Drop what all others gave."""
        refused = [p for p in self._links.hearers if p not in accepted and self._given(p)]
        for peer in refused:
            self._held.disown(peer)
        return [Note("copy-refused", {"from": str(p)}) for p in refused]

    def model(self, accepted: list[PeerId]) -> tuple[int, Vector, list[Effect]]:
        """The round to enter at, the model (d,) to enter with, and what to note of it."""
        for peer in accepted:
            self._held.apply(peer, self._kit.rounds - 1)
        round_ = 1 + max(self._held.position(p) for p in accepted)
        copies = [self._held.copies[p] for p in accepted]
        robust = self._kit.aggregator.needs is Needs.VECTORS
        x = np.median(copies, axis=0) if robust else np.mean(copies, axis=0)
        verified = len(self._links.present) > 1
        note = Note("joined", {"round": round_, "from": [str(p) for p in accepted], "verified": verified})
        return round_, x.astype(np.float32), [note]

    def _given(self, peer: PeerId) -> bool:
        return self._held.is_synced(peer)

    def _verdict(self, peer: PeerId, over: bool) -> bool | None:
        if not self._given(peer):
            return None
        return len(self._links.present) == 1 or self._opinions.verdict(peer, self._links.present, over)
