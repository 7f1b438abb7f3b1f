"""The proxy's side of `blind_proxy`: for one receiver in every round, add what its neighbours have encrypted for it.

What can be added is added as soon as everybody that is there has spoken, or half a patience after the first did; and
only if there are `fewest` or more, for the sum of one would be that one's model. A proxy needs no round of its own for
it: it serves rounds that it has not begun, and rounds that it has done.
"""

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.homomorphic import Scheme
from veilmesh.crypto.homomorphic_work import Add, Refused
from veilmesh.peer.machine import CancelTimer, Effect, Note, PeerId, Send, SetTimer, Work
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import Kit
from veilmesh.swarm.strategies.ciphers import fingerprint
from veilmesh.swarm.strategies.keyring import Keyring
from veilmesh.swarm.strategies.proxies import Table

__all__ = ["ProxySide"]


class ProxySide:
    """What one peer was given to add, by round."""

    def __init__(self, kit: Kit, table: Table, keys: Keyring, scheme: Scheme, fewest: int) -> None:
        self._kit, self._table, self._keys, self._scheme, self._fewest = kit, table, keys, scheme, fewest
        self._me = kit.order.index(kit.me)
        self._present: frozenset[PeerId] = frozenset()
        self._spoken = -1  # the last round of which our own part has been encrypted
        self._given: dict[int, dict[PeerId, messages.Encrypted]] = {}
        self._closed: set[int] = set()  # rounds of which nothing more is taken
        self._adding: dict[int, tuple[int, ...]] = {}  # of those, the ones whose sum is worked out: who is in it

    def see(self, present: frozenset[PeerId]) -> None:
        """Those present are these now; `proceed` afterwards."""
        self._present = present

    def spoke(self, round_: int) -> None:
        """Whatever we say ourselves in a round has been said."""
        self._spoken = round_

    def check(self, sender: PeerId, message: messages.Encrypted) -> None:
        """Raises RemoteError for a part that is not for us to add."""
        receiver = self._table.served(message.round, self._me)
        if message.to != receiver or self._kit.order.index(sender) not in self._table.neighbours(receiver):
            raise RemoteError(Refusal.MISMATCH, f"not for us to add in round {message.round}")
        if sender in self._given.get(message.round, {}):
            raise RemoteError(Refusal.MISMATCH, f"a second part for round {message.round}")
        public = self._keys.public(message.round, self._kit.order[receiver])
        if public is not None and fingerprint(public) != message.key:
            raise RemoteError(Refusal.MISMATCH, "encrypted under another key than its receiver told us")

    def take(self, sender: PeerId, message: messages.Encrypted, now: float) -> list[Effect]:
        """Keep a part, of our own or one that was checked; `proceed` afterwards."""
        if message.round in self._closed:
            return []  # too late, which is no offence
        heard = self._given.setdefault(message.round, {})
        heard[sender] = message
        return [SetTimer(f"serve-{message.round}", now + self._kit.patience / 2)] if len(heard) == 1 else []

    def proceed(self) -> list[Effect]:
        """Add whatever is complete."""
        complete = [r for r in sorted(self._given) if not self._missing(r) and not self._keyless(r)]
        return [e for round_ in complete for e in self.serve(round_)]

    def serve(self, round_: int) -> list[Effect]:
        """Add what there is for the receiver of a round, or say that it is not enough."""
        if round_ in self._closed:
            return []
        self._closed.add(round_)
        public = self._keys.public(round_, self._receiver(round_))
        key = fingerprint(public or b"")
        heard = self._given.pop(round_, {})
        given = {self._kit.order.index(p): said.blob for p, said in heard.items() if said.key == key}
        self._adding[round_] = tuple(sorted(given))
        done = CancelTimer(f"serve-{round_}")
        if len(given) < self._fewest or public is None:
            return [done, *self.added(round_, None)]
        return [done, Work(f"add-{round_}", Add(self._scheme, public, tuple(given[p] for p in sorted(given))))]

    def added(self, round_: int, total: bytes | Refused | None) -> list[Effect]:
        """Pass a sum on, or that there is none."""
        places, receiver, notes = self._adding.pop(round_), self._receiver(round_), list[Effect]()
        if not isinstance(total, bytes):
            notes.append(Note("too-few", {"round": round_, "for": str(receiver), "parts": len(places)}))
            places, total = (), b""
        body = messages.encode(messages.Summed(round_, places, total))
        return [*notes, *([Send(receiver, body)] if receiver in self._present else [])]

    def owes(self, last: int) -> bool:
        """Whether somebody waits for a sum of ours, or will, where `last` is the last round of all."""
        owed = last not in self._closed and self._receiver(last) in self._present
        return owed or bool(self._adding or self._given)

    def forget(self, oldest: int) -> None:
        """Rounds before `oldest` are not spoken of any more."""
        self._given = {r: heard for r, heard in self._given.items() if r >= oldest}
        self._closed = {r for r in self._closed if r >= oldest}

    def _receiver(self, round_: int) -> PeerId:
        return self._kit.order[self._table.served(round_, self._me)]

    def _keyless(self, round_: int) -> bool:
        """Whether the receiver's key is still on its way: parts under it may overtake it."""
        receiver = self._receiver(round_)
        return receiver in self._present and self._keys.public(round_, receiver) is None

    def _missing(self, round_: int) -> list[PeerId]:
        near = [self._kit.order[p] for p in self._table.neighbours(self._table.served(round_, self._me))]
        awaited = self._present | ({self._kit.me} if round_ > self._spoken else set())
        return [p for p in near if p in awaited and p not in self._given[round_]]
