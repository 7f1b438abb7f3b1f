"""The broken baseline: homomorphic gossip in which one secret key is everybody's.

What it is. The usual set-up of homomorphic federated learning, and the position paper's own code: one key pair is
made at the beginning and given to all that take part, and whoever adds is thought to be somebody without it. In a mesh
every peer adds for itself, and has the key:

    h_j = x_j + u_j                                       local training, after the guards
    j says Enc(h_j - x_0) to every neighbour              CKKS or Paillier, under the one key
    i adds what came, decrypts **the sum**, and takes x_i = h_i + w (sum (h_j - x_0) - n (h_i - x_0))

**Who learns what.** An honest peer looks at sums only, and nothing but its manners keeps it from decrypting every
single model first: `key-holder` (`attacks/`) does. So this protects from those who have no key (a relay, a wire), which
the envelope does anyway, and from nobody else; in a star it protects from the server until one client tells it the key.
It is here to be measured against `blind-proxy`, never to be used. The key is passed on from neighbour to neighbour from
the first in the roster, who draws it; a peer believes the first that it is told.

CKKS is approximate: sums differ from the plain ones by about 1e-8, and by the randomness of ciphertexts, so two runs of
one seed agree to rounding and not to the bit. Paillier's are exact sums of multiples of 1e-5 (`ciphers.SCHEMES`). All
links have one weight, 1 / (1 + the largest number of neighbours).

Faults: who is silent for a patience is left out of a round (its weight stays with the peer). Who is told no key within
two patiences stops.

States: KEYING (waits for the key) -> TRAINING -> SAYING (encrypts) -> GATHERING (waits for its neighbours, or for the
round's timer) -> OPENING (adds and decrypts) -> TRAINING ... -> CLOSING -> stopped.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, cast

import networkx as nx
import numpy as np

from veilmesh.core import Refusal, RemoteError
from veilmesh.crypto.codecs.base import Vector
from veilmesh.crypto.homomorphic import Floats, Keys, Scheme
from veilmesh.crypto.homomorphic_work import Add, Decrypt, Encrypt, MakeKeys, Refused
from veilmesh.crypto.shared_key import SharedKey as Pair
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
    Work,
    WorkDone,
    WorkFailed,
)
from veilmesh.swarm import messages
from veilmesh.swarm.guards.base import RoundInfo
from veilmesh.swarm.sealer import astray
from veilmesh.swarm.strategies.base import STRATEGIES, Evaluated, Kit, Outcome, Trained
from veilmesh.swarm.strategies.ciphers import SchemeName, scheme_for, usable
from veilmesh.swarm.strategies.evaluation import Evaluation

__all__ = ["AHEAD", "SharedKey", "SharedKeyMachine"]

AHEAD = 4
"""How many rounds a neighbour may be ahead of ours."""


class Phase(Enum):
    KEYING = auto()
    TRAINING = auto()
    SAYING = auto()
    GATHERING = auto()
    OPENING = auto()
    CLOSING = auto()


@STRATEGIES.register("shared-key")
@dataclass(frozen=True)
class SharedKey:
    """Broken on purpose: homomorphic gossip (CKKS, Paillier) in which all peers hold the one secret key.

    `publish`: tell the neighbours what each sum comes to, in full precision, as if to a server that is to use the model
    and has no key: with two of CKKS it has one (`decryption-publishing`). `scheme`: of `ciphers.SCHEMES`.
    """

    publish: bool = False
    scheme: SchemeName = "ckks"

    centralised: ClassVar[bool] = False
    aggregates: ClassVar[bool] = False

    def machine(self, kit: Kit) -> Machine:
        scheme = scheme_for(self.scheme, len(kit.order))
        usable(kit, scheme, "shared-key")
        return SharedKeyMachine(kit, self.publish, scheme)

    def weights(self, graph: "nx.Graph[int]") -> dict[int, dict[int, float]]:
        share = 1.0 / (1 + max(dict(graph.degree()).values()))
        rows = {i: dict.fromkeys(sorted(graph.neighbors(i)), share) for i in sorted(graph.nodes)}
        return {i: {**row, i: 1.0 - sum(row.values())} for i, row in rows.items()}


class SharedKeyMachine:
    """One peer, who could read what all its neighbours say."""

    def __init__(self, kit: Kit, publish: bool, scheme: Scheme) -> None:
        self._kit, self._publish, self._scheme = kit, publish, scheme
        self._neighbours = tuple(p for p in kit.order if p in kit.weights and p != kit.me)
        self._share = min((kit.weights[p] for p in self._neighbours), default=0.0)  # they are all alike
        self._pair: Pair | None = None  # the one that everybody has
        self._samples = 0  # examples behind our update
        self._count, self._among = 0, tuple[int, ...]()  # how many, and whose, are in the sum that is being worked out
        self._x = self._half = kit.initial
        self._round = 0
        self._phase = Phase.KEYING
        self._heard: dict[int, dict[PeerId, bytes]] = {}
        self._present: frozenset[PeerId] = frozenset()
        self._evaluation = Evaluation(kit)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Started(present):
                self._present = present
                deals = self._kit.me == self._kit.order[0]
                return (
                    [Work("keys", MakeKeys(self._scheme))]
                    if deals
                    else [SetTimer("keys", now + 2 * self._kit.patience)]
                )
            case WorkDone(name, result):
                return self._done(name, result, now)
            case WorkFailed(name, reason):
                return [Note("failed", {"work": name, "reason": reason}), self._stop(f"{name}: {reason}")]
            case Received(sender, body):
                return self._received(sender, messages.decode(body))
            case PeersChanged(present):
                appeared, self._present = present - self._present, present
                return [*self._hand_on(appeared), *self._open_if_complete()]
            case TimerFired("keys"):
                return [self._stop("nobody said the common key")] if self._phase is Phase.KEYING else []
            case TimerFired():
                return self._give_up_waiting()

    def _done(self, name: str, result: object, now: float) -> list[Effect]:
        match name.partition("-")[0]:
            case "keys":
                return self._take_key(Pair(self._scheme, cast(Keys, result)), None)
            case "train":
                return self._encrypt(cast(Trained, result))
            case "encrypt":
                return self._say(cast(bytes | Refused, result), now)
            case "add":
                return self._decrypt(cast(bytes | Refused, result))
            case "decrypt":
                return self._mix(cast("Floats | Refused", result))
        return self._evaluation.scored(name, cast(Evaluated, result), self._stop)

    # --- the one key -------------------------------------------------------------------------------------------

    def _take_key(self, pair: Pair, told_by: PeerId | None) -> list[Effect]:
        self._pair = pair
        on = [p for p in self._present if p != told_by]
        return [CancelTimer("keys"), *self._hand_on(on), *self._train()]

    def _hand_on(self, peers: Collection[PeerId]) -> list[Effect]:
        if self._pair is None:
            return []
        body = messages.encode(messages.Key(0, self._pair.hand_out()))
        return [Send(p, body) for p in self._neighbours if p in peers]

    def _keys(self) -> Keys:
        assert self._pair is not None  # nothing is trained before
        return self._pair.keys

    # --- one round ---------------------------------------------------------------------------------------------

    def _train(self) -> list[Effect]:
        self._phase = Phase.TRAINING
        return [Work(f"train-{self._round}", self._kit.work.train(self._round, self._x))]

    def _encrypt(self, trained: Trained) -> list[Effect]:
        update = self._kit.sealer.guard(trained.update, RoundInfo(self._round, trained.samples, start=self._x))
        self._half = self._x + update
        if reason := astray(self._half):
            return [self._stop(reason)]
        self._phase, self._samples = Phase.SAYING, trained.samples
        task = Encrypt(self._scheme, self._keys().public, self._half - self._kit.initial)
        note = Note("trained", {"round": self._round, "loss": trained.loss})
        return [*self._kit.sealer.alarms(), note, Work(f"encrypt-{self._round}", task)]

    def _say(self, ciphertext: bytes | Refused, now: float) -> list[Effect]:
        self._phase = Phase.GATHERING
        if isinstance(ciphertext, Refused):
            return [self._stop("what was said to be the common key is none")]
        body = messages.encode(messages.Update(self._round, self._samples, ciphertext))
        sends: list[Effect] = [Send(p, body) for p in self._neighbours if p in self._present]
        return [*sends, SetTimer("round", now + self._kit.patience), *self._open_if_complete()]

    def _late(self) -> list[PeerId]:
        heard = self._heard.get(self._round, {})
        return [p for p in self._neighbours if p in self._present and p not in heard]

    def _open_if_complete(self) -> list[Effect]:
        return [] if self._phase is not Phase.GATHERING or self._late() else self._open()

    def _give_up_waiting(self) -> list[Effect]:
        if self._phase is not Phase.GATHERING:
            return []
        return [Note("late", {"round": self._round, "peers": [str(p) for p in self._late()]}), *self._open()]

    def _open(self) -> list[Effect]:
        """Add what came, and only then decrypt: that is what an honest peer promises."""
        heard = self._heard.pop(self._round, {})
        self._phase, self._count = Phase.OPENING, len(heard)
        done = CancelTimer("round")
        if not heard:
            return [done, *self._close(self._half)]
        self._among = tuple(place for place, p in enumerate(self._kit.order) if p in heard)
        given = tuple(heard[p] for p in self._neighbours if p in heard)
        return [done, Work(f"add-{self._round}", Add(self._scheme, self._keys().public, given))]

    def _decrypt(self, total: bytes | Refused) -> list[Effect]:
        if isinstance(total, Refused):
            return self._mix(total)
        task = Decrypt(self._scheme, self._keys(), total, self._x.size, self._count)
        return [Work(f"decrypt-{self._round}", task)]

    def _mix(self, total: Floats | Refused) -> list[Effect]:
        if isinstance(total, Refused):
            self._count = 0
            return [Note("unreadable", {"round": self._round}), *self._close(self._half)]
        offset = total - self._count * (self._half - self._kit.initial)
        shown = messages.encode(messages.Summed(self._round, self._among, total.astype("<f8").tobytes()))
        sends: list[Effect] = [Send(p, shown) for p in self._neighbours if p in self._present and self._publish]
        return [*sends, *self._close((self._half + self._share * offset).astype(np.float32))]

    def _close(self, x: Vector) -> list[Effect]:
        self._x = x
        note = Note("round", {"round": self._round, "group": 1 + self._count})
        self._round += 1
        self._heard = {r: heard for r, heard in self._heard.items() if r >= self._round}
        due = self._evaluation.due(self._round, lambda: self._x)
        if self._round < self._kit.rounds:
            return [note, *due, *self._train()]
        self._phase = Phase.CLOSING
        return [note, *due]

    def _stop(self, reason: str) -> Stop:
        return Stop(Outcome(self._x, self._round, self._evaluation.accuracy, reason))

    # --- what neighbours say -----------------------------------------------------------------------------------

    def _received(self, sender: PeerId, message: messages.Message) -> list[Effect]:
        if sender not in self._neighbours:
            raise RemoteError(Refusal.MISMATCH, "not a neighbour")
        match message:
            case messages.Key(blob=blob):
                return self._take_key(Pair.accept(self._scheme, blob), sender) if self._pair is None else []
            case messages.Update(round=round_, blob=blob):
                return self._take(sender, round_, blob)
            case messages.Summed() if self._publish:
                return []  # for whoever has no key
            case _:
                raise RemoteError(Refusal.MISMATCH, f"{type(message).__name__} in a gossip with a shared key")

    def _take(self, sender: PeerId, round_: int, blob: bytes) -> list[Effect]:
        if not max(0, self._round - AHEAD) <= round_ < min(self._round + AHEAD, self._kit.rounds):
            raise RemoteError(Refusal.MISMATCH, f"round {round_} while we are in {self._round}")
        self._scheme.check_ciphertext(blob, self._x.size)
        if sender in self._heard.get(round_, {}):
            raise RemoteError(Refusal.MISMATCH, f"a second update for round {round_}")
        if round_ >= self._round and self._phase is not Phase.CLOSING:
            self._heard.setdefault(round_, {})[sender] = blob
        return self._open_if_complete()
