"""What the others of a group have said, in this round of an all-reduce and in rounds ahead of ours; and our answers."""

from collections.abc import Collection, Mapping

from veilmesh.core import Refusal, RemoteError
from veilmesh.peer.machine import Effect, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.butterfly import Butterfly, Piece

__all__ = ["AHEAD", "Answers", "GroupInbox"]

AHEAD = 16
"""How many rounds a member may be ahead of ours. Who is stuck holds up its group, and their next groups, and so on: the
number of peers that can go on shrinks by the group's size with every round."""

Key = tuple[int, int, PeerId]
"""Round, part and sender."""


class GroupInbox:
    """Parts to be averaged, and averages that came back; each once, and only from those whose turn it can be."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._round = 0
        self._parts: dict[Key, Piece] = {}
        self._averages: dict[Key, tuple[int, Piece]] = {}

    def forget(self, round_: int) -> None:
        """`round_` is ours now; what was said of earlier ones is of no use any more."""
        self._round = round_
        self._parts = {key: piece for key, piece in self._parts.items() if key[0] >= round_}
        self._averages = {key: average for key, average in self._averages.items() if key[0] >= round_}

    def parts(self, part: int) -> Mapping[PeerId, Piece]:
        """What was said of a part in our round."""
        return {sender: piece for (r, p, sender), piece in self._parts.items() if (r, p) == (self._round, part)}

    def average(self, part: int, reducer: PeerId) -> tuple[int, Piece] | None:
        """What `reducer` says that a part comes to in our round, and of how many models."""
        return self._averages.get((self._round, part, reducer))

    def check_round(self, round_: int) -> None:
        """Raises RemoteError for a round too far ahead of ours."""
        if round_ >= min(self._round + AHEAD, self._rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")

    def check(
        self,
        butterfly: Butterfly,
        me: PeerId,
        sender: PeerId,
        message: messages.Part | messages.Averaged,
        alive: Collection[PeerId],
    ) -> None:
        """Raises RemoteError for what cannot have been said in turn.

        In our round and the next, anybody in the group may have to average any part: two peers need not agree about who
        is gone. Further ahead only whose part it is, as far as we know; so what is kept stays small.
        """
        if sender == me or sender not in butterfly.group:
            raise RemoteError(Refusal.MISMATCH, f"not of our group in round {message.round}")
        if message.part not in butterfly.parts:
            raise RemoteError(Refusal.MISMATCH, f"part {message.part} of {len(butterfly.parts)}")
        if isinstance(message, messages.Averaged) and message.count > len(butterfly.group):
            raise RemoteError(Refusal.MISMATCH, f"{message.count} models in a group of {len(butterfly.group)}")
        reducer = sender if isinstance(message, messages.Averaged) else me
        turn = (butterfly.group[message.part], butterfly.reducer(message.part, alive))
        if message.round > self._round + 1 and reducer not in turn:
            raise RemoteError(Refusal.MISMATCH, f"part {message.part} of round {message.round}, out of turn")

    def has(self, sender: PeerId, message: messages.Part | messages.Averaged) -> bool:
        """Whether it was said already; the first one counts."""
        kept = self._averages if isinstance(message, messages.Averaged) else self._parts
        return (message.round, message.part, sender) in kept

    def take(self, sender: PeerId, message: messages.Part | messages.Averaged, piece: Piece) -> None:
        """Keep what was checked and read."""
        key = (message.round, message.part, sender)
        if isinstance(message, messages.Averaged):
            self._averages[key] = (message.count, piece)
        else:
            self._parts[key] = piece


class Answers:
    """The averages that we have said, in our round and the one before: once more for everybody who asks."""

    def __init__(self) -> None:
        self._bodies: dict[tuple[int, int], bytes] = {}
        self._repeated: set[Key] = set()

    def said(self, round_: int, part: int, body: bytes) -> None:
        """Remember an average."""
        self._bodies[round_, part] = body

    def known(self, round_: int, part: int) -> bool:
        """Whether it was said, and is remembered."""
        return (round_, part) in self._bodies

    def again(self, to: PeerId, round_: int, part: int) -> list[Effect]:
        """What to say to one that says its part once more: an average is large, so it is repeated once only."""
        if (round_, part, to) in self._repeated:
            return []
        self._repeated.add((round_, part, to))
        return [Send(to, self._bodies[round_, part])]

    def forget(self, round_: int) -> None:
        """`round_` is ours now."""
        self._bodies = {key: body for key, body in self._bodies.items() if key[0] >= round_ - 1}
        self._repeated = {key for key in self._repeated if key[0] >= round_ - 1}
