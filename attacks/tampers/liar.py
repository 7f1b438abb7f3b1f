"""A peer that says other models than it has: to every neighbour what it likes.

Theory of operation: the honest machine inside goes on as if nothing were wrong, so every moment and every form of the
protocol is right. Its updates are held back, decoded, and said again: a claim is made for every victim, and what goes
out is the claim's difference from what that victim holds of the liar, through the run's own codec. (In gossip a peer is
known by a public copy, so the liar keeps one per victim; a request for the whole copy is answered with that victim's.)
A liar that wants to know what the others said first waits for its honest neighbours of the round, no longer than half
of the round's patience. Honest ones do not wait for each other before they speak, so nobody waits in vain.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np

from veilmesh.attacks.tampers.base import Insider, Labels, Pictures, peers_only
from veilmesh.attacks.tampers.hidden import HiddenLiar
from veilmesh.core import BadInput
from veilmesh.crypto.codecs import table
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.codecs.dense import Dense
from veilmesh.peer.machine import (
    CancelTimer,
    Effect,
    Event,
    Machine,
    Note,
    PeerId,
    PeersChanged,
    Received,
    Send,
    SetTimer,
    Started,
    Stop,
    TimerFired,
    WorkDone,
)
from veilmesh.swarm import messages
from veilmesh.swarm.strategies.base import Trained
from veilmesh.swarm.strategies.brea import BreaMachine
from veilmesh.swarm.strategies.secure_clusters import SecureClustersMachine
from veilmesh.swarm.strategies.secure_groups import SecureGroupsMachine

__all__ = ["HIDDEN", "PROTOCOLS", "Claim", "Heard", "Liar", "Lie"]

PROTOCOLS = ("choco", "diloco", "fedavg", "fedprox", "fedsgd", "gossip")
"""Where a liar knows what an update means; elsewhere a scenario with one is refused."""

HIDDEN = ("brea", "secure-clusters", "secure-groups")
"""Where it lies to its own machine, and nobody is shown an update."""

_LARGEST = np.float32(1e30)
"""Claims are cut to this: further out, differences of float32 overflow, and nothing could be said at all."""

_HURRY = "tamper"


@dataclass(frozen=True, slots=True)
class Heard:
    """What a liar knows when it makes a claim to `victim`; models are (d,)."""

    round: int
    victim: PeerId
    start: Vector  # where its own training of the round began
    honest: Vector  # where it ended: what an honest peer would say
    others: Mapping[PeerId, Vector]  # honest neighbours' models of the round; in a star: the hub's, one more step on
    insider: Insider


class Claim(ABC):
    """What to say one's model is. Subclasses are the tampers."""

    rushing: ClassVar[bool] = False  # whether it waits for what the others say first

    @abstractmethod
    def claim(self, heard: Heard, rng: np.random.Generator) -> Vector:
        """The model (d,) that `heard.victim` is to believe in."""

    def remark(self) -> Mapping[str, Any]:
        """What the run's record is to hold of the claims that were made last, beside how many and how far off."""
        return {}


class Lie(Claim):
    """A tamper that lies about its model, and trains on what it has."""

    def hears_nothing(self) -> bool:
        """Whether the lie needs nothing but the liar's own update, and so has a place where updates are hidden."""
        return False

    def check(self, strategy: str, classes: int, server: bool = False) -> None:
        peers_only(server)
        if strategy in HIDDEN and not self.hears_nothing():
            raise BadInput(f"In {strategy} nobody's update is heard; take scaled, noise, or sign-flip of the update.")
        if strategy not in (*PROTOCOLS, *HIDDEN):
            raise BadInput(f"This tamper cannot lie in {strategy}; it can in {', '.join(PROTOCOLS)}.")

    def wrap(self, honest: Machine, insider: Insider, rng: np.random.Generator) -> Machine:
        if isinstance(honest, BreaMachine | SecureClustersMachine | SecureGroupsMachine):
            return HiddenLiar(honest, partial(self._unheard, insider, rng))
        return Liar(honest, insider, self, rng)

    def _unheard(self, insider: Insider, rng: np.random.Generator, round_: int, update: Vector) -> Vector:
        """The lie about an update (d,) by itself, as if training had begun at zero, and nobody had said anything."""
        return self.claim(Heard(round_, insider.kit.me, np.zeros_like(update), update, {}, insider), rng)

    def data(self, x: Pictures, y: Labels, classes: int, rng: np.random.Generator) -> tuple[Pictures, Labels]:
        return x, y


class _Copies:
    """What neighbours have said of themselves, up to a round: public copies, as gossip keeps them."""

    def __init__(self, neighbours: list[PeerId], initial: Vector) -> None:
        self._copies = dict.fromkeys(neighbours, initial)
        self._next = dict.fromkeys(neighbours, 0)
        self._inbox: dict[PeerId, dict[int, Vector]] = {p: {} for p in neighbours}

    def update(self, sender: PeerId, round_: int, values: Vector) -> None:
        self._inbox[sender][round_] = values

    def copy(self, sender: PeerId, round_: int, values: Vector) -> None:
        self._copies[sender], self._next[sender] = values, round_ + 1
        self._inbox[sender] = {r: v for r, v in self._inbox[sender].items() if r > round_}

    def models(self, round_: int) -> dict[PeerId, Vector]:
        """The models of `round_` of all that were heard up to it."""
        for peer, inbox in self._inbox.items():
            while self._next[peer] <= round_ and self._next[peer] in inbox:
                self._copies[peer] = self._copies[peer] + inbox.pop(self._next[peer])
                self._next[peer] += 1
            for stale in [r for r in inbox if r < self._next[peer]]:
                del inbox[stale]
        return {p: self._copies[p] for p, following in self._next.items() if following == round_ + 1}


class Liar:
    """One malicious peer: an honest machine inside, claims outside."""

    def __init__(self, honest: Machine, insider: Insider, claim: Claim, rng: np.random.Generator) -> None:
        kit = insider.kit
        self._honest = honest
        self._insider, self._claim, self._rng = insider, claim, rng
        self._kit = kit
        others = [p for p in kit.order if p != kit.me and (p in kit.weights if kit.server is None else p == kit.server)]
        self._held = dict.fromkeys(others, kit.initial)  # what each neighbour holds of this peer
        self._mine = kit.initial  # what the honest machine thinks that they hold
        self._heard = _Copies([p for p in others if p not in insider.malicious], kit.initial)
        self._hub = (kit.initial, kit.initial)  # in a star: the last two global models
        self._update = np.zeros_like(kit.initial)
        self._present: frozenset[PeerId] = frozenset()
        self._waiting: dict[PeerId, messages.Update] = {}

    def handle(self, event: Event, now: float) -> list[Effect]:
        if event == TimerFired(_HURRY):
            return self._speak()
        inside = self._honest.handle(event, now)  # first: what it refuses was never said
        self._listen(event)
        waited = bool(self._waiting)
        effects: list[Effect] = []
        for effect in inside:
            effects += self._outgoing(effect) if isinstance(effect, Send) else [effect]
        if self._ready() or any(isinstance(effect, Stop) for effect in inside):
            return [*self._speak(), *effects]
        return effects if waited else [*effects, SetTimer(_HURRY, now + self._kit.patience / 2)]

    # --- what it hears ------------------------------------------------------------------------------------------

    def _listen(self, event: Event) -> None:
        match event:
            case Started(present) | PeersChanged(present):
                self._present = present
            case WorkDone(name, result) if name.startswith("train"):
                self._update = cast(Trained, result).update
            case Received(sender, body) if sender not in self._insider.malicious:
                self._take(sender, messages.decode(body))

    def _take(self, sender: PeerId, message: messages.Message) -> None:
        match message:
            case messages.Update(round=round_, blob=blob):
                self._heard.update(sender, round_, self._kit.sealer.decode(blob).values)
            case messages.Copy(round=round_, blob=blob):
                self._heard.copy(sender, round_, table.decode_lossless(blob, self._kit.sealer.dimension))
            case messages.Model(blob=blob):
                self._hub = (self._hub[1], table.decode_lossless(blob, self._kit.sealer.dimension))

    # --- what it says -------------------------------------------------------------------------------------------

    def _outgoing(self, effect: Send) -> list[Effect]:
        message = messages.decode(effect.body)
        match message:
            case messages.Update():
                before = self._speak() if self._new_round(message) else []
                self._waiting[effect.to] = message
                return before
            case messages.Copy(round=round_):
                before = self._speak()
                blob = table.encode(Dense(), self._held[effect.to], np.random.default_rng(0))
                return [*before, Send(effect.to, messages.encode(messages.Copy(round_, blob)))]
        return [effect]

    def _new_round(self, message: messages.Update) -> bool:
        return any(waiting.round != message.round for waiting in self._waiting.values())

    def _ready(self) -> bool:
        if not self._waiting or not self._claim.rushing or self._kit.server is not None:
            return True
        round_ = next(iter(self._waiting.values())).round
        honest = {p for p in self._held if p in self._present and p not in self._insider.malicious}
        return honest <= self._heard.models(round_).keys()

    def _speak(self) -> list[Effect]:
        """Say what is held back, as claims."""
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, {}
        some = next(iter(waiting.values()))
        heard = self._known(some)
        claims = {to: self._claimed(replace(heard, victim=to)) for to in waiting}
        effects: list[Effect] = [CancelTimer(_HURRY)]
        effects += [Send(to, self._encoded(to, update, claims[to])) for to, update in waiting.items()]
        far = max(float(np.linalg.norm((c - heard.honest).astype(np.float64))) for c in claims.values())
        remark = self._claim.remark()
        return [*effects, Note("tampered", {"round": some.round, "peers": len(claims), "distance": far, **remark})]

    def _known(self, update: messages.Update) -> Heard:
        values = self._kit.sealer.decode(update.blob).values
        if self._kit.server is not None:
            before, start = self._hub
            onwards = {self._kit.server: start + (start - before)} if update.round else {}
            return Heard(update.round, self._kit.server, start, start + values, onwards, self._insider)
        self._mine = self._mine + values
        start = self._mine - self._update
        return Heard(update.round, self._kit.me, start, self._mine, self._heard.models(update.round), self._insider)

    def _claimed(self, heard: Heard) -> Vector:
        wild = self._claim.claim(heard, self._rng)
        return np.clip(np.where(np.isnan(wild), heard.honest, wild), -_LARGEST, _LARGEST).astype(np.float32)

    def _encoded(self, to: PeerId, update: messages.Update, claim: Vector) -> bytes:
        base = self._held[to] if self._kit.server is None else self._hub[1]
        blob, said = self._kit.sealer.encode(claim - base, update.round)
        if self._kit.server is None:
            self._held[to] = base + said
        return messages.encode(messages.Update(update.round, update.samples, blob))
