"""How a peer that has lost the model that all others share finds it again: it asks, and believes what enough say.

In protocols in which every round begins with one model for all: who missed how a round ended trains on from another
one, and every round takes it further away.
"""

from hashlib import sha256

from veilmesh.core import generator
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import CancelTimer, Effect, Note, PeerId, Send, SetTimer
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import Kit

__all__ = ["CommonModel", "model_digest"]


def model_digest(x: Vector) -> bytes:
    """32 bytes by which peers find out whether they have the same model (d,)."""
    return sha256(x.tobytes()).digest()


class CommonModel:
    """Questions and answers of one peer; models of which more than `liars` peers say the same are believed."""

    def __init__(self, kit: Kit, liars: int) -> None:
        self._kit = kit
        self._liars = liars
        self._present: frozenset[PeerId] = frozenset()
        self._reached: dict[PeerId, int] = {}  # the last round that somebody speaks of
        self._wanted: dict[PeerId, int] = {}  # who wants the model of which round
        self._answered: dict[PeerId, int] = {}
        self._copies: dict[PeerId, tuple[int, bytes, Vector]] = {}  # round, digest, model
        self.asking = False

    def see(self, present: frozenset[PeerId]) -> None:
        """Those present are these now."""
        self._present = present

    def reached(self, peer: PeerId, round_: int) -> None:
        """Somebody speaks of that round."""
        self._reached[peer] = max(round_, self._reached.get(peer, 0))

    def is_ahead(self, round_: int) -> bool:
        """Whether more peers than lie have got to that round."""
        return self.frontier >= round_ > 0

    @property
    def frontier(self) -> int:
        """The last round that more peers than lie have got to."""
        reached = sorted(self._reached.values(), reverse=True)
        return reached[self._liars] if len(reached) > self._liars else 0

    def ask(self, round_: int, now: float) -> list[Effect]:
        """We have lost the others: what is their model of that round, or a later one? Ends with the timer `ask`."""
        self.asking, self._copies = True, {}
        body = messages.encode(messages.Ask(round_))
        sends: list[Effect] = [Send(p, body) for p in self._kit.order if p in self._present]
        return [Note("lost", {"round": round_}), *sends, SetTimer("ask", now + self._kit.patience / 2)]

    def hear(self, sender: PeerId, message: messages.Copy, round_: int) -> tuple[int, Vector] | None:
        """An answer; the round and the model, once enough say the same. Raises RemoteError."""
        if not self.asking or message.round < round_ or sender in self._copies:
            return None
        x = self._kit.sealer.decode_lossless(message.blob)
        digest = model_digest(x)
        self._copies[sender] = (message.round, digest, x)
        alike = sum(said[:2] == (message.round, digest) for said in self._copies.values())
        if alike <= self._liars:
            return None
        self.asking, self._copies = False, {}
        return message.round, x

    def found(self, round_: int) -> list[Effect]:
        """What follows from having found it."""
        return [CancelTimer("ask"), Note("found", {"round": round_})]

    def give_up(self) -> None:
        """Nobody can say."""
        self.asking, self._copies = False, {}

    def asked(self, sender: PeerId, message: messages.Ask, round_: int, x: Vector) -> list[Effect]:
        """Somebody wants our model: now, or once we are where it is."""
        self._wanted[sender] = message.round
        return self.answers(round_, x)

    def answers(self, round_: int, x: Vector) -> list[Effect]:
        """What is to be answered, now that `x` (d,) is our model of `round_`: to everybody once a round."""
        due = [p for p, wanted in sorted(self._wanted.items()) if wanted <= round_]
        sends = list[Effect]()
        for peer in due:
            del self._wanted[peer]
            if self._answered.get(peer, -1) < round_ and peer in self._present:
                self._answered[peer] = round_
                blob = table.encode(Dense(), x, generator(0))
                sends.append(Send(peer, messages.encode(messages.Copy(round_, blob))))
        return sends
