"""Second opinions: whether others hold the same of a peer as it says of itself.

A public copy is known at both ends of every link, to the bit. One who has nothing to hold a copy against, because it
comes late or was away, asks the others for the digest of theirs. A copy counts if somebody holds the same, and no more
of those who answer hold something else. So a single liar can neither slip a false copy in, nor keep a true one out
for which somebody else vouches besides; two who agree can slip one in where nobody else holds that peer's copy.
"""

from collections.abc import Iterable

from veilmesh.peer.machine import Effect, PeerId, Send
from veilmesh.swarm import messages

__all__ = ["Opinions"]


class Opinions:
    """What was asked about whom, and what came back."""

    def __init__(self) -> None:
        self._claims: dict[PeerId, tuple[int, bytes]] = {}  # of whom: the round, and the digest of what it gave
        self._votes: dict[PeerId, dict[PeerId, bool | None]] = {}  # by voter: the same, another, or nothing held

    def ask(self, about: PeerId, round_: int, found: bytes, voters: Iterable[PeerId]) -> list[Effect]:
        """Ask `voters` whether the digest of `about`'s copy after `round_` is `found`."""
        self._claims[about], self._votes[about] = (round_, found), {}
        body = messages.encode(messages.Attest(round_, about))
        return [Send(p, body) for p in sorted(voters) if p != about]

    def asked(self, about: PeerId) -> int:
        """The round that was asked about last; -1: none."""
        return self._claims[about][0] if about in self._claims else -1

    def hear(self, voter: PeerId, vouch: messages.Vouch) -> None:
        """Take an answer in; one that nobody asked for, or no longer, changes nothing."""
        about = PeerId(vouch.peer)
        if voter != about and self.asked(about) == vouch.round:
            self._votes[about][voter] = vouch.digest == self._claims[about][1] if vouch.digest else None

    def verdict(self, about: PeerId, voters: Iterable[PeerId], over: bool = False) -> bool | None:
        """Whether the copy counts, by what `voters` say; None while that is open, which it is not once it is `over`."""
        others = set(voters) - {about}
        votes = [vote for p, vote in self._votes.get(about, {}).items() if p in others]
        same, another = votes.count(True), votes.count(False)
        if 2 * same > len(others):
            return True
        return same > 0 and same >= another if over or len(votes) == len(others) else None

    def keep_only(self, peers: Iterable[PeerId]) -> None:
        """Forget what was asked about all others."""
        for about in self._claims.keys() - set(peers):
            del self._claims[about], self._votes[about]
