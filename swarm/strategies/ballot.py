"""What was said in one ballot of an election, and what follows from it. Pure."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import median_low

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import PeerId
from veilmesh.swarm import messages

__all__ = ["Ballot", "Said", "committed", "drawn"]

Said = messages.Commit | messages.Reveal | messages.Vote


def committed(seed: int, ballot: int, place: int, nonce: bytes) -> bytes:
    """The hash by which the peer at `place` in the roster commits itself to `nonce`; `seed` is the run's, public."""
    return blake2b(f"{seed}/commit/{ballot}/{place}/".encode() + nonce, digest_size=messages.DIGEST).digest()


def drawn(ballot: int, nonces: Sequence[bytes], candidates: Collection[int]) -> int:
    """The candidate, by place, on whom the lot of these nonces (by place; empty: none) falls. Who the other candidates
    are does not matter to it, so two peers that differ about one of them mostly agree."""
    lot = blake2b(f"{ballot}/".encode() + b"".join(bytes([len(nonce)]) + nonce for nonce in nonces)).digest()
    return min(candidates, key=lambda place: blake2b(lot + str(place).encode()).digest())


@dataclass(frozen=True)
class Ballot:
    """One ballot, as far as this peer has heard it: of every peer the first that it said."""

    seed: int
    number: int
    order: tuple[PeerId, ...]
    commits: dict[PeerId, tuple[int, bytes]] = field(default_factory=dict)  # round and digest
    reveals: dict[PeerId, bytes] = field(default_factory=dict)
    votes: dict[PeerId, tuple[int, int, tuple[bytes, ...]]] = field(default_factory=dict)  # round, leader, nonces

    def check(self, sender: PeerId, message: Said) -> None:
        """Raises RemoteError for what does not fit, or not what the same peer said before."""
        match message:
            case messages.Commit():
                fits = self.commits.get(sender, (0, message.digest))[1] == message.digest
            case messages.Reveal():
                fits = self.reveals.get(sender, message.nonce) == message.nonce
                fits &= sender not in self.commits or self._is_committed(sender, message.nonce)
            case messages.Vote():
                vote = (message.round, message.leader, message.nonces)
                fits = self.votes.get(sender, vote) == vote
                fits &= message.leader < len(self.order) == len(message.nonces)
        if not fits:
            raise RemoteError(Refusal.MISMATCH, f"a {type(message).__name__} that does not fit in ballot {self.number}")

    def take(self, sender: PeerId, message: Said) -> None:
        """Keep what was checked."""
        match message:
            case messages.Commit():
                self.commits.setdefault(sender, (message.round, message.digest))
            case messages.Reveal():
                self.reveals[sender] = message.nonce
            case messages.Vote():
                self.votes[sender] = (message.round, message.leader, message.nonces)

    def revealed(self, but: Collection[PeerId]) -> dict[PeerId, bytes]:
        """The nonces that were revealed as they were committed to, but for some peers."""
        return {p: n for p, n in self.reveals.items() if p not in but and self._is_committed(p, n)}

    def vote(self, but: Collection[PeerId], everybody: Collection[PeerId]) -> tuple[int, tuple[bytes, ...]]:
        """Whom the lot makes leader, by place, and the nonces by place, if some peers are left out and `everybody` is
        there. This peer's own nonce has been revealed."""
        revealed = self.revealed(but)
        nonces = tuple(revealed.get(peer, b"") for peer in self.order)
        level = median_low(self.commits[peer][0] for peer in revealed)
        up_to_date = [p for p in revealed if self.commits[p][0] >= level]
        candidates = [p for p in up_to_date if p in everybody] or up_to_date
        return drawn(self.number, nonces, [self.order.index(p) for p in candidates]), nonces

    def winner(self, everybody: Collection[PeerId]) -> PeerId | None:
        """Who among `everybody` has the votes of a strict majority of it."""
        count = Counter(self.order[leader] for p, (_, leader, _) in self.votes.items() if p in everybody)
        return next((p for p, votes in count.items() if 2 * votes > len(everybody) and p in everybody), None)

    def agreed(self, leader: PeerId) -> tuple[bytes, ...]:
        """The nonces, by place, from which most of those that voted for `leader` drew."""
        votes = [nonces for _, place, nonces in self.votes.values() if self.order[place] == leader]
        return Counter(sorted(votes)).most_common(1)[0][0]

    def reached(self) -> int:
        """The (lower) median round of those that voted, or of those that committed themselves if that is higher."""
        committed_to = median_low([round_ for round_, _ in self.commits.values()] or [0])
        return max(committed_to, median_low(round_ for round_, _, _ in self.votes.values()))

    def unknown(self) -> list[PeerId]:
        """Who committed itself to a nonce that most of the votes do not know, or not alike."""
        return [p for p in self.commits if 2 * self._known(self.order.index(p)) <= len(self.votes)]

    def _known(self, place: int) -> int:
        nonces = Counter(nonces[place] for _, _, nonces in self.votes.values())
        return max((count for nonce, count in nonces.items() if nonce), default=0)

    def _is_committed(self, peer: PeerId, nonce: bytes) -> bool:
        digest = committed(self.seed, self.number, self.order.index(peer), nonce)
        return peer in self.commits and self.commits[peer][1] == digest
