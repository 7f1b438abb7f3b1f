"""One member's round in a ring: what it passes on, to whom, and what the parts come to.

    a part arrives from behind, or starts here      add our own to it, pass it on
    nobody is left to pass it to                    it is the average: hand it to the first one
    an average arrives from behind                  take it, hand it on, unless the next one has made it

Where somebody is lost, whatever was passed to it is passed to the next one instead; who has added to a part already
takes no second one, so nobody counts twice. If the one lost was the last of all, it may have handed the average to the
first before: then the first is asked, by passing the part once more round to it, and what it says counts.
"""

from collections.abc import Collection, Iterable

from veilmesh.crypto.codecs.base import Vector
from veilmesh.peer.machine import Effect, PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.sealer import Sealer
from veilmesh.swarm.strategies.group_inbox import Answers
from veilmesh.swarm.strategies.ring import Ring
from veilmesh.swarm.strategies.ring_inbox import RingInbox, Token, joined

__all__ = ["Lap"]

NOBODY = frozenset[PeerId]()


class Lap:
    """What member `me` does with the parts of one round, of its own `model` (d,) after training.

    `answers` is told of every average, for those that ask later.
    """

    def __init__(
        self, me: PeerId, ring: Ring, round_: int, model: Vector, sealer: Sealer, inbox: RingInbox, answers: Answers
    ) -> None:
        self._me = me
        self._ring = ring
        self._round = round_
        self._model = model
        self._sealer = sealer
        self._inbox = inbox
        self._answers = answers
        self._passed: dict[int, tuple[Token, bytes]] = {}  # by part: with our own in it, and as it is said
        self._to: dict[int, PeerId] = {}  # to whom it was passed last
        self._averages: dict[int, Token] = {}
        self._bodies: dict[int, bytes] = {}  # the averages, as they are said
        self._handed: dict[int, frozenset[PeerId]] = {}  # who was handed the average
        self._again: set[tuple[int, PeerId]] = set()

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self._ring.parts)

    @property
    def missing(self) -> list[int]:
        """The parts whose average is not known."""
        return [part for part in self._ring.parts if part not in self._averages]

    @property
    def group(self) -> int:
        """How many models stand behind every coordinate: the fewest over the parts; one where a part is missing."""
        return 1 if self.missing else min(count for count, _ in self._averages.values())

    def mixed(self) -> Vector:
        """(d,) the averages; where there is none, this peer's own."""
        x = self._model.copy()
        for part, (_, mean) in self._averages.items():
            x[self._ring.span(part)] = mean
        return x

    def proceed(self, there: Collection[PeerId], slow: Collection[PeerId] = NOBODY) -> list[Effect]:
        """Say whatever can be said of any part. `slow`: those not there that may still listen."""
        return [effect for part in self._ring.parts for effect in self.pursue(part, there, slow)]

    def pursue(self, part: int, there: Collection[PeerId], slow: Collection[PeerId] = NOBODY) -> list[Effect]:
        """The same of one part."""
        effects = [] if part in self._averages else self._advance(part, there)
        return effects + (self._hand_on(part, there, slow) if part in self._averages else [])

    def repeat(self, asker: PeerId) -> list[Effect]:
        """What one that still needs something is told once more: averages, and what was passed to it; each once."""
        effects: list[Effect] = []
        for part in self._ring.parts:
            if part in self._averages:
                effects += self._answers.again(asker, self._round, part)
            elif self._to.get(part) == asker and (part, asker) not in self._again:
                self._again.add((part, asker))
                effects.append(Send(asker, self._passed[part][1]))
        return effects

    def _advance(self, part: int, there: Collection[PeerId]) -> list[Effect]:
        behind = self._ring.behind(self._me, there)
        sources = (*behind[::-1], *([self._to[part]] if part in self._to else []))
        if (average := self._inbox.averaged(part, sources)) is not None:
            self._averages[part] = average
            return []
        if part not in self._passed:
            if (token := self._arrived(part, behind, there)) is None:
                return []
            self._passed[part] = token, self._said(part, token)
        elif (whole := self._come_round(part, behind, there)) is not None:
            self._averages[part] = whole
            return []
        return self._pass_on(part, there)

    def _arrived(self, part: int, behind: tuple[PeerId, ...], there: Collection[PeerId]) -> Token | None:
        """A part with our own added, if it has come or starts here."""
        own = self._model[self._ring.span(part)]
        before = [p for p in behind if self._ring.steps(part, p) < self._ring.steps(part, self._me)]
        if heard := self._inbox.passed(part, before):
            return joined(max(heard.values(), key=lambda token: token[0]), own)
        return (1, own) if self._ring.first(part, there) == self._me else None

    def _come_round(self, part: int, behind: tuple[PeerId, ...], there: Collection[PeerId]) -> Token | None:
        """What the last one passed to us, who are the first."""
        if self._ring.first(part, there) != self._me:
            return None
        whole = self._inbox.passed(part, self._beyond(part, behind))
        return max(whole.values(), key=lambda token: token[0], default=None)

    def _pass_on(self, part: int, there: Collection[PeerId]) -> list[Effect]:
        token, body = self._passed[part]
        to = self._ring.after(part, self._me, there)
        if to is None:
            first = self._ring.first(part, there)
            if part not in self._to or first == self._me:
                self._averages[part] = token
                return []
            to = first  # who was lost behind us may have told it more than we know
        if self._to.get(part) == to:
            return []
        self._to[part] = to
        return [Send(to, body)]

    def _hand_on(self, part: int, there: Collection[PeerId], slow: Collection[PeerId]) -> list[Effect]:
        body = self._averaged(part)
        to = self._ring.after(part, self._me, there) or self._ring.first(part, there)
        # The last of all has it already. Where it is gone, nobody knows whether it was it that made the average.
        receivers = {to} - {self._me, self._ring.end(part)}
        receivers |= {p for p in self._ring.between(self._me, to) if p in slow}
        new = [p for p in self._ring.order if p in receivers - self._handed.get(part, NOBODY)]
        self._handed[part] = self._handed.get(part, NOBODY) | receivers
        offers = self._inbox.passed(part, self._beyond(part, self._ring.order))
        asked = [effect for p in offers for effect in self._answers.again(p, self._round, part)]
        return [*(Send(p, body) for p in new), *asked]

    def _beyond(self, part: int, peers: Iterable[PeerId]) -> list[PeerId]:
        """Those of them to whom a part comes after us: if they pass it to us, then for the second time round."""
        return [p for p in peers if self._ring.steps(part, p) > self._ring.steps(part, self._me)]

    def _averaged(self, part: int) -> bytes:
        if part not in self._bodies:
            count, mean = self._averages[part]
            body = messages.encode(messages.Averaged(self._round, part, count, self._blob(part, mean), b""))
            self._bodies[part] = body
            self._answers.said(self._round, part, body)
        return self._bodies[part]

    def _said(self, part: int, token: Token) -> bytes:
        return messages.encode(messages.Passed(self._round, part, token[0], self._blob(part, token[1])))

    def _blob(self, part: int, values: Vector) -> bytes:
        blob, _ = self._sealer.part(self._ring.length(part)).encode(values, self._round)
        return blob
