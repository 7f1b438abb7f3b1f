"""Sums by masks in the hand: sessions, no clock, no wire. The test decides what is delivered, and what is lost."""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain, combinations

import numpy as np

from veilmesh.crypto.fixed import word_type
from veilmesh.crypto.shares import combine
from veilmesh.peer.machine import PeerId, Send
from veilmesh.swarm import messages
from veilmesh.swarm.secure_messages import Agreed, Counted, Enrol, Masked, Roll, SumMessage, Total, Unmasked
from veilmesh.swarm.strategies.secure_plan import Secrets, SumPlan, lowest_threshold
from veilmesh.swarm.strategies.secure_session import SecureSession
from veilmesh.swarm.strategies.secure_state import Phase

__all__ = ["KINDS", "D", "Room", "dropped", "plan", "subsets"]

KINDS = (Enrol, Roll, Masked, Counted, Agreed, Unmasked, Total)
D = 11


def plan(
    members: int,
    length: int = D,
    bits: int = 32,
    copies: int | None = None,
    number: int = 0,
    cohorts: tuple[tuple[int, ...], ...] = (),
) -> SumPlan:
    threshold = lowest_threshold(members)
    ids = tuple(PeerId(f"p{i}") for i in range(members))
    return SumPlan(ids, 3, number, threshold, length, bits, copies or members - threshold + 1, b"a test", cohorts)


class Room:
    """Sessions, and what lies between them: the test decides what is delivered, and what is lost."""

    def __init__(self, made: SumPlan, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.plan = made
        self.secrets = {p: rng.bytes(32) for p in made.members}
        self.vectors = {
            p: rng.integers(0, 1 << made.bits, made.length).astype(word_type(made.bits)) for p in made.members
        }
        self.sessions = {p: SecureSession(made, p, self.secrets[p]) for p in made.members}
        self.pending: list[tuple[PeerId, PeerId, SumMessage]] = []
        self.heard: list[tuple[PeerId, PeerId, SumMessage]] = []
        self.dead: set[PeerId] = set()
        self.lost: Callable[[PeerId, PeerId, SumMessage], bool] = lambda sender, to, message: False
        self.altered: Callable[[PeerId, PeerId, SumMessage], SumMessage] = lambda sender, to, message: message

    def post(self, sender: PeerId, sends: Iterable[Send]) -> None:
        for send in sends:
            message = messages.decode(send.body)
            assert send.to != sender
            if sender not in self.dead and not self.lost(sender, send.to, message):
                self.pending.append((sender, send.to, self.altered(sender, send.to, message)))

    def begin(self) -> "Room":
        for p, session in self.sessions.items():
            self.post(p, session.begin(self.plan.members))
            self.post(p, session.contribute(self.vectors[p].copy()))
        return self

    def settle(self, choose: Callable[[int], int] = lambda count: 0) -> "Room":
        while self.pending:
            sender, to, message = self.pending.pop(choose(len(self.pending)))
            if to not in self.dead:
                self.heard.append((sender, to, message))
                self.post(to, self.sessions[to].receive(sender, message))
        return self

    def die(self, peer: PeerId) -> None:
        self.dead.add(peer)

    def all_see(self) -> "Room":
        there = [p for p in self.plan.members if p not in self.dead]
        for p in there:
            self.post(p, self.sessions[p].see(there))
        return self.settle()

    def clock(self) -> "Room":
        """Time passes: all is said again, then the silent are left out, until every session is over."""
        for p in self.alive:
            self.post(p, self.sessions[p].again())
        self.settle()
        for _ in range(len(Phase)):
            for p in self.alive:
                self.post(p, self.sessions[p].expire())
                self.settle()
        for p in self.alive:
            self.post(p, self.sessions[p].give_up())
        return self.settle()

    @property
    def alive(self) -> list[PeerId]:
        return [p for p in self.plan.members if p not in self.dead]

    def total(self, survivors: Iterable[PeerId]) -> np.ndarray:
        total = np.zeros(self.plan.length, word_type(self.plan.bits))
        for p in survivors:
            total += self.vectors[p]
        return total

    def check(self, survivors: Sequence[PeerId] | None = None) -> None:
        """Whoever is there has the exact sum of the same survivors, and nobody's vector could be told from it."""
        results = [self.sessions[p].result for p in self.alive]
        assert all(self.sessions[p].phase is Phase.DONE for p in self.alive)
        for result in results:
            assert result is not None
            assert not result.missing
            assert result.survivors == (results[0].survivors if survivors is None else tuple(survivors))
            assert len(result.survivors) >= (1 if self.plan.cohorts else self.plan.threshold)
            assert (result.words == self.total(result.survivors)).all()
        self.check_hidden()

    def check_hidden(self, liars: Collection[PeerId] = ()) -> None:
        """Nobody alone, nor all `liars` together, can open both secrets of an honest peer with all that anybody heard.

        Tried, by every choice of shares: of what was said to all, and of what was enrolled with them.
        """
        if len(self.plan.members) > 8:  # too many choices
            return
        small = len(self.plan.members) <= 5
        for victim in self.plan.members:
            for coalition in [set(liars)] if liars else [{p} for p in self.alive[: 5 if small else 1]]:
                if victim not in coalition:
                    assert self.opened(victim, coalition) < {"seed", "key"}, (victim, coalition)

    def opened(self, victim: PeerId, coalition: Collection[PeerId]) -> set[str]:
        place, truth = self.plan.members.index(victim), Secrets.draw(self.plan, self.secrets[victim])
        told, enrolled = dict[int, bytes](), dict[str, dict[int, bytes]](seed={}, key={})
        opened = set()
        for sender, to, message in self.heard:
            number = self.plan.members.index(sender) + 1
            if isinstance(message, Unmasked) and message.shares[place]:
                told[number] = message.shares[place]
            if isinstance(message, Unmasked) and sender == victim and message.seed == truth.seed:
                opened.add("seed")
            if isinstance(message, Enrol) and sender == victim and to in coalition:
                number = self.plan.members.index(to) + 1
                enrolled["seed"][number], enrolled["key"][number] = message.seed_share, message.key_share
        for kind, secret in (("seed", truth.seed), ("key", truth.private)):
            pool = sorted({**told, **enrolled[kind]}.items())
            if any(combine(some, self.plan.threshold) == secret for some in combinations(pool, self.plan.threshold)):
                opened.add(kind)
        return opened


def subsets(items: Iterable[PeerId], most: int) -> Iterable[tuple[PeerId, ...]]:
    items = list(items)
    return chain.from_iterable(combinations(items, size) for size in range(most + 1))


def dropped(made: SumPlan, gone: tuple[PeerId, ...], kind: type) -> Room:
    """A sum in which `gone` end just before they say anything of `kind`."""
    room = Room(made)

    def ends(sender: PeerId, to: PeerId, message: SumMessage) -> bool:
        if sender in gone and isinstance(message, kind):
            room.die(sender)
        return sender in room.dead

    room.lost = ends
    room.begin().settle()
    for p in gone:
        room.die(p)
    return room.all_see()
