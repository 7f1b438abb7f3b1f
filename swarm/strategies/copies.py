"""What a peer of a gossip holds of its neighbours: public copies, kept up to date by differences.

A link is open while the two peers are neighbours, and synced while this end knows the other's copy: from the common
beginning, or since a whole copy came. Of a link that is not synced only the latest updates are kept, for when the copy
comes; so memory is bounded by links, whatever is said on them.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from veilmesh.crypto.codecs.base import Decoded, Vector
from veilmesh.peer.machine import PeerId

__all__ = ["AHEAD", "VOUCHED", "Copies", "Offsets", "Unread", "digest"]

AHEAD = 8
"""How many rounds a neighbour's update may be ahead of ours, and how many behind a gap it is kept while the gap's copy
has not come; what is further is dropped, so memory stays bounded."""

_LARGE = 1 << 20  # bytes of a vector that is worth reading twice
VOUCHED = 16
"""Of how many rounds the digests of a public copy are kept: as long as one who comes late may take to ask for them."""


def digest(copy: Vector) -> bytes:
    """SHA-256 of a public copy (d,), as little-endian float32: both ends of a link hold the same bits."""
    return hashlib.sha256(copy.astype("<f4", copy=False).tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Unread:
    """An update as it came, which was read once to see that it can be, and is read again when it is added: of a large
    model, what waits takes as little room as what was sent."""

    blob: bytes
    decode: Callable[[bytes], Decoded]

    @classmethod
    def kept(cls, blob: bytes, decode: Callable[[bytes], Decoded]) -> "Vector | Unread":
        """What is best kept of an update: its vector, unless that is large and its bytes are fewer. Raises as `decode`
        does."""
        values = decode(blob).values
        small = values.nbytes < _LARGE or len(blob) > 0.6 * values.nbytes
        return values if small else cls(blob, decode)

    def read(self) -> Vector:
        """The update (d,)."""
        return self.decode(self.blob).values


@dataclass(frozen=True, slots=True)
class Offsets(Sequence[Vector]):
    """The offsets (d,) of copies from our own, each made when it is asked for."""

    copies: tuple[Vector, ...]
    mine: Vector

    def __len__(self) -> int:
        return len(self.copies)

    @overload
    def __getitem__(self, place: int) -> Vector: ...
    @overload
    def __getitem__(self, place: slice) -> "Offsets": ...
    def __getitem__(self, place: int | slice) -> "Vector | Offsets":
        if isinstance(place, slice):
            return Offsets(self.copies[place], self.mine)
        offset: Vector = self.copies[place] - self.mine
        return offset


class Copies:
    """This peer's public copy, and those of its neighbours.

    Args:
        me: whose they are.
        initial: (d,) this peer's public copy before it has said anything.
        witness: whether to keep digests, for those who ask what this peer holds.
    """

    def __init__(self, me: PeerId, initial: Vector, witness: bool) -> None:
        self._me = me
        self._witness = witness
        self.said = -1  # the round after which our own copy stands: the last whose update was said
        self.copies: dict[PeerId, Vector] = {me: initial}  # of synced links, and ours
        self.next: dict[PeerId, int] = {}  # of synced links: the round of the next update to add to the copy
        self.inbox: dict[PeerId, dict[int, Vector | Unread]] = {}  # of open links: updates that are not added yet
        self.digests: dict[PeerId, dict[int, bytes]] = {}

    # --- links -------------------------------------------------------------------------------------------------

    def found(self, peer: PeerId, initial: Vector) -> None:
        """Open a link whose other end begins with us, at the common `initial` (d,)."""
        self.copies[peer], self.next[peer], self.inbox[peer] = initial, 0, {}

    def open(self, peer: PeerId) -> None:
        """Open a link, or open it anew: what was held of `peer` is void."""
        self.close(peer)
        self.inbox[peer] = {}

    def close(self, peer: PeerId) -> None:
        for kept in (self.copies, self.next, self.inbox):
            kept.pop(peer, None)

    def is_open(self, peer: PeerId) -> bool:
        return peer in self.inbox

    def is_synced(self, peer: PeerId) -> bool:
        return peer in self.next

    def disown(self, peer: PeerId) -> None:
        """What `peer` gave is not to be believed, nor to be vouched for: its link is opened anew."""
        self.open(peer)
        self.digests.pop(peer, None)

    def keep_only(self, peers: Iterable[PeerId], round_: int) -> None:
        """Close the links to all others, and forget their digests once they are too old to be asked for."""
        kept = set(peers)
        for peer in self.inbox.keys() - kept:
            self.close(peer)
        for peer in self.digests.keys() - kept - {self._me}:
            self.digests[peer] = {r: d for r, d in self.digests[peer].items() if r > round_ - VOUCHED}
        self.digests = {p: found for p, found in self.digests.items() if found}

    # --- what was heard, and how far it goes -------------------------------------------------------------------

    def position(self, peer: PeerId) -> int:
        """The round after which what we hold of `peer` stands; -1: the common beginning, or nothing."""
        return self.next.get(peer, 0) - 1

    def caught_up(self, peer: PeerId, round_: int) -> bool:
        """Whether all updates of a synced link up to `round_` are here."""
        return all(r in self.inbox[peer] for r in range(self.next[peer], round_ + 1))

    def first_missing(self, peer: PeerId) -> int:
        """The round of the first update of an open link that is not here; 0 where there is no copy either."""
        return (
            next(r for r in itertools.count(self.next[peer]) if r not in self.inbox[peer]) if peer in self.next else 0
        )

    def put(self, peer: PeerId, round_: int, update: Vector | Unread) -> None:
        """Keep an update (d,) until its turn; without a copy to add it to, only if it is among the latest."""
        inbox = self.inbox[peer]
        inbox[round_] = update
        if not self.is_synced(peer) and len(inbox) > AHEAD:
            del inbox[min(inbox)]

    def take(self, peer: PeerId, round_: int, copy: Vector) -> int:
        """`peer` says that `copy` (d,) is its public copy after `round_`: the link is synced.

        What came before is void, for it may add up to something else: a peer that began anew says rounds again that it
        has said before. Returns the last round that was here: if it is beyond `round_`, then either that is so, or it
        has overtaken this copy, and the next one has to be asked for.
        """
        overtaking = max([self.position(peer), *self.inbox[peer]])
        self.copies[peer], self.next[peer], self.inbox[peer] = copy, round_ + 1, {}
        self.digests[peer] = {r: d for r, d in self.digests.get(peer, {}).items() if r < round_}
        self._record(peer, round_)
        return overtaking

    def apply(self, peer: PeerId, round_: int) -> None:
        """Add what is here of a synced link, in order, up to `round_`."""
        while self.next[peer] <= round_ and self.next[peer] in self.inbox[peer]:
            update = self.inbox[peer].pop(self.next[peer])
            self.copies[peer] = self.copies[peer] + (update.read() if isinstance(update, Unread) else update)
            self.next[peer] += 1
            self._record(peer, self.next[peer] - 1)

    def trim(self, peer: PeerId, round_: int) -> None:
        """Forget what waits for a gap to be filled since more than AHEAD rounds."""
        self.inbox[peer] = {r: v for r, v in self.inbox[peer].items() if r > round_ - AHEAD}

    def say(self, round_: int, copy: Vector) -> None:
        """Our own public copy (d,) after `round_`."""
        self.copies[self._me], self.said = copy, round_
        self.digests[self._me] = {r: d for r, d in self.digests.get(self._me, {}).items() if r < round_}
        self._record(self._me, round_)

    def _record(self, peer: PeerId, round_: int) -> None:
        if not self._witness:
            return
        found = self.digests.setdefault(peer, {})
        found[round_] = digest(self.copies[peer])
        for old in [r for r in found if r <= round_ - VOUCHED]:
            del found[old]
